"""How do time and memory grow with the picture and with the queries, as loaded and optimised?

DETR, DAB-DETR, Deformable DETR and DAB-Deformable-DETR on a ResNet-50, random weights, one picture of 4:3 in float32.
At every point the model as loaded and the torch engine of `detrove.optimize` take turns: a round that warms up, one in
which memory is watched (what the process holds at most beyond what it held before; Linux only), and three to nine that
are timed. Told are medians, and the ratio's median. Writes scaling.json and scaling.png to the output folder; takes 6
to 8 minutes on two cores.

    python benchmarks/scaling.py --threads 2 --output /tmp/scaling
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

import detrove
from detrove.inference import Detector
from detrove.inference.bench import processor
from detrove.inference.bench.machine import PeakMemory, resident_memory
from detrove.models import catalogue
from detrove.structures import ImageBatch, LabelMap, Predictions

MODELS = ("detr-r50", "dab-r50", "deformable-r50", "dab-deformable-r50")
SIZES = (320, 480, 640, 960, 1280)
QUERIES = (100, 300, 600, 900)
SIZE_OF_QUERIES = 640
"""The picture's longer side where queries are counted."""
FORMS = ("as loaded", "optimised")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by the colour-blind
MARKERS = ("o", "s", "^", "D")
LEAST_ROUNDS, MOST_ROUNDS, SECONDS_A_POINT = 3, 9, 3.0


@dataclass
class Point:
    """One model at one size and number of queries: by form, median seconds and bytes beyond what was held before."""

    model: str
    size: int
    queries: int
    seconds: dict[str, float]
    memory: dict[str, int | None]
    ratio: float
    difference: float


Answer = Callable[[ImageBatch], Predictions]


def forms_of(name: str, queries: int) -> dict[str, Answer]:
    """What answers in either form, on the same random weights."""
    torch.manual_seed(0)
    preset = catalogue.preset(name)
    model = catalogue.build(dataclasses.replace(preset.config, num_queries=queries)).eval()
    detector = Detector(model, preset.preprocessing, LabelMap.numbered(preset.config.num_classes), name=name)

    @torch.inference_mode()
    def as_loaded(images: ImageBatch) -> Predictions:
        return model(images)

    engine = detrove.optimize(detector).engine
    assert engine is not None
    return dict(zip(FORMS, (as_loaded, engine), strict=True))


def picture(size: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch.from_images([torch.randn(3, size * 3 // 4, size, generator=generator)])


def watched(answer: Answer, images: ImageBatch) -> tuple[Predictions, int | None]:
    """The answer, and the most memory that it took beyond what was held before."""
    if sys.platform != "linux":
        return answer(images), None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier points have freed goes back, so that it is counted again
    before, peak = resident_memory(), PeakMemory(torch.device("cpu"))
    predictions = answer(images)
    highest, _ = peak.read()
    if before is None or highest is None or not peak.can_reset:
        return predictions, None
    return predictions, max(highest - before, 0)


def measure(name: str, size: int, queries: int, forms: dict[str, Answer]) -> Point:
    images = picture(size)
    for answer in forms.values():
        answer(images)  # weights are packed and plans are made at the first
    answers = {form: watched(answer, images) for form, answer in forms.items()}
    plain, fast = (predictions.logits[-1] for predictions, _ in answers.values())
    times: dict[str, list[float]] = {form: [] for form in forms}
    rounds, began = 0, time.perf_counter()
    while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() - began < SECONDS_A_POINT):
        for form, answer in forms.items():
            start = time.perf_counter()
            answer(images)
            times[form].append(time.perf_counter() - start)
        rounds += 1
    return Point(
        name,
        size,
        queries,
        seconds={form: statistics.median(taken) for form, taken in times.items()},
        memory={form: memory for form, (_, memory) in answers.items()},
        ratio=statistics.median(one / other for one, other in zip(*times.values(), strict=True)),
        difference=((plain - fast).abs().max() / plain.abs().max()).item(),
    )


def points(models: list[str], sizes: list[int], queries: list[int]) -> Iterator[tuple[str, Point]]:
    """Every point, with the name of its series: "size" or "queries"."""
    for name in models:
        usual = catalogue.preset(name).config.num_queries
        forms = forms_of(name, usual)
        for size in sizes:
            yield "size", measure(name, size, usual, forms)
        for number in queries:
            yield "queries", measure(name, SIZE_OF_QUERIES, number, forms_of(name, number))


def line(point: Point) -> str:
    plain, fast = (point.seconds[form] for form in FORMS)
    memory = [point.memory[form] for form in FORMS]
    told = [f"{'-' if held is None else round(held / 2**20):>8}" for held in memory]
    return (
        f"{point.model:20}{point.size:>6}{point.queries:>9}{plain:>11.3f}{fast:>11.3f}{point.ratio:>8.2f}"
        f"{told[0]}{told[1]}{point.difference:>12.0e}"
    )


HEADER = (
    f"{'model':20}{'size':>6}{'queries':>9}{'loaded s':>11}{'optim. s':>11}{'ratio':>8}"
    f"{'MiB':>8}{'MiB':>8}{'difference':>12}"
)


def draw(series: dict[str, list[Point]], path: Path) -> None:
    """Time above, memory below; against the picture's size at the left, the number of queries at the right."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharey="row", layout="constrained")
    kinds = {"size": "picture, longer side (pixels)", "queries": f"queries, at {SIZE_OF_QUERIES} pixels"}
    for column, (kind, label) in enumerate(kinds.items()):
        for row, quantity in enumerate(("seconds", "memory")):
            draw_lines(axes[row][column], series[kind], kind, quantity)
        axes[1][column].set_xlabel(label)
    axes[0][0].set_ylabel("time of one picture (seconds)")
    axes[1][0].set_ylabel("memory beyond the weights (MiB)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def draw_lines(axis: Any, series: list[Point], kind: str, quantity: str) -> None:
    models = list(dict.fromkeys(point.model for point in series))
    scale = 2**20 if quantity == "memory" else 1
    for index, name in enumerate(models):
        for form in FORMS:
            known = [
                (getattr(point, kind), getattr(point, quantity)[form] / scale)
                for point in series
                if point.model == name and getattr(point, quantity)[form] is not None
            ]
            style = {"linestyle": "--", "markerfacecolor": "white"} if form == FORMS[0] else {"linestyle": "-"}
            axis.plot(
                *zip(*known, strict=True),
                label=f"{name}, {form}",
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                **style,
            )
    places = sorted({getattr(point, kind) for point in series})
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(places, [str(place) for place in places])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--queries", nargs="+", type=int, default=QUERIES)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {options.threads} threads, {processor()}\n\n{HEADER}", flush=True)
    began, series = time.perf_counter(), {"size": [], "queries": []}
    for kind, point in points(options.models, options.sizes, options.queries):
        series[kind].append(point)
        print(line(point), flush=True)
    found = {kind: [dataclasses.asdict(point) for point in each] for kind, each in series.items()}
    setting = {"torch": torch.__version__, "threads": options.threads, "processor": processor()}
    (options.output / "scaling.json").write_text(json.dumps({**setting, **found}, indent=1))
    draw(series, options.output / "scaling.png")
    print(f"\n{time.perf_counter() - began:.0f} s; scaling.json and scaling.png are in {options.output}")


if __name__ == "__main__":
    main()
