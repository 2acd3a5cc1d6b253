"""Makes the README's pictures from run folders.

python docs/make_pictures.py sheet RUN OUTPUT.jpg PICTURE…    what a detector sees, side by side
python docs/make_pictures.py curves RUN OUTPUT.png            how it learned, from metrics.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import detrove
from detrove.drawing import draw_detections
from detrove.pictures import read_picture

HEIGHT, COLUMNS, GAP = 240, 4, 6


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


if __name__ == "__main__":
    {"sheet": sheet, "curves": curves}[sys.argv[1]](*sys.argv[2:])
