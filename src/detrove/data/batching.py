"""Batches of samples, for training in a reproducible random order and for evaluation in the data set's order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detrove.data.dataset import DetectionDataset
from detrove.data.transforms import Augmentation, evaluation_sample, training_sample
from detrove.errors import InputError
from detrove.structures import ImageBatch, Preprocessing, Targets

logger = logging.getLogger(__name__)

Batch = tuple[ImageBatch, list[Targets]]

_ATTEMPTS = 8


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


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Random batches of (epoch, index) pairs, the same for the same seed and epoch.

    Every picture comes once an epoch. The last batch is smaller, but never a single picture behind others: a batch of
    one would weigh that picture as much as a whole batch, so it joins the batch before. With several processes,
    process i of n takes every n-th batch, and what does not fill a round is left out.
    """

    def __init__(self, length: int, batch_size: int, seed: int, process: int = 0, num_processes: int = 1) -> None:
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, got {batch_size}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.process = process
        self.num_processes = num_processes
        self.epoch = 0

    def _num_batches(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        joins = rest == 1 and full > 0
        return full + (1 if rest and not joins else 0)

    def __len__(self) -> int:
        num_batches = self._num_batches()
        return num_batches // self.num_processes if self.num_processes > 1 else num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length).tolist()
        num_batches = self._num_batches()
        for round in range(len(self)):
            number = round * self.num_processes + self.process
            start = number * self.batch_size
            stop = self.length if number == num_batches - 1 else start + self.batch_size
            yield [(self.epoch, index) for index in order[start:stop]]


class _Failure(NamedTuple):
    """An `InputError` on its way from a worker process, which would lose its type's one-line form on being raised."""

    message: str


class _TrainingSamples(Dataset):
    """Varied samples by (epoch, index), each with the errors of the pictures that it stands in for.

    A picture that cannot be used does not end a run: another one, chosen by the same seed, takes its place.
    """

    def __init__(
        self, dataset: DetectionDataset, preprocessing: Preprocessing, augmentation: Augmentation, seed: int
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Targets, list[str]] | _Failure:
        epoch, index = key
        generator = np.random.default_rng([self.seed, epoch, index])
        errors: list[str] = []
        for _ in range(_ATTEMPTS):
            try:
                sample = self.dataset[index]
            except InputError as error:
                errors.append(str(error))
                index = int(generator.integers(len(self.dataset)))
                continue
            return *training_sample(sample, self.preprocessing, self.augmentation, generator), errors
        return _Failure(f"{errors[-1]} ({_ATTEMPTS} pictures in a row cannot be used)")


class _EvaluationSamples(Dataset):
    def __init__(self, dataset: DetectionDataset, preprocessing: Preprocessing) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Targets, list[str]] | _Failure:
        try:
            return *evaluation_sample(self.dataset[index], self.preprocessing), []
        except InputError as error:
            return _Failure(str(error))


def _collate_results(
    results: Sequence[tuple[Tensor, Targets, list[str]] | _Failure],
) -> tuple[Batch, list[str]] | _Failure:
    samples, errors = [], []
    for result in results:
        if isinstance(result, _Failure):
            return result
        pixels, targets, own_errors = result
        samples.append((pixels, targets))
        errors += own_errors
    return collate(samples), errors


class TrainingLoader:
    """Random batches of varied samples, one epoch per iteration; call `set_epoch` before each.

    The batches depend on (seed, epoch, index) alone, not on the number of workers. Pictures that cannot be used are
    replaced by others, told of once by name in the log, and kept in `skipped`.
    """

    def __init__(self, loader: DataLoader[Any], batches: EpochBatches) -> None:
        self._loader = loader
        self._batches = batches
        self.skipped: list[str] = []

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random changes of the next iteration."""
        self._batches.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for result in self._loader:
            batch, errors = _raise_failure(result)
            for error in errors:
                if error not in self.skipped:
                    self.skipped.append(error)
                    logger.warning("%s (left out of training)", error)
            yield batch


class EvaluationLoader:
    """Batches in the data set's order, all targets; raises `InputError` at a picture that cannot be used."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for result in self._loader:
            yield _raise_failure(result)[0]


def _raise_failure(result: tuple[Batch, list[str]] | _Failure) -> tuple[Batch, list[str]]:
    if isinstance(result, _Failure):
        raise InputError(result.message)
    return result


def training_loader(
    dataset: DetectionDataset,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    seed: int = 0,
    workers: int | None = None,
    process: int = 0,
    num_processes: int = 1,
) -> TrainingLoader:
    """Batches to train on: (ImageBatch, list of Targets without crowd regions); see `TrainingLoader`."""
    workers = default_workers() if workers is None else workers
    batches = EpochBatches(len(dataset), batch_size, seed, process, num_processes)
    loader = DataLoader(
        _TrainingSamples(dataset, preprocessing, augmentation, seed),
        batch_sampler=batches,
        collate_fn=_collate_results,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return TrainingLoader(loader, batches)


def evaluation_loader(
    dataset: DetectionDataset, preprocessing: Preprocessing, batch_size: int, workers: int | None = None
) -> EvaluationLoader:
    """Batches to evaluate on: (ImageBatch, list of Targets); see `EvaluationLoader`."""
    workers = default_workers() if workers is None else workers
    loader = DataLoader(
        _EvaluationSamples(dataset, preprocessing),
        batch_size=batch_size,
        collate_fn=_collate_results,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return EvaluationLoader(loader)
