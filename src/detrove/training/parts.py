"""A batch in parts that are computed one after the other, where the device has no room for the whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from detrove.data.batching import canvas_of
from detrove.structures import ImageBatch, Targets


def parts_of(images: ImageBatch, targets: list[Targets], number: int) -> Iterator[tuple[ImageBatch, list[Targets]]]:
    """`number` parts of nearly as many pictures, in order, each padded no further than its own largest picture needs.

    Sides stay those of a canvas, as far as the batch is so large. `number` is at most the number of pictures.
    """
    if number == 1:
        yield images, targets
        return
    bounds = [len(targets) * part // number for part in range(number + 1)]
    for first, end in pairwise(bounds):
        sizes = images.sizes[first:end]
        height, width = canvas_of(*sizes.amax(dim=0).tolist())
        pixels = images.pixels[first:end, :, :height, :width]
        yield ImageBatch(pixels, images.padding_mask[first:end, :height, :width], sizes), targets[first:end]
