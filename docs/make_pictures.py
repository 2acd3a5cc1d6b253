"""Makes the pictures of the README and of these pages from what detrove leaves.

python docs/make_pictures.py sheet RUN OUTPUT.jpg PICTURE…      what a detector sees, side by side
python docs/make_pictures.py curves RUN OUTPUT.png              how it learned, from metrics.jsonl
python docs/make_pictures.py figure OUTPUT.webp STUDY/NAME.png… figures of `detrove study`, side by side
python docs/make_pictures.py argument OUTPUT.webp ARM.json…     AP50 of the arms of benchmarks/family_argument.py
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from itertools import cycle
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from PIL import Image

import detrove
from detrove.drawing import draw_detections
from detrove.pictures import read_picture
from detrove.reporting.charts import CHART_COLOURS, LINE_STYLES

HEIGHT, COLUMNS, GAP = 240, 4, 6
FIGURE_WIDTH = 560


def sheet(run: str, output: str, *pictures: str) -> None:
    """Drawn pictures of one height in rows of `COLUMNS`."""
    detector = detrove.load(run)
    drawn = []
    for path in pictures:
        picture = read_picture(path)
        longer = round(max(picture.size) * HEIGHT / picture.height)
        drawn.append(draw_detections(picture, detector.predict(path), longer=longer))
    rows = [drawn[start : start + COLUMNS] for start in range(0, len(drawn), COLUMNS)]
    widths = [sum(picture.width + GAP for picture in row) - GAP for row in rows]
    page = Image.new("RGB", (max(widths), len(rows) * (HEIGHT + GAP) - GAP), "white")
    for index, row in enumerate(rows):
        left = 0
        for picture in row:
            page.paste(picture, (left, index * (HEIGHT + GAP)))
            left += picture.width + GAP
    page.save(output, quality=88)


def curves(run: str, output: str) -> None:
    """The loss, and AP and AP50 on the validation pictures, over minutes of training."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if line.get("ap") is not None]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([line["minutes"] for line in lines], [line["loss"] for line in lines], color="#0072B2")
    left.set(xlabel="minutes", ylabel="loss", title="training loss")
    for name, colour in (("ap50", "#D55E00"), ("ap", "#009E73")):
        right.plot(
            [line["minutes"] for line in validated],
            [line[name] for line in validated],
            "o-",
            color=colour,
            label=name.upper(),
        )
    right.set(xlabel="minutes", ylim=(0, 1), title="average precision on validation pictures")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=130)


def figure(output: str, *sources: str) -> None:
    """The same figures, each `FIGURE_WIDTH` wide."""
    shown = []
    for source in sources:
        with Image.open(source) as picture:
            height = round(picture.height * FIGURE_WIDTH / picture.width)
            shown.append(picture.convert("RGB").resize((FIGURE_WIDTH, height), Image.Resampling.LANCZOS))
    step = FIGURE_WIDTH + 4 * GAP
    page = Image.new("RGB", (len(shown) * step - 4 * GAP, max(picture.height for picture in shown)), "white")
    for index, picture in enumerate(shown):
        page.paste(picture, (index * step, 0))
    page.save(output, quality=85, method=6)


def argument(output: str, *sources: str) -> None:
    """AP50 on the validation pictures against epochs, a line for each arm: the mean of its seeds."""
    arms: dict[str, list[list[float]]] = {}
    for path in sources:
        arm = json.loads(Path(path).read_text(encoding="utf-8"))
        arms.setdefault(arm["arm"], []).append([line["ap50"] for line in arm["epochs"]])
    drawing = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = drawing.subplots()
    epochs = range(1, 1 + max(len(curve) for curves in arms.values() for curve in curves))
    for (name, curves), colour, style in zip(arms.items(), cycle(CHART_COLOURS), cycle(LINE_STYLES), strict=False):
        means = [mean(values) for values in zip(*curves, strict=True)]
        axes.plot(epochs[: len(means)], means, "o", ls=style, color=colour, label=name)
    axes.set(xlabel="epochs of 4,000 pictures", ylabel="AP50", ylim=(0, 1), xticks=epochs)
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    file = BytesIO()
    drawing.savefig(file, dpi=150)
    with Image.open(file) as picture:
        picture.convert("RGB").save(output, quality=90, method=6)


if __name__ == "__main__":
    verbs = {"sheet": sheet, "curves": curves, "figure": figure, "argument": argument}
    verbs[sys.argv[1]](*sys.argv[2:])
