"""How much faster is a 3×3 convolution by tiles than oneDNN's, and how far is each from the exact sum?

Interleaved pairs at the sizes of a ResNet-50's stages, with bias and ReLU on both sides, oneDNN's as a folded trunk
calls it: its weight packed, channels last, the ReLU its last step. Prints median milliseconds, the ratio's median and
quartiles, and the root mean square of each one's difference from the sum in float64.

    python benchmarks/winograd.py --pairs 31 --threads 2
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from detrove.memory import freed_memory_kept
from detrove.nn import folding
from detrove.nn.folding import FoldedConvolution
from detrove.nn.winograd import WinogradConvolution

STAGES = ((64, 4), (128, 8), (256, 16), (512, 32))
"""Channels and stride."""
PICTURES = ((1, 320, 320), (1, 640, 640), (1, 800, 1066), (2, 640, 640))
"""How many, and their height and width."""


@torch.inference_mode()
def compare(pictures: int, channels: int, height: int, width: int, pairs: int) -> str:
    """One line on a map of that size."""
    torch.manual_seed(0)
    x = torch.randn(pictures, channels, height, width).relu().contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, channels, 3, 3) / math.sqrt(9 * channels), torch.randn(channels)
    plain = FoldedConvolution(nn.Conv2d(channels, channels, 3, padding=1), weight, bias)
    plain.activation = nn.ReLU()
    by_tiles = WinogradConvolution(weight, bias)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
    errors = [(found - exact).square().mean().sqrt().item() for found in (plain(x), by_tiles(x, relu=True))]
    taken: tuple[list[float], list[float]] = ([], [])
    for index in range(pairs + 3):
        for compute, seconds in zip((lambda: plain(x), lambda: by_tiles(x, relu=True)), taken, strict=True):
            start = time.perf_counter()
            compute()
            if index >= 3:
                seconds.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles([one / other for one, other in zip(*taken, strict=True)], n=4)
    milliseconds = [1000 * statistics.median(seconds) for seconds in taken]
    return (
        f"{pictures} × {channels:3} × {height:3} × {width:3}   oneDNN {milliseconds[0]:6.2f} ms   by tiles "
        f"{milliseconds[1]:6.2f} ms   ratio {middle:.2f} ({low:.2f} to {high:.2f})   "
        f"rounding {errors[0]:.1e}, {errors[1]:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folding._numba_is_installed = lambda: False  # what folding would compute by tiles, oneDNN computes here
    print(f"torch {torch.__version__}, {options.threads} threads, {options.pairs} interleaved pairs")
    with freed_memory_kept():
        for pictures, height, width in PICTURES:
            for channels, stride in STAGES:
                size = -(-height // stride), -(-width // stride)
                print(compare(pictures, channels, *size, options.pairs), flush=True)


if __name__ == "__main__":
    main()
