"""How long is a training step, and what does it store, against Hugging Face's transformers?

Interleaved pairs of whole steps on the same weights and pictures: forward, losses of all layers with the assignment,
backward, gradients clipped, AdamW. The trunk gets no gradient on either side. The peer has its own model and loss with
every layer supervised (`auxiliary_loss`), the fused AdamW that its Trainer takes, and the faster of the two memory
formats for its trunk (channels last). Dropout is 0 in both unless `--dropout` leaves both at their defaults, which
means for ours, as in the official code, that attention is dropped as well. Predictions and unweighted terms are
compared first.

Each side has a process of its own and waits while the other computes. Ours keeps freed memory, as `detrove train` does
on a CPU; the peer does where `--peer-keeps-memory` says so. Memory is a process's highest resident size, beyond what it
held before its first step.

    python benchmarks/training_step.py detr-r50 deformable-r50 --pairs 15 --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForObjectDetection

from detrove import checkpoints
from detrove.checkpoints.hugging_face import export_folder
from detrove.memory import freed_memory_kept
from detrove.models import catalogue, dab
from detrove.models.preset import Recipe
from detrove.nn.recompute import recompute_layers
from detrove.structures import ImageBatch, Predictions, Targets
from detrove.training.optimizer import build_optimizer

MODELS = ("detr-r50", "conditional-r50", "dab-r50", "deformable-r50")
TERMS = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
Step = Callable[[], Any]
UNCOUNTED = 3
"""Steps before the first that counts: memory is laid out, kernels are chosen."""


def our_model(name: str, dropout: bool) -> nn.Module:
    """The published form of that name with random weights and a fixed trunk, with Hugging Face's epsilons."""
    torch.manual_seed(0)
    config = catalogue.preset(name).config
    if isinstance(config, dab.Config):
        config = replace(config, inverse_sigmoid_epsilon=1e-5, giou_epsilon=0.0)
    model = catalogue.build(config if dropout else replace(config, dropout=0.0)).train()
    model.get_submodule("backbone").requires_grad_(False)
    return model


def their_model(ours: nn.Module) -> nn.Module:
    """Hugging Face's detector of the same weights, every layer supervised, its trunk fixed and channels last."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(ours, Path(folder) / "ours.safetensors")
        export_folder(checkpoints.read(Path(folder) / "ours.safetensors"), Path(folder) / "theirs")
        model = AutoModelForObjectDetection.from_pretrained(Path(folder) / "theirs", auxiliary_loss=True)
    trunk = model.model.backbone
    trunk.requires_grad_(False)
    trunk.to(memory_format=torch.channels_last)
    return model.train()


def make_batch(batch: int, size: int) -> tuple[ImageBatch, list[Targets]]:
    """Random square pictures with seven objects each."""
    generator = torch.Generator().manual_seed(1)
    images = ImageBatch.from_images([torch.randn(3, size, size, generator=generator) for _ in range(batch)])
    targets = []
    for _ in range(batch):
        centre, extent = torch.rand(2, 7, 2, generator=generator)
        boxes = torch.cat((0.2 + 0.6 * centre, 0.05 + 0.3 * extent), dim=1)
        targets.append(Targets(torch.randint(80, (7,), generator=generator), boxes))
    return images, targets


def our_step(model: nn.Module, images: ImageBatch, targets: list[Targets]) -> Step:
    criterion = catalogue.criterion_for(model)
    optimizer = build_optimizer(model, Recipe())

    def step() -> None:
        total = criterion.total(criterion(model(images, targets), targets))
        total.backward()
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(model: nn.Module, images: ImageBatch, targets: list[Targets]) -> Step:
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    inputs = {"pixel_values": images.pixels, "pixel_mask": (~images.padding_mask).long()}
    inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> None:
        model(**inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def agreement(ours: nn.Module, theirs: Any, images: ImageBatch, targets: list[Targets]) -> str:
    """Largest differences of the last layer's predictions, and of the unweighted terms on the same predictions."""
    ours.eval()
    theirs.eval()
    theirs.config.auxiliary_loss = False  # with it, intermediate layers are handed on normed
    predictions = ours(images)
    output = theirs(pixel_values=images.pixels, pixel_mask=(~images.padding_mask).long())
    theirs.config.auxiliary_loss = True
    of_logits = (predictions.logits[-1] - output.logits).abs().max().item()
    of_boxes = (predictions.boxes[-1] - output.pred_boxes).abs().max().item()
    wanted = their_terms(theirs, predictions, targets)
    given = catalogue.criterion_for(ours)(predictions, targets)
    of_terms = max(((given[name] - wanted[name]).abs() / wanted[name]).max().item() for name in TERMS)
    return f"logits {of_logits:.1e}, boxes {of_boxes:.1e}, loss terms {of_terms:.1e} of their value"


def their_terms(model: Any, predictions: Predictions, targets: list[Targets]) -> dict[str, Tensor]:
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    logits, boxes = predictions.logits, predictions.boxes
    _, terms, _ = model.loss_function(logits[-1], labels, torch.device("cpu"), boxes[-1], model.config, logits, boxes)
    suffixes = [*(f"_{layer}" for layer in range(len(logits) - 1)), ""]
    return {name: torch.stack([terms[their + suffix] for suffix in suffixes]) for name, their in TERMS.items()}


class Side:
    """One of the two, in a process that takes a step whenever it is told to."""

    def __init__(self, name: str, side: str, arguments: list[str]) -> None:
        command = [sys.executable, __file__, name, "--serve", side, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.memory = 0.0

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("step", file=self.process.stdin, flush=True)
        seconds, self.memory = map(float, self.process.stdout.readline().split())
        return seconds

    def end(self) -> None:
        """Let the process finish."""
        self.process.communicate()


def serve(name: str, side: str, options: argparse.Namespace) -> None:
    """A side's process: for every line that comes in, a step; its seconds, and the MiB needed at most so far."""
    images, targets = make_batch(options.batch, options.size)
    model = our_model(name, options.dropout)
    if side == "theirs":
        model = their_model(model)
    elif options.recompute:
        recompute_layers(model)
    step = (our_step if side == "ours" else their_step)(model, images, targets)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the models has left behind
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    with freed_memory_kept() if side == "ours" or options.peer_keeps_memory else nullcontext():
        for _ in sys.stdin:
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
            highest = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
            print(seconds, (int(highest) * 1024 - before) / 2**20, flush=True)


def compare(name: str, options: argparse.Namespace, arguments: list[str]) -> None:
    """Time pairs of steps and print the ratio, and that of memory."""
    ours, theirs = (Side(name, side, arguments) for side in ("ours", "theirs"))
    model = our_model(name, dropout=False)  # looked at while the two make their own
    print(f"{name:16} largest differences: {agreement(model, their_model(model), *make_batch(2, 128))}", flush=True)
    del model
    for side in (ours, theirs):
        for _ in range(UNCOUNTED):
            side.step()
    pairs = [(ours.step(), theirs.step()) for _ in range(options.pairs)]
    ours.end()
    theirs.end()
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    own, other = (statistics.median(taken) for taken in zip(*pairs, strict=True))
    print(
        f"{name:16} detrove {own:5.2f} s   transformers {other:5.2f} s   "
        f"ratio {middle:.2f}x (quartiles {low:.2f} to {high:.2f})   "
        f"memory {ours.memory:.0f} and {theirs.memory:.0f} MiB, {ours.memory / theirs.memory:.2f} of it",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dropout", action="store_true", help="leave dropout as published")
    parser.add_argument("--peer-keeps-memory", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="train ours with recompute: true")
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve(options.models[0], options.serve, options)
        return
    arguments = ["--batch", str(options.batch), "--size", str(options.size), "--threads", str(options.threads)]
    arguments += ["--recompute"] * options.recompute
    arguments += ["--dropout"] * options.dropout + ["--peer-keeps-memory"] * options.peer_keeps_memory
    print(f"torch {torch.__version__}, {options.threads} threads, {options.batch} pictures of {options.size} pixels\n")
    for name in options.models:
        compare(name, options, arguments)


if __name__ == "__main__":
    main()
