"""A contact sheet: training pictures as the model sees them, with their boxes and names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from detrove.boxes import cxcywh_to_xyxy
from detrove.data.dataset import DetectionDataset
from detrove.data.originals import DatasetOriginals
from detrove.data.transforms import NO_AUGMENTATION, Augmentation, training_sample
from detrove.drawing import Mark, class_colour, draw_marks, to_rectangle
from detrove.structures import Preprocessing, Targets

GROUND, INK = (32, 32, 36), (220, 220, 220)
GAP, CAPTION, CAPTION_FONT = 10, 22, 13
SMALLEST_TILE = 320
"""Pixels of a tile's longer side; below that, tags cover what they name."""
WIDTH_TO_HEIGHT = 1.5
CROWDED = 12
"""Where a tile has more boxes than this, only the largest of each class is named: tags would hide the picture."""


def contact_sheet(
    dataset: DetectionDataset,
    preprocessing: Preprocessing,
    augmentation: Augmentation = NO_AUGMENTATION,
    count: int = 12,
    seed: int = 0,
) -> Image.Image:
    """`count` random pictures of a data set after augmentation and preprocessing, with their boxes, on one picture.

    Each is what the model would be given, un-normalised, and shown in its true pixels or enlarged to
    `SMALLEST_TILE`. The caption tells the file, the size that the model gets, and the number of boxes. Raises
    `InputError` where a picture cannot be read.
    """
    originals = DatasetOriginals(dataset)
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count].tolist()
    tiles = []
    for index in chosen:
        generator = np.random.default_rng([seed, 0, index])
        pixels, targets = training_sample(originals[index], preprocessing, augmentation, generator, originals)
        height, width = pixels.shape[1:]
        boxes = f"{len(targets)} box" + ("" if len(targets) == 1 else "es")
        caption = f"{dataset.records[index].path.name}  {width}x{height}  {boxes}"
        tiles.append((_drawn(_picture(pixels, preprocessing), targets, dataset.label_map.names), caption))
    return _arranged(tiles)


def _picture(pixels: torch.Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The normalised pixels (3, h, w) as a picture again."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    values = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def _drawn(picture: Image.Image, targets: Targets, names: list[str]) -> Image.Image:
    boxes = cxcywh_to_xyxy(targets.boxes) * torch.tensor([*picture.size, *picture.size])
    # Large objects first: the tags and lines of small ones lie on top.
    order = (targets.boxes[:, 2] * targets.boxes[:, 3]).argsort(descending=True)
    marks, named = [], set()
    for box, label in zip(boxes[order].tolist(), targets.labels[order].tolist(), strict=True):
        hidden = len(targets) > CROWDED and label in named
        named.add(label)
        # Solid: no detections are shown here that dashes would tell them from, and colours are better seen.
        marks.append(Mark(to_rectangle(box), class_colour(label), "" if hidden else names[label]))
    return draw_marks(picture, marks, max(SMALLEST_TILE, *picture.size))


def _arranged(tiles: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Tiles in rows, each in a cell of the largest one's size, with its caption below."""
    width, height = (max((tile.size[axis] for tile, _ in tiles), default=1) for axis in (0, 1))
    cell = (width + GAP, height + CAPTION + GAP)
    columns = max(1, min(len(tiles), round(math.sqrt(len(tiles) * WIDTH_TO_HEIGHT * cell[1] / cell[0]))))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), GROUND)
    drawing, font = ImageDraw.Draw(sheet), ImageFont.load_default(CAPTION_FONT)
    for place, (tile, caption) in enumerate(tiles):
        left, top = GAP + place % columns * cell[0], GAP + place // columns * cell[1]
        sheet.paste(tile, (left + (width - tile.width) // 2, top + (height - tile.height) // 2))
        while drawing.textlength(caption, font) > width and len(caption) > 4:
            caption = "…" + caption[2:]
        drawing.text((left + width / 2, top + height + CAPTION / 2), caption, fill=INK, font=font, anchor="mm")
    return sheet
