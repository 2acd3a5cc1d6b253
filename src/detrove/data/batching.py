"""Batches of samples to train on, in a reproducible random order."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detrove.data.cache import PictureCache
from detrove.data.dataset import DetectionDataset, Sample
from detrove.data.originals import DatasetOriginals, make_cache
from detrove.data.transforms import Augmentation, Terms, evaluation_sample, varied
from detrove.data.views import without_crowd
from detrove.errors import InputError
from detrove.structures import ImageBatch, Preprocessing, Targets

logger = logging.getLogger(__name__)

Batch = tuple[ImageBatch, list[Targets]]

_ATTEMPTS = 8
_WORKER_DEATH = re.compile(r"DataLoader worker \(pid.*?(killed by signal: [\w ]+\w|exited unexpectedly)", re.DOTALL)

CANVAS = 32
"""Sides of batches to train on are multiples of this, the coarsest common stride, so that few shapes occur: for every
new one the libraries of convolutions prepare anew. With pictures of random sizes three epochs of `detrove-nano` on 205
pictures met 8 shapes instead of 74, and a step took 0.73 s instead of 0.82. Rectangular batches stay as they are."""

ASPECT_DISORDER = 0.03
"""Relative: by how much of their aspect pictures may change places when batches are grouped by it."""


def default_workers() -> int:
    """How many processes prepare pictures: none on one or two cores, else half of the cores and at most four.

    Measured on two cores with training on the CPU: preparing a 640x480 JPEG at 320 takes 5 to 7 ms, and one or two
    worker processes cost as much again, by taking turns with the threads of the training step.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(4, cores // 2)


def collate(samples: Sequence[tuple[Tensor, Targets]]) -> Batch:
    """Samples, each (pixels (3, h, w), targets), as one batch padded only as far as its largest picture."""
    return ImageBatch.from_images([pixels for pixels, _ in samples]), [targets for _, targets in samples]


def evaluation_batch(samples: Iterable[Sample], preprocessing: Preprocessing) -> Batch:
    """Samples as they are, unvaried, as one batch; without crowd regions, which no query answers for."""
    seen = [evaluation_sample(sample, preprocessing) for sample in samples]
    return collate([(pixels, without_crowd(targets)) for pixels, targets in seen])


def canvas_of(height: int, width: int, canvas: int = CANVAS) -> tuple[int, int]:
    """The (height, width) to which pictures so high and so wide are padded: the next multiples of `canvas`."""
    return math.ceil(height / canvas) * canvas, math.ceil(width / canvas) * canvas


class Draw(NamedTuple):
    """What a worker is told of one sample: which picture of which epoch, and what it shares with its batch."""

    epoch: int
    index: int
    terms: Terms


class EpochBatches(Sampler[list[Draw]]):
    """Random batches of draws, the same for the same seed and epoch.

    Every picture comes once an epoch. The last batch is smaller, but never fewer than `smallest` pictures behind
    others: a batch of one would weigh that picture as much as a whole batch, so what is left joins the batch before.

    A batch belongs to all processes: process i of n takes the i-th of n equal shares (the first ones are larger by a
    picture where it does not divide), so that n processes see the batches that one would. `smallest` is at least n.

    With `aspects` (width / height of each picture) a batch holds pictures of similar aspect, so that little of it is
    padding: the pictures are sorted by it, with enough disorder that neighbours change from epoch to epoch, cut, and
    the batches shuffled. `share_scale` gives all of a batch one place in the range of scales.

    `mixing` is what the draws of the next epoch say of it, `first` the batch that it begins with.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        num_processes: int = 1,
        aspects: np.ndarray | None = None,
        share_scale: bool = False,
        smallest: int = 2,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, got {batch_size}")
        for what, count in (("batch size", batch_size), ("number of pictures", length)):
            if count < num_processes:
                raise InputError(
                    f"the {what} is {count}, less than the {num_processes} processes that share each batch: use fewer "
                    "processes (--devices), or more pictures"
                )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.process = process
        self.num_processes = num_processes
        self.aspects = aspects
        self.share_scale = share_scale
        self.smallest = max(smallest, num_processes)
        self.epoch = 0
        self.first = 0
        self.mixing = True

    def _batch_sizes(self) -> list[int]:
        full, rest = divmod(self.length, self.batch_size)
        if full > 0 and 0 < rest < self.smallest:
            return [self.batch_size] * (full - 1) + [self.batch_size + rest]
        return [self.batch_size] * full + ([rest] if rest else [])

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self._batch_sizes())

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order, sizes = generator.permutation(self.length), self._batch_sizes()
        if self.aspects is not None:
            disorder = generator.uniform(-ASPECT_DISORDER, ASPECT_DISORDER, self.length)
            order = order[np.argsort((np.log(self.aspects) + disorder)[order], kind="stable")]
            # The smaller or larger batch is not always of the widest pictures.
            generator.shuffle(sizes)
        batches = np.split(order, np.cumsum(sizes)[:-1])
        if self.aspects is not None:
            batches = [batches[number] for number in generator.permutation(len(batches)).tolist()]
        for number in range(self.first, len(batches)):
            place = None
            if self.share_scale:
                place = float(np.random.default_rng([self.seed, self.epoch, number, 1]).random())
            terms = Terms(self.mixing, self.aspects is not None, place)
            share = np.array_split(batches[number], self.num_processes)[self.process]
            yield [Draw(self.epoch, index, terms) for index in share.tolist()]


class _Failure(NamedTuple):
    """An `InputError` on its way from a worker process, which would lose its type's one-line form on being raised."""

    message: str


class _TrainingSamples(Dataset):
    """Varied samples by draw, each with the errors of the pictures that it stands in for.

    A picture that cannot be used does not end a run: another one, chosen by the same seed, takes its place.
    """

    def __init__(
        self, originals: DatasetOriginals, preprocessing: Preprocessing, augmentation: Augmentation, seed: int
    ) -> None:
        self.originals = originals
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Targets, list[str]] | _Failure:
        index = draw.index
        generator = np.random.default_rng([self.seed, draw.epoch, index])
        errors: list[str] = []
        for _ in range(_ATTEMPTS):
            try:
                pixels, targets = varied(
                    self.originals[index], self.preprocessing, self.augmentation, generator, self.originals, draw.terms
                )
            except InputError as error:
                errors.append(str(error))
                index = int(generator.integers(len(self.originals)))
                continue
            return pixels, targets, errors
        return _Failure(f"{errors[-1]} ({_ATTEMPTS} pictures in a row cannot be used)")


class _Parcel(NamedTuple):
    """A batch on its way from a worker: small, and in few pieces, since each tensor costs a piece of shared memory.

    `values` holds the pixels of all pictures one after the other, uint8: a quarter of what normalised ones take.
    `sizes` are (height, width), `objects` the arrays of each picture's `Targets`.
    """

    values: Tensor
    sizes: list[tuple[int, int]]
    objects: list[tuple[np.ndarray, np.ndarray, int | str | None, tuple[int, int] | None]]
    errors: list[str]


def _pack(results: Sequence[tuple[Tensor, Targets, list[str]] | _Failure]) -> _Parcel | _Failure:
    values, sizes, objects, errors = [], [], [], []
    for result in results:
        if isinstance(result, _Failure):
            return result
        pixels, targets, own_errors = result
        values.append(pixels.flatten())
        sizes.append((pixels.shape[1], pixels.shape[2]))
        objects.append((targets.labels.numpy(), targets.boxes.numpy(), targets.image_id, targets.original_size))
        errors += own_errors
    return _Parcel(torch.cat(values), sizes, objects, errors)


def _unpack(parcel: _Parcel, preprocessing: Preprocessing, canvas: int) -> Batch:
    sizes = torch.tensor(parcel.sizes, dtype=torch.int64)
    height, width = canvas_of(*sizes.amax(dim=0).tolist(), canvas=canvas)
    pixels = np.zeros((len(sizes), 3, height, width), dtype=np.float32)
    padding_mask = np.ones((len(sizes), height, width), dtype=bool)
    parts = parcel.values.split([3 * h * w for h, w in parcel.sizes])
    for index, (values, (h, w)) in enumerate(zip(parts, parcel.sizes, strict=True)):
        preprocessing.normalise(values.view(3, h, w), out=pixels[index, :, :h, :w])
        padding_mask[index, :h, :w] = False
    targets = [
        Targets(torch.from_numpy(labels), torch.from_numpy(boxes), image_id=image_id, original_size=original_size)
        for labels, boxes, image_id, original_size in parcel.objects
    ]
    return ImageBatch(torch.from_numpy(pixels), torch.from_numpy(padding_mask), sizes), targets


class TrainingLoader:
    """Random batches of varied samples, one epoch per iteration; call `set_epoch` before each.

    The batches depend on (seed, epoch, index) alone, not on the number of workers or processes. Pictures that cannot be
    used are replaced by others, told of once by name in the log, and kept in `skipped`. `cache` is what is kept
    decoded, if anything.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        batches: EpochBatches,
        preprocessing: Preprocessing,
        mix_until: float,
        cache: PictureCache | None,
        canvas: int,
    ) -> None:
        self._loader = loader
        self._batches = batches
        self._preprocessing = preprocessing
        self._mix_until = mix_until
        self._canvas = canvas
        self.cache = cache
        self.skipped: list[str] = []

    def set_epoch(self, epoch: int, done: float = 0.0, first: int = 0) -> None:
        """Choose the order and the random changes of the next iteration, and which batch it begins with.

        `done` is the part of the training that lies behind; see `Augmentation.mix_until`.
        """
        self._batches.epoch, self._batches.first = epoch, first
        self._batches.mixing = done < self._mix_until

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for result in self._loader:
            if isinstance(result, _Failure):
                raise InputError(result.message)
            for error in result.errors:
                if error not in self.skipped:
                    self.skipped.append(error)
                    logger.warning("%s (left out of training)", error)
            yield _unpack(result, self._preprocessing, self._canvas)


@contextmanager
def explained_worker_deaths() -> Iterator[None]:
    """A process that loads pictures and is killed becomes one clear `InputError`.

    torch raises it from a signal handler, so anywhere in the main process, also in the middle of a training step.
    """
    try:
        yield
    except RuntimeError as error:
        death = _WORKER_DEATH.search(str(error))
        if death is None:
            raise
        raise InputError(
            f"a process that loads pictures was lost ({death[1]}), most often for want of memory: load with fewer "
            "(--set workers=0), a smaller --size or a smaller --cache"
        ) from error


def training_loader(
    dataset: DetectionDataset,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    seed: int = 0,
    workers: int | None = None,
    process: int = 0,
    num_processes: int = 1,
    rectangular: bool = False,
    cache: int | None = None,
    smallest: int = 2,
) -> TrainingLoader:
    """Batches to train on: (ImageBatch, list of Targets without crowd regions); see `TrainingLoader`.

    `rectangular` batches hold pictures of similar shape and hardly any padding: they are grouped by aspect, share one
    scale, and are cropped with their aspect kept. `cache` is how many bytes of decoded pictures to keep. Of several
    processes each takes its share of every batch; a last batch of fewer than `smallest` pictures joins the one before.
    """
    workers = default_workers() if workers is None else workers
    aspects = np.array([record.width / record.height for record in dataset.records]) if rectangular else None
    scale = rectangular or augmentation.scale_per_batch
    batches = EpochBatches(len(dataset), batch_size, seed, process, num_processes, aspects, scale, smallest)
    kept = None if cache is None else make_cache(dataset, preprocessing, augmentation, cache)
    loader = DataLoader(
        _TrainingSamples(DatasetOriginals(dataset, kept), preprocessing, augmentation, seed),
        batch_sampler=batches,
        collate_fn=_pack,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return TrainingLoader(loader, batches, preprocessing, augmentation.mix_until, kept, 1 if rectangular else CANVAS)
