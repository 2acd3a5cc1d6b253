"""How much faster is the deformable sampling kernel than the formula in plain torch, and what does it store?

Interleaved pairs at Deformable DETR's size (800×1366 pixels: 22.8 thousand tokens on four levels, 8 heads, 4 points),
and at 300 queries as in its decoder, forward and forward + backward; then the extra memory of both, each in a fresh
process. Prints median ratios with their quartiles. Every output and gradient is compared first.

    python benchmarks/deformable_sampling.py --pairs 15 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from detrove.nn.sampling import sample_levels, sample_levels_torch, sampling_way, use_sampling

SHAPES = [(100, 171), (50, 86), (25, 43), (13, 22)]
HEADS, WIDTH, POINTS = 8, 32, 4
Sampler = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]


def parts(queries: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, locations near each cell (or anywhere, for a decoder's queries), weights, and an output gradient."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(1, tokens, HEADS, WIDTH, generator=generator)
    if queries is None:
        grids = [
            torch.stack(torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1)
            for h, w in SHAPES
        ]
        centres = torch.cat([grid.flatten(0, 1) for grid in grids])
    else:
        centres = torch.rand(queries, 2, generator=generator)
    scatter = 0.03 * torch.randn(1, len(centres), HEADS, len(SHAPES), POINTS, 2, generator=generator)
    weights = torch.rand(1, len(centres), HEADS, len(SHAPES) * POINTS, generator=generator).softmax(dim=-1)
    gradient = torch.randn(1, len(centres), HEADS * WIDTH, generator=generator)
    locations = centres[None, :, None, None, None] + scatter
    return value, locations, weights.unflatten(-1, (len(SHAPES), POINTS)), gradient


def forward(sampler: Sampler, case: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        sampler(case[0], SHAPES, case[1], case[2])


def both(sampler: Sampler, case: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in case[:3]]
    output = sampler(leaves[0], SHAPES, leaves[1], leaves[2])
    output.backward(case[3])
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def differences(case: tuple[Tensor, ...]) -> str:
    """Largest difference of output and gradients, relative to the largest value of each.

    A location's gradient jumps where the point crosses a cell's centre, so rounding may choose either side there: what
    is told of it is the share of points that differ.
    """
    ours, theirs = both(sample_levels, case), both(sample_levels_torch, case)
    told = []
    for name, one, other in zip(("output", "of value", "of locations", "of weights"), ours, theirs, strict=True):
        difference = (one - other).abs() / other.abs().max()
        if name == "of locations":
            told.append(f"{name} {(difference > 1e-4).float().mean().item():.1e} of points")
        else:
            told.append(f"{name} {difference.max().item():.1e}")
    return ", ".join(told)


def time_pairs(run: Callable[[Sampler], object], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of the kernel and of plain torch, in turn, after one unmeasured pair."""
    ours, theirs = [], []
    for index in range(pairs + 1):
        for sampler, times in ((sample_levels, ours), (sample_levels_torch, theirs)):
            start = time.perf_counter()
            run(sampler)
            if index:
                times.append(time.perf_counter() - start)
    return ours, theirs


def report(name: str, ours: list[float], theirs: list[float]) -> None:
    ratios = sorted(other / one for one, other in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{name:34} kernel {statistics.median(ours) * 1e3:8.1f} ms   torch {statistics.median(theirs) * 1e3:8.1f} ms   "
        f"ratio {middle:5.2f}x (quartiles {low:.2f} to {high:.2f})"
    )


def peak_memory(way: str) -> int:
    """Bytes that forward and backward need beyond their inputs, in this process: watched while they run."""
    use_sampling(way)
    small = [part[:, :64] if index else part for index, part in enumerate(parts(64))]
    both(sample_levels, tuple(small))  # compiled, imported, warm
    case = parts(None)
    page = Path("/proc/self/statm")

    def resident() -> int:
        return int(page.read_text().split()[1]) * 4096

    highest, before, done = 0, resident(), threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    both(sample_levels, case)
    done.set()
    watcher.join()
    return highest - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_memory(options.memory_of))
        return
    way = sampling_way("cpu")
    print(f"torch {torch.__version__}, {options.threads} threads, kernel: {way}, {options.pairs} interleaved pairs\n")
    for name, queries in (("encoder, 22761 queries", None), ("decoder, 300 queries", 300)):
        case = parts(queries)
        print(f"{name}: largest differences: {differences(case)}")
        report(f"{name}, forward", *time_pairs(lambda sampler, case=case: forward(sampler, case), options.pairs))
        report(f"{name}, both", *time_pairs(lambda sampler, case=case: both(sampler, case), options.pairs))
    memory = {}
    for each in (way, "torch"):
        command = [sys.executable, __file__, "--memory-of", each, "--threads", str(options.threads)]
        memory[each] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    own, plain = (memory[each] / 2**20 for each in (way, "torch"))
    print(f"\nextra memory, both: kernel {own:.0f} MiB, torch {plain:.0f} MiB, {own / plain:.2f} of it")


if __name__ == "__main__":
    main()
