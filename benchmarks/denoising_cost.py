"""What does denoising cost: a step of training and, which should be nothing, a prediction?

Each detector runs against itself without denoising (`denoising=None`; for DN-DETR that is DAB-DETR), in turn: steps
(forward, losses, backward, AdamW) on noise for pictures with seeded boxes, and predictions in evaluation mode. Printed
are the median times, the median ratio with its quartiles, and how many queries the decoder saw.

    python benchmarks/denoising_cost.py --pairs 15 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from detrove.models import catalogue
from detrove.structures import ImageBatch, Targets

NUM_CLASSES = 80


def objects(count: int, generator: torch.Generator) -> Targets:
    """Boxes of a fifth of the picture, well inside it."""
    boxes = torch.rand(count, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.0, 0.0])
    return Targets(torch.randint(NUM_CLASSES, (count,), generator=generator), boxes.clamp(min=0.02))


def step_of(model: Any, images: ImageBatch, targets: list[Targets]) -> Callable[[], object]:
    """One step of training."""
    criterion = catalogue.criterion_for(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5)

    def step() -> None:
        model.train()
        loss = criterion.total(criterion(model(images, targets), targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def prediction_of(model: Any, images: ImageBatch) -> Callable[[], object]:
    """One prediction for the first picture."""
    one = ImageBatch(images.pixels[:1], images.padding_mask[:1], images.sizes[:1])

    def predict() -> None:
        model.eval()
        with torch.no_grad():
            model(one)

    return predict


def time_pairs(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn, each time another first, after two unmeasured pairs."""
    times: tuple[list[float], list[float]] = [], []
    for index in range(pairs + 2):
        both = [(first, times[0]), (second, times[1])]
        for run, kept in both if index % 2 else reversed(both):
            start = time.perf_counter()
            run()
            if index > 1:
                kept.append(time.perf_counter() - start)
    return times


def report(what: str, having: list[float], without: list[float]) -> None:
    ratios = [one / other for one, other in zip(having, without, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{what:44} with {statistics.median(having) * 1e3:8.1f} ms   without {statistics.median(without) * 1e3:8.1f} ms"
        f"   ratio {middle:5.3f} (quartiles {low:.3f} to {high:.3f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dn-dab-nano", "dino-nano"])
    parser.add_argument("--objects", nargs="+", type=int, default=[7, 30], help="in the fullest picture")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = ImageBatch.from_images(
        list(torch.randn(options.batch, 3, options.size, options.size, generator=generator))
    )
    for name in options.models:
        torch.manual_seed(0)
        having: Any = catalogue.create(name, num_classes=NUM_CLASSES)
        without: Any = catalogue.create(name, num_classes=NUM_CLASSES, denoising=None)
        for most in options.objects:
            counts = [max(most * (index + 1) // options.batch, 1) for index in range(options.batch)]
            targets = [objects(count, generator) for count in counts]
            answers = having.train()(images, targets)
            slots, queries = answers.denoising.logits.shape[2], answers.logits.shape[2]
            times = time_pairs(step_of(having, images, targets), step_of(without, images, targets), options.pairs)
            report(f"{name}, step, {most} objects, {queries} + {slots} queries", *times)
        times = time_pairs(prediction_of(having, images), prediction_of(without, images), 2 * options.pairs)
        report(f"{name}, prediction", *times)


if __name__ == "__main__":
    main()
