"""Boxes, labels and heat maps onto pictures.

Colours are those of Okabe and Ito, which people with any form of colour blindness can tell apart; truth and detection
differ by line style as well, so that colour is never the only sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detrove.structures import Detections

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

BLUE: Colour = (0, 114, 178)
ORANGE: Colour = (230, 159, 0)
GREEN: Colour = (0, 158, 115)
VERMILION: Colour = (213, 94, 0)
PURPLE: Colour = (204, 121, 167)
SKY: Colour = (86, 180, 233)
YELLOW: Colour = (240, 228, 66)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
PALETTE = (ORANGE, SKY, GREEN, PURPLE, YELLOW, VERMILION, BLUE)
"""Okabe and Ito 2008, "Color Universal Design", without black."""

SMALLEST_FONT = 11
"""Pixels; below this the font that Pillow carries cannot be read."""


@dataclass(frozen=True)
class Mark:
    """One box to draw: `box_xyxy` in pixels, and how; the text of its tag may be empty."""

    box_xyxy: Rectangle
    colour: Colour
    text: str = ""
    dashed: bool = False


def class_colour(slot: int) -> Colour:
    """The colour of a class slot: the palette, then lighter and darker turns of it."""
    colour, turn = PALETTE[slot % len(PALETTE)], slot // len(PALETTE) % 3
    if turn == 0:
        return colour
    towards = 255 if turn == 1 else 0
    red, green, blue = (round(value + (towards - value) * 0.4) for value in colour)
    return red, green, blue


def draw_detections(picture: Image.Image, detections: Detections, longer: int | None = None) -> Image.Image:
    """A copy of the picture with every detection as a solid box in its class's colour, tagged with name and score.

    With `longer`, the copy is resized so that its longer side has that many pixels; boxes follow.
    """
    marks = [
        Mark(to_rectangle(box), class_colour(label), f"{name} {score:.2f}")
        for box, label, name, score in zip(
            detections.boxes.tolist(),
            detections.labels.tolist(),
            detections.names,
            detections.scores.tolist(),
            strict=True,
        )
    ]
    # The surest detection is drawn last: its box and tag lie on top.
    return draw_marks(picture, marks[::-1], longer)


def draw_truth(
    picture: Image.Image,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    longer: int | None = None,
) -> Image.Image:
    """A copy of the picture with true boxes (N, 4) in pixels, dashed, in the colour of their class slots.

    `names` are the names of the slots; `longer` as in `draw_detections`.
    """
    marks = [
        Mark(to_rectangle(box), class_colour(label), names[label], dashed=True)
        for box, label in zip(boxes_xyxy.tolist(), labels, strict=True)
    ]
    return draw_marks(picture, marks, longer)


def draw_marks(picture: Image.Image, marks: Sequence[Mark], longer: int | None = None) -> Image.Image:
    """A copy of the picture with the marks drawn in their order, later ones above earlier ones.

    Lines and letters grow with the picture. Tags stay inside it, and out of each other's way where there is room; a tag
    too long for the picture is shortened.
    """
    canvas, scale = _resized(picture.convert("RGB"), longer)
    drawing = ImageDraw.Draw(canvas)
    font_size = max(SMALLEST_FONT, round(min(max(canvas.size) / 40, min(canvas.size) / 10)))
    line_width = max(1, round(max(canvas.size) / 320))
    for mark in marks:
        _draw_box(drawing, _scaled(mark.box_xyxy, scale), mark, line_width)
    placed: list[Rectangle] = []
    # The last mark is the most important one, so its tag is placed first and drawn last.
    tags = []
    for mark in reversed(marks):
        text = _shortened(mark.text, _font(font_size), canvas.width - 6)
        if text:
            tag = _place_tag(_scaled(mark.box_xyxy, scale), _tag_size(text, font_size), canvas.size, placed)
            placed.append(tag)
            tags.append((tag, text, mark.colour))
    for tag, text, colour in reversed(tags):
        drawing.rectangle(tag, fill=colour)
        drawing.text(
            (tag[0] + 3, (tag[1] + tag[3]) / 2), text, fill=_ink_on(colour), font=_font(font_size), anchor="lm"
        )
    return canvas


def draw_heat_map(picture: Image.Image, values: np.ndarray, strength: float = 0.65) -> Image.Image:
    """A copy of the picture, greyed, under a heat map of the non-negative `values` (h, w), stretched over it.

    The largest value is bright yellow and as opaque as `strength` in [0, 1]; zero leaves the picture. The colours rise
    in lightness (matplotlib's "inferno"), so that the map also reads in grey.
    """
    from matplotlib import colormaps

    values = np.asarray(values, dtype=np.float32)
    relative = np.clip(values / max(float(values.max(initial=0.0)), np.finfo(np.float32).tiny), 0, 1)
    stretched = Image.fromarray(relative).resize(picture.size, Image.Resampling.BILINEAR)
    heat = np.clip(np.asarray(stretched), 0, 1)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    opacity = (strength * np.sqrt(heat))[..., None]
    blended = grey * (1 - opacity) + colormaps["inferno"](heat)[..., :3] * 255 * opacity
    return Image.fromarray(np.clip(np.round(blended), 0, 255).astype(np.uint8))


def draw_signed_map(
    picture: Image.Image, values: np.ndarray, limit: float | None = None, strength: float = 0.85
) -> Image.Image:
    """A copy of the picture, greyed, under `values` (h, w) of both signs: blue below zero, orange above.

    `limit` is the size from which on the colour is full, so that several maps can share a scale; by default the largest
    of this one. Zero leaves the picture, half of the limit is half as strong. Blue and orange differ for everyone, and
    sign needs no lightness.
    """
    values = np.asarray(values, dtype=np.float32)
    full = max(float(np.abs(values).max(initial=0.0)) if limit is None else limit, float(np.finfo(np.float32).tiny))
    relative = Image.fromarray(np.clip(values / full, -1, 1)).resize(picture.size, Image.Resampling.BILINEAR)
    signed = np.clip(np.asarray(relative), -1, 1)[..., None]
    grey = 90 + np.asarray(picture.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2) * 0.5
    colour = np.where(signed < 0, np.asarray(BLUE), np.asarray(ORANGE)).astype(np.float32)
    opacity = strength * np.abs(signed)
    blended = grey * (1 - opacity) + colour * opacity
    return Image.fromarray(np.clip(np.round(blended), 0, 255).astype(np.uint8))


def draw_cross(picture: Image.Image, x: float, y: float, colour: Colour = SKY) -> Image.Image:
    """A copy of the picture with a ring and a cross around the pixel x, y, on dark lines that any ground shows."""
    canvas = picture.convert("RGB")
    drawing = ImageDraw.Draw(canvas)
    reach = max(5, round(max(canvas.size) / 40))
    width = max(1, round(max(canvas.size) / 250))
    for ink, extra in ((BLACK, 2), (colour, 0)):
        drawing.ellipse((x - reach, y - reach, x + reach, y + reach), outline=ink, width=width + extra)
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            ends = (x + dx * reach * 0.5, y + dy * reach * 0.5, x + dx * reach * 1.6, y + dy * reach * 1.6)
            drawing.line(ends, fill=ink, width=width + extra)
    return canvas


def to_rectangle(box: Sequence[float]) -> Rectangle:
    """Four numbers as a typed rectangle."""
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2


def _resized(picture: Image.Image, longer: int | None) -> tuple[Image.Image, float]:
    """A copy whose longer side has so many pixels, and the factor."""
    if longer is None:
        return picture.copy(), 1.0
    scale = longer / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS), scale


def _scaled(box: Rectangle, scale: float) -> Rectangle:
    return to_rectangle([value * scale for value in box])


def _draw_box(drawing: ImageDraw.ImageDraw, box: Rectangle, mark: Mark, width: int) -> None:
    """A line in the mark's colour between two dark hairlines, which keep it visible on any ground."""
    x1, y1, x2, y2 = min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])
    drawing.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=BLACK, width=width + 2)
    if not mark.dashed:
        drawing.rectangle((x1, y1, x2, y2), outline=mark.colour, width=width)
        return
    dash = max(4, 4 * width)
    for start in np.arange(x1, x2, 2 * dash):
        for y in (y1, y2 - width + 1):
            drawing.rectangle((start, y, min(start + dash, x2), y + (width - 1)), fill=mark.colour)
    for start in np.arange(y1, y2, 2 * dash):
        for x in (x1, x2 - width + 1):
            drawing.rectangle((x, start, x + (width - 1), min(start + dash, y2)), fill=mark.colour)


def _place_tag(
    box: Rectangle, size: tuple[float, float], canvas: tuple[int, int], placed: Sequence[Rectangle]
) -> Rectangle:
    """Where a tag of (width, height) covers the least of the tags already placed, always inside the canvas.

    Tried in this order: above the box, inside its top, below it, inside its bottom, each at the left and the right.
    """
    width, height = size
    x1, y1, x2, y2 = box
    places = []
    for y in (y1 - height, y1, y2, y2 - height):
        for x in (x1, x2 - width):
            left = min(max(x, 0.0), max(canvas[0] - 1 - width, 0.0))
            top = min(max(y, 0.0), max(canvas[1] - 1 - height, 0.0))
            places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in placed))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, or as much of its start as fits, with an ellipsis; "" where not even three letters fit."""
    if font.getlength(text) <= room:
        return text
    for length in range(len(text) - 1, 2, -1):
        if font.getlength(text[:length] + "…") <= room:
            return text[:length] + "…"
    return ""


def _tag_size(text: str, font_size: int) -> tuple[float, float]:
    return _font(font_size).getlength(text) + 6, font_size + 4


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _ink_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more on this colour (relative luminance of WCAG 2)."""
    linear = [
        value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # At 0.179 both contrasts are equal: (L + 0.05) / 0.05 = 1.05 / (L + 0.05).
    return BLACK if luminance > 0.179 else WHITE
