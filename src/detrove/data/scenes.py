"""The embedded data set `scenes`: generated pictures of five kinds of objects among clutter, as ordinary COCO JSON.

Kinds differ by shape and by the pattern on their surface, never by colour: a shaded ball, a target of rings, a striped
crate, a dotted die, an outlined star, each a dark and a light shade of colours drawn anew. Objects, clutter and
background take their colours from the same few per picture, edges are soft; sizes run from 14 to 96 pixels, evenly on
a logarithmic scale; objects overlap, but at least half of each is to be seen. Distractors are shapes without a pattern
and belong to no kind. A box is the tight extent of the object's whole shape, clipped to the picture.

Every picture comes from its own seed: the same version makes the same pictures, whatever is made besides.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrove.data import shapes
from detrove.data.shapes import Array, Shape
from detrove.errors import InputError

VERSION = 2
"""Changes whenever the pictures do: results on different versions cannot be compared."""


@dataclass(frozen=True)
class Kind:
    """A kind of object: its shape, and how light its surface is, from 0 to 1, for coordinates and a period."""

    shape: Shape
    pattern: Callable[[Array, Array, float], Array]


CLASSES: dict[str, Kind] = {
    "ball": Kind(shapes.disc, shapes.highlight),
    "target": Kind(shapes.disc, shapes.rings),
    "crate": Kind(shapes.square, shapes.bands),
    "die": Kind(shapes.square, shapes.dots),
    "star": Kind(shapes.star, shapes.outlined_star),
}
DISTRACTORS: tuple[Shape, ...] = (
    shapes.triangle,
    shapes.cross,
    shapes.ring,
    shapes.bar,
    shapes.angle_iron,
    shapes.crescent,
)
SIZES = {"train": 2000, "val": 150, "test": 150}

SMALLEST, LARGEST = 14.0, 96.0
LEAST_VISIBLE, LEAST_IN_PICTURE = 0.5, 0.6
EMPTY_SHARE = 0.03
LEAST_CONTRAST = 40.0
"""The distance in RGB (0..255 each) that half of an object keeps from what is under it, most of a distractor."""
FINEST, COARSEST = 4.0, 10.0
"""Pixels that a pattern takes to repeat; between them, a fifth of the object's size."""

_ATTEMPTS = 30


@dataclass
class Scene:
    """A picture (H, W, 3) uint8, its boxes (N, 4) xyxy in pixels, and the names of their classes."""

    pixels: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.int64]
    names: list[str]


def make_scenes(
    folder: str | Path,
    sizes: dict[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `folder` and return it; one that is already there, complete and of this version, is kept.

    `sizes` is split -> number of pictures (train 2000, val 150, test 150); `progress` is called with the number of
    pictures made and of all. Raises `InputError` where `folder` holds anything else.
    """
    folder, sizes = Path(folder), sizes or SIZES
    info = {"description": "detrove scenes", "version": VERSION, "sizes": sizes}
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        if _info(folder, sizes) == info:
            return folder
        raise InputError(f"{folder}: exists and is not this data set; name another folder or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(unfinished, sizes, info, progress)
        if folder.exists():
            folder.rmdir()
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def scene(split: str, number: int) -> Scene:
    """Picture `number` of a split ("train", "val" or "test")."""
    generator = np.random.default_rng([VERSION, list(SIZES).index(split), number])
    return _Painter(generator).paint()


def _info(folder: Path, sizes: dict[str, int]) -> Any:
    """What the last written annotation file says of the data set."""
    try:
        return json.loads((folder / "annotations" / f"instances_{list(sizes)[-1]}.json").read_text())["info"]
    except (OSError, ValueError, KeyError):
        return None


def _write(
    folder: Path, sizes: dict[str, int], info: dict[str, Any], progress: Callable[[int, int], None] | None
) -> None:
    (folder / "annotations").mkdir()
    category_ids = {name: number for number, name in enumerate(CLASSES, start=1)}
    made = 0
    for split, size in sizes.items():
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(size):
            painted = scene(split, number)
            file_name = f"{number:06d}.jpg"
            Image.fromarray(painted.pixels).save(folder / split / file_name, quality=95)
            height, width = painted.pixels.shape[:2]
            images.append({"id": number + 1, "file_name": file_name, "width": width, "height": height})
            for name, (x1, y1, x2, y2) in zip(painted.names, painted.boxes_xyxy.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category_ids[name],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
            made += 1
            if progress:
                progress(made, sum(sizes.values()))
        categories = [{"id": id, "name": name} for name, id in category_ids.items()]
        content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@dataclass
class _View:
    """A window of the picture (rows, columns) and its coordinates as a shape of some place, size and turn sees them."""

    window: tuple[slice, slice]
    x: Array
    y: Array


@dataclass
class _Placed:
    """An object: its part still to be seen (H, W) bool, its area with what the picture's edge cuts off, its box."""

    name: str
    visible: NDArray[np.bool_]
    area: float
    box_xyxy: tuple[int, int, int, int]


class _Painter:
    """Paints one scene, from the background to the front. All chance comes from one generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.height, self.width = self._random_size()
        self.y, self.x = np.mgrid[0.5 : self.height, 0.5 : self.width]
        self.palette = self._random_palette()
        self.canvas = self._background()
        self.placed: list[_Placed] = []

    def paint(self) -> Scene:
        """Background, clutter, distractors, objects, and the grain of a camera."""
        self._add_clutter()
        num_objects = 0 if self._chance(EMPTY_SHARE) else int(self.generator.integers(1, 9))
        plan = ["object"] * num_objects + ["distractor"] * int(self.generator.integers(0, 5))
        for kind in self.generator.permutation(plan).tolist():
            self._add_filled(is_object=kind == "object")
        self._add_grain()
        boxes = np.array([placed.box_xyxy for placed in self.placed], dtype=np.int64).reshape(-1, 4)
        pixels = np.clip(np.round(self.canvas), 0, 255).astype(np.uint8)
        return Scene(pixels, boxes, [placed.name for placed in self.placed])

    def _chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.generator.random())

    def _choice(self, items: Sequence[Any]) -> Any:
        return items[int(self.generator.integers(len(items)))]

    def _random_size(self) -> tuple[int, int]:
        longer = int(self.generator.integers(144, 177))
        shorter = round(longer * self._choice((0.67, 0.75, 0.75, 0.75, 0.85, 1.0)))
        return (longer, shorter) if self._chance(0.3) else (shorter, longer)

    def _random_palette(self) -> list[Array]:
        """Six RGB colours, from grey to vivid, that everything in the picture is painted with."""
        grey = 30 + 195 * self.generator.random((6, 1))
        hue = 255 * self.generator.random((6, 3))
        vividness = 0.85 * self.generator.random((6, 1))
        return list(grey * (1 - vividness) + hue * vividness)

    def _background(self) -> Array:
        angle, diagonal = self._uniform(0, 2 * math.pi), math.hypot(self.width, self.height)
        along = (
            0.5
            + ((self.x - self.width / 2) * math.cos(angle) + (self.y - self.height / 2) * math.sin(angle)) / diagonal
        )
        first, second, third = (self._choice(self.palette) for _ in range(3))
        canvas = first + (second - first) * (along * self._uniform(0.2, 0.9))[..., None]
        noise = shapes.fractal_noise(self.height, self.width, self._uniform(8, 64), self.generator)
        sharpened = np.clip((noise - 0.5) * self._uniform(1, 4) + 0.5, 0, 1)
        return canvas + (third - canvas) * (sharpened * self._uniform(0.1, 0.7))[..., None]

    def _look(
        self, centre: tuple[float, float], radius: float, angle: float, stretch: float, margin: float = 3.0
    ) -> _View:
        """The part of the picture within 1.3 radii and `margin` pixels of a place."""
        reach = 1.3 * radius + margin
        columns, rows = (
            slice(int(np.clip(middle - reach, 0, length)), int(np.clip(math.ceil(middle + reach), 0, length)))
            for middle, length in zip(centre, (self.width, self.height), strict=True)
        )
        dx, dy = self.x[rows, columns] - centre[0], self.y[rows, columns] - centre[1]
        cosine, sine = math.cos(angle) / radius, math.sin(angle) / radius
        return _View((rows, columns), (dx * cosine + dy * sine) * stretch, (dy * cosine - dx * sine) / stretch)

    def _blend(self, view: _View, colour: Array, alpha: Array) -> None:
        part = self.canvas[view.window]
        part += (colour - part) * alpha[..., None]

    def _random_centre(self) -> tuple[float, float]:
        return self._uniform(0, self.width), self._uniform(0, self.height)

    def _add_clutter(self) -> None:
        """Strokes, arcs, soft blobs and small fragments, thin or faint enough to be no object."""
        for _ in range(int(self.generator.integers(3, 15))):
            kind = self._choice(("line", "line", "arc", "blob", "fragment"))
            centre, colour, angle = self._random_centre(), self._choice(self.palette), self._uniform(0, 2 * math.pi)
            if kind == "blob":
                view = self._look(centre, self._uniform(10, 45), angle, self._uniform(0.7, 1.4))
                alpha = self._uniform(0.2, 0.6) * np.clip(1 - view.x**2 - view.y**2, 0, 1) ** 2
            else:
                shape = {"line": shapes.line, "arc": shapes.arc, "fragment": self._choice(DISTRACTORS)}[kind]
                radius = self._uniform(2, 4.5) if kind == "fragment" else self._uniform(10, 80)
                thickening = 0.0 if kind == "fragment" else self._uniform(0, 1.2)
                view = self._look(centre, radius, angle, 1.0)
                distance = shape(view.x, view.y) * radius
                alpha = self._uniform(0.5, 1) * np.clip(0.5 + thickening - distance, 0, 1)
            self._blend(view, colour, alpha)

    def _add_filled(self, is_object: bool) -> None:
        """An object, or a distractor painted like one, where it leaves at least half of every object to be seen."""
        name = self._choice(list(CLASSES)) if is_object else ""
        shape = CLASSES[name].shape if is_object else self._choice(DISTRACTORS)
        largest = min(LARGEST, 0.7 * min(self.height, self.width))
        size = SMALLEST * (largest / SMALLEST) ** float(self.generator.random())
        angle, stretch = self._uniform(0, 2 * math.pi), math.exp(self._uniform(-0.15, 0.15))
        area = _area_of_unit(shape) * (size / 2) ** 2
        for _ in range(_ATTEMPTS):
            view = self._look(self._centre_for(size), size / 2, angle, stretch)
            distance = shape(view.x, view.y) * size / 2
            outline = np.zeros((self.height, self.width), dtype=bool)
            outline[view.window] = distance <= 0
            if outline.sum() < (LEAST_IN_PICTURE * area if is_object else 1) or self._hides_too_much(outline):
                continue
            fill = self._fill_with_contrast(view, distance <= 0, name, size)
            if fill is None:
                continue
            self._blend(view, fill, np.clip(0.5 - distance / self._uniform(1, 2), 0, 1))
            for placed in self.placed:
                placed.visible &= ~outline
            if is_object:
                self.placed.append(_Placed(name, outline, area, _extent(outline)))
            return

    def _hides_too_much(self, outline: NDArray[np.bool_]) -> bool:
        return any((placed.visible & ~outline).sum() < LEAST_VISIBLE * placed.area for placed in self.placed)

    def _centre_for(self, size: float) -> tuple[float, float]:
        """Anywhere, or, for a third of the objects, close to one that is there."""
        if self.placed and self._chance(0.35):
            x1, y1, x2, y2 = self._choice(self.placed).box_xyxy
            reach = (max(x2 - x1, y2 - y1) + size) / 2
            angle, distance = self._uniform(0, 2 * math.pi), reach * self._uniform(0.5, 1.0)
            return (x1 + x2) / 2 + distance * math.cos(angle), (y1 + y2) / 2 + distance * math.sin(angle)
        return self._random_centre()

    def _fill_with_contrast(self, view: _View, inside: NDArray[np.bool_], name: str, size: float) -> Array | None:
        """(h, w, 3): a surface that stands out from what is under it; None where none is found. No name: no pattern."""
        under = self.canvas[view.window][inside]
        for _ in range(6):
            fill = self._patterned_fill(view, name, size) if name else self._plain_fill(view)
            contrast = np.sqrt(((fill[inside] - under) ** 2).sum(axis=1))
            # A pattern has a light and a dark half; a plain fill may not dissolve on one side.
            if np.percentile(contrast, 50 if name else 15) >= LEAST_CONTRAST:
                return fill
        return None

    def _patterned_fill(self, view: _View, name: str, size: float) -> Array:
        """The kind's pattern between a dark and a light shade of two colours of the palette."""
        dark = self._choice(self.palette) * self._uniform(0.15, 0.45)
        light = 255 - (255 - self._choice(self.palette)) * self._uniform(0.15, 0.45)
        period = float(np.clip(size / 5, FINEST, COARSEST)) / (size / 2)
        return dark + (light - dark) * CLASSES[name].pattern(view.x, view.y, period)[..., None]

    def _plain_fill(self, view: _View) -> Array:
        height, width = view.x.shape
        first, second = self._choice(self.palette), self._choice(self.palette)
        noise = shapes.value_noise(height, width, self._uniform(3, 24), self.generator)
        fill = first + (second - first) * (noise * self._uniform(0, 0.4))[..., None]
        return fill + (view.x * self._uniform(0, 25))[..., None]

    def _add_grain(self) -> None:
        grain = self.generator.random((self.height, self.width, 3)) + self.generator.random(
            (self.height, self.width, 3)
        )
        self.canvas += (grain - 1) * self._uniform(3, 14)


@functools.cache
def _area_of_unit(shape: Shape) -> float:
    """The area of a shape of radius 1 (stretching one way and squeezing the other keeps it)."""
    steps = (np.arange(256) + 0.5) / 128 - 1
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return float((shape(x, y) <= 0).mean()) * 4


def _extent(outline: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box around the True pixels, xyxy, its right and bottom edge behind the last of them."""
    columns, rows = np.flatnonzero(outline.any(axis=0)), np.flatnonzero(outline.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
