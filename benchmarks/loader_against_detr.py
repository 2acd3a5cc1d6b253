"""How fast are training batches made, against the plain pipeline of the DETR repository's recipe?

The peer is that recipe (facebookresearch/detr, datasets/coco.py) from torchvision's own operations on Pillow pictures:
decode, flip half of the time, resize to the output size, or half of the time resize, crop at random and resize again;
to a tensor; normalise. Both sides load the same pictures in batches of 8 with one worker process, to the same output
size (longer side), with the same probabilities of flip and crop. detrove's other options are its defaults (no
rectangular batches, no cache); a last column repeats it with the cache, filled, for what that is worth.

The recipe resizes to a shorter side of 400, 500 or 600 and crops sides of 384 to 600 pixels before its last resize to
800. Two peers are timed: "as published" with these numbers, "in proportion" with them scaled to the output size.

    python benchmarks/loader_against_detr.py DATA [SPLIT] [PAIRS]

Prints the median over interleaved runs. Exit status 1 where the ratio to the recipe as published is below 2 at 320 or
1.3 at 640 pixels.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from detrove.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrove.data import Augmentation, DetectionDataset, collate, open_dataset, training_loader
from detrove.data.dataset import targets_of
from detrove.data.views import without_crowd
from detrove.structures import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Targets

F: Any = functional  # annotated for tensors alone, though it takes pictures too

BATCH_SIZE = 8
FLIP, CROP = 0.5, 0.5
LEAST = {320: 2.0, 640: 1.3}
PUBLISHED_SIZE = 800
FIRST_SIZES, CROP_SIDES = (400, 500, 600), (384, 600)


class DetrPipeline(Dataset):
    """The recipe's samples: Pillow pictures through torchvision's functions, boxes beside them."""

    def __init__(self, dataset: DetectionDataset, longer: int, proportional: bool) -> None:
        self.dataset = dataset
        self.longer = longer
        factor = longer * 0.6 / PUBLISHED_SIZE if proportional else 1.0
        self.first_sizes = [round(side * factor) for side in FIRST_SIZES]
        self.crop_sides = [round(side * factor) for side in CROP_SIDES]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Targets]:
        record = self.dataset.records[index]
        image = Image.open(record.path).convert("RGB")
        targets = without_crowd(targets_of(record))
        boxes = cxcywh_to_xyxy(targets.boxes) * torch.tensor([*image.size, *image.size])
        if random.random() < FLIP:
            image = F.hflip(image)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([image.width, 0] * 2)
        if random.random() < CROP:
            image, boxes = self._resized(image, boxes, random.choice(self.first_sizes), 10**6)
            low, high = self.crop_sides
            width, height = (random.randint(min(low, side), min(side, high)) for side in image.size)
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            image = F.crop(image, top, left, height, width)
            limits = torch.tensor([width, height] * 2)
            boxes = (boxes - torch.tensor([left, top] * 2)).clamp(min=0).minimum(limits)
        image, boxes = self._resized(image, boxes, None, self.longer)
        pixels = F.normalize(F.to_tensor(image), list(IMAGENET_MEAN), list(IMAGENET_STD))
        boxes = xyxy_to_cxcywh(boxes / torch.tensor([*image.size, *image.size]))
        return pixels, Targets(targets.labels, boxes)

    @staticmethod
    def _resized(image: Image.Image, boxes: Tensor, shorter: int | None, longer: int) -> tuple[Image.Image, Tensor]:
        height, width = Preprocessing(longer=longer, shorter=shorter).target_size(image.height, image.width)
        scale = torch.tensor([width / image.width, height / image.height] * 2)
        return F.resize(image, [height, width]), boxes * scale


def peer_loader(dataset: DetectionDataset, longer: int, proportional: bool) -> Iterable:
    """The recipe's batches."""
    samples = DetrPipeline(dataset, longer, proportional)
    return DataLoader(
        samples, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate, num_workers=1, persistent_workers=True
    )


def own_loader(dataset: DetectionDataset, longer: int, cache: int | None = None) -> Iterable:
    """Detrove's batches of the same size and with the same probabilities."""
    augmentation = Augmentation(horizontal_flip=FLIP, crop=CROP)
    return training_loader(dataset, Preprocessing(longer=longer), augmentation, BATCH_SIZE, workers=1, cache=cache)


def seconds(loader: Iterable) -> float:
    """Wall-clock time of one pass."""
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started


def main(data: str, split: str, pairs: int) -> int:
    """Print the table; answer the exit status."""
    dataset = open_dataset(data, split)
    print(
        f"{Path(data).name}, split {split}: {len(dataset)} pictures, batches of {BATCH_SIZE}, one worker, {pairs} pairs"
    )
    print("| longer side | peer | peer, ms a picture | detrove, ms | ratio, median (least to most) | with the cache |")
    print("|---|---|---|---|---|---|")
    status = 0
    for longer, least in LEAST.items():
        for name, proportional in (("as published", False), ("in proportion", True)):
            loaders = [
                peer_loader(dataset, longer, proportional),
                own_loader(dataset, longer),
                own_loader(dataset, longer, cache=10**9),
            ]
            for loader in loaders:  # starts the workers, fills the caches
                seconds(loader)
            times = [[seconds(loader) for loader in loaders] for _ in range(pairs)]
            ratios = [peer / own for peer, own, _ in times]
            ratio, cached = statistics.median(ratios), statistics.median(peer / own for peer, _, own in times)
            if not proportional:
                status |= ratio < least
            peer, own, _ = (statistics.median(column) / len(dataset) * 1e3 for column in zip(*times, strict=True))
            print(
                f"| {longer} | {name} | {peer:.2f} | {own:.2f} | "
                f"**{ratio:.2f}** ({min(ratios):.2f} to {max(ratios):.2f}), wanted {least} | {cached:.2f} |",
                flush=True,
            )
    return status


if __name__ == "__main__":
    data, split, pairs = [*sys.argv[1:], "train", "7"][:3] if len(sys.argv) == 2 else [*sys.argv[1:], "7"][:3]
    raise SystemExit(main(data, split, int(pairs)))
