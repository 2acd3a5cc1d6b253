"""What the sections of a study page share: figures that are also files, tables of heads and levels, names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from detrove.checkpoints.files import write_atomically
from detrove.reporting import Bar, Number, Page
from detrove.study import figures
from detrove.study.qkva_grid import HeadNumbers, QKVAGrid, place_share
from detrove.study.record import place_of
from detrove.study.sampling_points import LevelNumbers

PICTURE_LONGER = 760
"""Pixels of a drawn picture that is no map."""


class Report:
    """A page, the figures that are also written beside it, and the numbers."""

    def __init__(self, title: str, lead: str) -> None:
        self.page = Page(title, lead)
        self.files: dict[str, bytes] = {}
        self.numbers: dict[str, Any] = {}

    def figures(self, *drawn: tuple[str, Figure | Image.Image, str]) -> None:
        """Figures side by side: name of the file, figure, caption."""
        pictures = []
        for name, figure, caption in drawn:
            picture = figures.as_picture(figure) if isinstance(figure, Figure) else figure
            file = BytesIO()
            picture.save(file, "PNG", optimize=True)
            self.files[f"{name}.png"] = file.getvalue()
            pictures.append((picture, caption))
        self.page.pictures(pictures)

    def write(self, folder: Path) -> None:
        """The page last: where it stands, its figures do."""
        for name, content in self.files.items():
            write_atomically(folder / name, content)
        numbers = json.dumps(self.numbers, indent=1, ensure_ascii=False)
        write_atomically(folder / "study.json", numbers.encode())
        write_atomically(folder / "report.html", self.page.to_html().encode())


PROJECTIONS = {
    "query": "Q, what each cell asks for.",
    "key": "K, what each cell answers to; a cell of great length attracts or repels strongly.",
    "value": "V, what each cell hands over.",
}
ABOUT_COLOURS = (
    "Colour: the three leading principal components of the head's vectors (lightness, blue to yellow, green to red); "
    "cells of like colour have like vectors, and the number is the share of the variance that the colours show. Below: "
    "the vectors' length, from its least to its most. Look for the picture's objects in the colours: where they stand "
    "out, the head tells them apart; smooth ramps tell where a cell is."
)
FEW_CELLS = 24
"""On a map of fewer, a ramp explains any vectors."""


def projections(grid: QKVAGrid, key: str, shown: Sequence[str] = tuple(PROJECTIONS)) -> list[tuple[str, Figure, str]]:
    """Those of Q, K and V that are `shown` as images, with their captions, for `Report.figures`."""
    drawn = []
    for which in shown:
        caption = f"{PROJECTIONS[which]} {'Drawn as the figure before.' if drawn else ABOUT_COLOURS}"
        if grid.shape[0] * grid.shape[1] >= FEW_CELLS:
            caption += f" Here a smooth ramp explains {place_share(getattr(grid, which)):.0%} of all heads' vectors."
        drawn.append((f"{key}_{which}", figures.projections_figure(grid, which), caption))
    return drawn


def add_head_table(report: Report, key: str, numbers: HeadNumbers, since: str) -> None:
    """How wide and how far each head looks; `since` says in words from where distances count."""
    rows = [
        [f"head {head}", Bar(f"{entropy:.2f}", float(entropy)), float(distance)]
        for head, (entropy, distance) in enumerate(zip(numbers.entropy, numbers.distance, strict=True))
    ]
    caption = (
        "Spread: 0 looks at one cell, 1 at all alike (entropy by its largest value). Distance: how far attention "
        f"lies {since}, in longer sides of the picture; looking at all cells alike would give "
        f"{numbers.even_distance:.2f}."
    )
    if len(numbers.entropy) > 1:
        caption += (
            f" How differently the heads look: {numbers.disagreement:.2f} (0: all alike, 1: never at the same cell)."
        )
    report.page.table(["", "spread", "distance"], rows, caption)
    report.numbers[key] = {
        "entropy": [round(float(value), 4) for value in numbers.entropy],
        "distance": [round(float(value), 4) for value in numbers.distance],
        "even_distance": round(numbers.even_distance, 4),
        "disagreement": round(numbers.disagreement, 4),
        "overlap": np.round(numbers.overlap, 4).tolist(),
    }


def add_level_table(report: Report, key: str, levels: Sequence[LevelNumbers], whose: str) -> None:
    """How much each level is sampled, and how far from the reference; `whose` says in words what is averaged."""
    boxes = levels[0].in_box is not None
    header = ["level", "attention", "offset in cells", "offset in the picture", "outside"]
    rows = [
        [
            cells_of(level),
            Bar(f"{level.weight:.0%}", level.weight),
            Number(f"{level.offset_cells:.2f}", level.offset_cells),
            Number(f"{level.offset:.3f}", level.offset),
            Number(f"{level.outside:.0%}", level.outside),
            *([Number(f"{level.in_box:.0%}", level.in_box)] if level.in_box is not None else []),
        ]
        for level in levels
    ]
    report.page.table(
        [*header, "inside the box"] if boxes else header,
        rows,
        f"Averages over {whose}, by attention: how much each level is looked at, how far its points lie from the "
        "reference, in its cells and in longer sides of the picture, and the share that lies outside the picture"
        + (", and inside the reference box." if boxes else "."),
    )
    report.numbers[key] = [
        {
            "cells": list(level.shape),
            "attention": round(level.weight, 4),
            "offset_cells": round(level.offset_cells, 4),
            "offset": round(level.offset, 4),
            "outside": round(level.outside, 4),
            "in_box": None if level.in_box is None else round(level.in_box, 4),
        }
        for level in levels
    ]


def cells_of(level: LevelNumbers) -> str:
    """A level by its cells, "30×40"."""
    return f"{level.shape[0]}×{level.shape[1]}"


def place_words(name: str) -> str:
    """A block's layer in words, "layer 2 of the decoder"."""
    place = place_of(name)
    stack = "" if place.stack is None else f", stack {place.stack}"
    return f"layer {place.layer} of the {place.part}{stack}"
