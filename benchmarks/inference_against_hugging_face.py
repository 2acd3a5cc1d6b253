"""How long does a whole detector take for one picture, against Hugging Face's transformers?

Interleaved pairs on the same random weights and the same picture, 800×1066, float32: `detrove.optimize`'s torch engine
against the peer's model in evaluation mode without autograd, its weights and input channels last like ours, its own
choice of attention. The largest difference of the outputs is told first. With `--plain` and `--precision` other forms
of ours are timed: the model as loaded, or in bfloat16. Prints the median ratio and its quartiles.

    python benchmarks/inference_against_hugging_face.py detr-r50 conditional-r50 dab-r50 --pairs 15 --threads 2
    python benchmarks/inference_against_hugging_face.py deformable-r50 --pairs 15 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForObjectDetection

from detrove import checkpoints
from detrove.checkpoints.hugging_face import export_folder
from detrove.inference.engines.torch import TorchEngine
from detrove.models import catalogue, dab
from detrove.structures import ImageBatch

MODELS = ("detr-r50", "conditional-r50", "dab-r50", "deformable-r50")


@torch.no_grad()
def our_model(name: str) -> nn.Module:
    """The published form of that name with random weights, none of them zero or one by initialisation.

    DAB-DETR has Hugging Face's epsilon, so that both compute the same.
    """
    torch.manual_seed(0)
    config = catalogue.preset(name).config
    if isinstance(config, dab.Config):
        config = replace(config, inverse_sigmoid_epsilon=1e-5)
    model = catalogue.build(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter) if parameter.dim() < 2 else 0.0)
    return model


def their_model(ours: nn.Module) -> nn.Module:
    """Hugging Face's detector of the same weights, channels last."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(ours, Path(folder) / "ours.safetensors")
        export_folder(checkpoints.read(Path(folder) / "ours.safetensors"), Path(folder) / "theirs")
        model = AutoModelForObjectDetection.from_pretrained(Path(folder) / "theirs")
    return model.eval().to(memory_format=torch.channels_last)


def time_pairs(one: Callable[[], Any], other: Callable[[], Any], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn, after an unmeasured pair."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(pairs + 1):
        for run, taken in zip((one, other), times, strict=True):
            start = time.perf_counter()
            run()
            if index:
                taken.append(time.perf_counter() - start)
    return times


def report(name: str, ours: list[float], theirs: list[float], peer: str) -> None:
    """One line: the medians, and the ratio of the pairs with its quartiles."""
    low, middle, high = statistics.quantiles([t / o for o, t in zip(ours, theirs, strict=True)], n=4)
    print(
        f"{name:32} ours {statistics.median(ours):6.3f} s   {peer} {statistics.median(theirs):6.3f} s   "
        f"ratio {middle:5.2f}x (quartiles {low:.2f} to {high:.2f})",
        flush=True,
    )


@torch.inference_mode()
def compare(name: str, options: argparse.Namespace) -> None:
    """Time one detector against its peer."""
    model = our_model(name)
    theirs: Any = their_model(model)
    engine = model if options.plain else TorchEngine(model, options.precision, options.compiled)
    images = ImageBatch.from_images([torch.randn(3, 800, 1066, generator=torch.Generator().manual_seed(1))])
    pixels = images.pixels.contiguous(memory_format=torch.channels_last)
    given, wanted = engine(images), theirs(pixel_values=pixels)
    of_logits = (given.logits[-1] - wanted.logits).abs().max().item()
    of_boxes = (given.boxes[-1] - wanted.pred_boxes).abs().max().item()
    print(f"{name}: largest difference of logits {of_logits:.1e}, of boxes {of_boxes:.1e}", flush=True)
    form = "plain" if options.plain else f"{options.precision}{', compiled' if options.compiled else ''}"
    taken = time_pairs(lambda: engine(images), lambda: theirs(pixel_values=pixels), options.pairs)
    report(f"{name}, {form}", *taken, "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compiled", action="store_true", help="the torch engine through torch.compile")
    parser.add_argument("--plain", action="store_true", help="the model as loaded, not optimised")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.pairs} interleaved pairs, 800×1066, batch 1")
    for name in options.models:
        compare(name, options)


if __name__ == "__main__":
    main()
