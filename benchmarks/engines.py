"""How much faster is each engine of `detrove.optimize` than the model itself, and does it answer the same?

Whole detectors with random weights on one picture of 800×1066, in interleaved rounds: the model as loaded (eval,
inference mode), the torch engine, ONNX Runtime and OpenVINO, in float32; then the engines that have bfloat16. Prints
median seconds, the ratio to the plain model (median and quartiles of the rounds), and how far apart the last layer's
logits and boxes are. Exporting takes a minute or more for each detector and no part of the timing: `--write-only`
does it beforehand, into `--files`, where a later run finds what is written.

    python benchmarks/engines.py --files /tmp/engines --write-only
    python benchmarks/engines.py --files /tmp/engines --rounds 15 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from detrove.export.agreement import answer_differences
from detrove.export.onnx import export_onnx
from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine
from detrove.inference.engines.openvino import OpenVinoEngine
from detrove.inference.engines.torch import TorchEngine
from detrove.models import catalogue
from detrove.structures import ImageBatch, Predictions

MODELS = ("detr-r50", "dab-r50", "deformable-r50")
Answer = Callable[[ImageBatch], Predictions]


def build(name: str) -> nn.Module:
    """Random weights, the trunk frozen as published, heads moved from zero so that answers differ."""
    torch.manual_seed(0)
    model = catalogue.create(name, backbone_frozen=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def engines(name: str, model: nn.Module, file: Path, wanted: list[str]) -> dict[str, Answer]:
    makers: dict[str, Callable[[], Answer]] = {
        "torch float32": lambda: TorchEngine(model),
        "onnxruntime float32": lambda: OnnxRuntimeEngine(file),
        "openvino float32": lambda: OpenVinoEngine(file),
        "torch bfloat16": lambda: TorchEngine(model, "bfloat16"),
        "openvino bfloat16": lambda: OpenVinoEngine(file, "bfloat16"),
    }
    made: dict[str, Answer] = {"model": torch.inference_mode()(model)}
    for engine, make in makers.items():
        if not wanted or any(word in engine for word in wanted):
            start = time.perf_counter()
            made[engine] = make()
            print(f"{name}: {engine} made in {time.perf_counter() - start:.1f} s", flush=True)
    return made


def time_rounds(answers: dict[str, Answer], images: ImageBatch, rounds: int) -> dict[str, list[float]]:
    """Seconds of each in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(rounds):
        for name, answer in answers.items():
            start = time.perf_counter()
            answer(images)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(name: str, seconds: dict[str, list[float]], apart: dict[str, str]) -> None:
    plain = seconds["model"]
    for engine, times in seconds.items():
        ratios = [one / other for one, other in zip(plain, times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:16} {engine:20} {statistics.median(times):7.3f} s   ratio {middle:5.2f}x "
            f"(quartiles {low:.2f} to {high:.2f})   {apart[engine]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--engines", nargs="*", default=[], help="words that an engine's line must contain one of")
    parser.add_argument("--files", type=Path, required=True, help="folder of the exported files")
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.files.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "onnxruntime", "openvino"))
    print(f"{versions}; {options.threads} threads, {options.rounds} interleaved rounds, picture of {options.size}\n")
    generator = torch.Generator().manual_seed(1)
    images = ImageBatch.from_images([torch.randn(3, *options.size, generator=generator)])
    for name in options.models:
        model, file = build(name), options.files / f"{name}.onnx"
        if not file.is_file():
            export_onnx(model, file)
        if options.write_only:
            continue
        answers = engines(name, model, file, options.engines)
        plain = answers["model"](images)
        apart = {}
        for engine, answer in answers.items():  # the comparison also warms each of them
            logits, boxes = answer_differences(plain, answer(images))
            apart[engine] = f"apart: logits {logits.max():.1e}, boxes {boxes.max():.1e}"
            if "float32" in engine and max(logits.max(), boxes.max()) > 1e-4:
                apart[engine] += " ABOVE 1e-4"
        report(name, time_rounds(answers, images, options.rounds), apart)


if __name__ == "__main__":
    main()
