"""How much of a batch is padding, and how much of it do rectangular batches save?

Batches of 8, at longer side 640, one epoch, without random changes and with those of detrove-nano's recipe.

    python benchmarks/padding_waste.py DATA [SPLIT]

Exit status 1 where rectangular batches waste half of what unsorted ones do, or more.
"""

from __future__ import annotations

import sys

from detrove.data import Augmentation, DetectionDataset, open_dataset, training_loader
from detrove.models import catalogue
from detrove.structures import Preprocessing
from detrove.training.trainer import augmentation_of

BATCH_SIZE, LONGER = 8, 640


def waste(dataset: DetectionDataset, augmentation: Augmentation, rectangular: bool) -> float:
    """The part of all pixels of an epoch's batches that is padding."""
    loader = training_loader(
        dataset, Preprocessing(longer=LONGER), augmentation, BATCH_SIZE, workers=0, rectangular=rectangular
    )
    padding = total = 0
    for images, _ in loader:
        padding += int(images.padding_mask.sum())
        total += images.padding_mask.numel()
    return padding / total


def main(data: str, split: str) -> int:
    dataset = open_dataset(data, split)
    print("| random changes | unsorted | rectangular | ratio |")
    print("|---|---|---|---|")
    status = 0
    for name, augmentation in (
        ("none", Augmentation()),
        ("detrove-nano's", augmentation_of(catalogue.preset("detrove-nano").recipe)),
    ):
        unsorted, rectangular = (waste(dataset, augmentation, rectangular) for rectangular in (False, True))
        status |= rectangular >= unsorted / 2
        print(f"| {name} | {unsorted:.1%} | {rectangular:.1%} | {rectangular / unsorted:.2f} |")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "train"))
