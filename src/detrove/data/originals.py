"""The pictures of a data set as `Original`s: decoded when looked at, no larger than needed, or taken from the cache."""

from __future__ import annotations

from functools import partial

import numpy as np

from detrove.data.cache import PictureCache
from detrove.data.dataset import DetectionDataset, Record, read_as_annotated, targets_of
from detrove.data.transforms import Augmentation, scaled
from detrove.data.views import Decoded, Original, to_pixels, without_crowd
from detrove.data.windows import SMALLEST_CROP
from detrove.pictures import read_jpeg
from detrove.structures import Preprocessing


class DatasetOriginals:
    """Every picture of a data set by its index, with `cache` where there is one."""

    def __init__(self, dataset: DetectionDataset, cache: PictureCache | None = None) -> None:
        self.dataset = dataset
        self.cache = cache

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Original:
        record = self.dataset.records[index]
        read = partial(decode, record) if self.cache is None else partial(_decode_cached, record, self.cache, index)
        return Original((record.width, record.height), without_crowd(targets_of(record)), read)


def decode(record: Record, scale: float) -> Decoded:
    """A picture as its annotator saw it, at `scale` times its size or more; see `detrove.pictures.read_jpeg`.

    Raises `InputError` where it cannot be read, or has not the annotated size.
    """
    pixels = read_jpeg(record.path, (record.width, record.height), scale)
    if pixels is None:
        return Decoded(to_pixels(read_as_annotated(record)))
    reduction = round(record.width / pixels.shape[2])
    return Decoded(pixels, (1 / reduction, 1 / reduction))


def _decode_cached(record: Record, cache: PictureCache, index: int, scale: float) -> Decoded:
    if not cache.keeps(index):
        return decode(record, scale)
    kept = cache.get(index)
    if kept is None:
        kept = cache.put(index, decode(record, 1.0).pixels)
        assert kept is not None
    return kept


def make_cache(
    dataset: DetectionDataset, preprocessing: Preprocessing, augmentation: Augmentation, num_bytes: int
) -> PictureCache:
    """A cache of this data set's pictures at the largest size that the augmentation ever looks at them."""
    largest = scaled(preprocessing, augmentation.scale[1])
    closer = 1 / SMALLEST_CROP if augmentation.crop or augmentation.mosaic else 1.0
    scales = [
        closer * max(largest.target_size(record.height, record.width)) / max(record.height, record.width)
        for record in dataset.records
    ]
    return PictureCache(dataset, num_bytes, np.array(scales))
