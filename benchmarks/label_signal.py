"""Does preflight see that boxes do not belong to their pictures, and believe those that do?

Every data set as it is labelled, and with its boxes made wrong: those of other pictures, at random places, beside the
objects by their own width and height, mirrored. For each, three draws: in what share of pairs a picture's own box is
told from another picture's (`detrove.training.label_signal`).

    python benchmarks/label_signal.py --backbone-weights FILE ../shared/data/bccd=320 ../shared/data/coco-mini=320
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detrove.data import DetectionDataset, open_dataset
from detrove.data.annotations import PackedTexts
from detrove.nn.backbone import Backbone
from detrove.structures import Preprocessing
from detrove.training.label_signal import label_signal
from detrove.training.preflight import LEAST_TOLD_APART

SEEDS = (0, 1, 2)
WRONG = ("of other pictures", "at random places", "beside the objects", "mirrored")


def made_wrong(data: DetectionDataset, how: str, generator: np.random.Generator) -> DetectionDataset:
    """The same pictures, their boxes elsewhere, as large as before."""
    annotations = data.annotations
    if how == "of other pictures":
        order = generator.permutation(len(annotations))
        paths, sizes = PackedTexts(annotations.paths[place] for place in order), annotations.sizes[order]
        grown = (sizes / annotations.sizes)[annotations.pictures_of_boxes()]
        return changed(data, paths=paths, sizes=sizes, xywh=annotations.xywh * np.tile(grown, 2))
    extent, xywh = annotations.sizes[annotations.pictures_of_boxes()], annotations.xywh.copy()
    corner, sides = xywh[:, :2].copy(), xywh[:, 2:]
    if how == "at random places":
        xywh[:, :2] = generator.random(corner.shape) * (extent - sides)
    elif how == "beside the objects":
        fits = (corner + 2 * sides <= extent).all(axis=1, keepdims=True)
        xywh[:, :2] = np.where(fits, corner + sides, np.maximum(corner - sides, 0))
    else:
        xywh[:, 0] = extent[:, 0] - corner[:, 0] - sides[:, 0]
    return changed(data, xywh=xywh)


def changed(data: DetectionDataset, **columns: Any) -> DetectionDataset:
    """The data set with other columns of its annotations."""
    return data.with_annotations(dataclasses.replace(data.annotations, **columns))


def row(trunk: Backbone, data: DetectionDataset, size: int) -> str:
    """The shares of three draws, least and most, the boxes of each, and the seconds that one took."""
    started = time.monotonic()
    signals = [label_signal(trunk, data, Preprocessing(longer=size), seed, seconds=600) for seed in SEEDS]
    seconds = (time.monotonic() - started) / len(SEEDS)
    if None in signals:
        return "too few boxes"
    told = sorted(signal.share for signal in signals if signal)
    boxes = sorted(signal.num_boxes for signal in signals if signal)
    refused = sum(share < LEAST_TOLD_APART for share in told)
    return f"{told[0]:.2f} to {told[-1]:.2f} | {boxes[0]} to {boxes[-1]} | {refused} of {len(told)} | {seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="FOLDER=SIZE")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--backbone-weights", help="random where left out")
    parser.add_argument("--pictures", type=int, help="only the first so many")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    trunk = Backbone(arguments.backbone, (8, 16, 32), frozen=arguments.backbone_weights is not None)
    if arguments.backbone_weights:
        trunk.load(arguments.backbone_weights)
    print("| data set | boxes | told apart | boxes of each kind | refused | takes |\n|---|---|---|---|---|---|")
    for word in arguments.sets:
        folder, _, size = word.rpartition("=")
        data = open_dataset(folder, "train")
        if arguments.pictures:
            data = data.subset(range(arguments.pictures))
        print(f"| {Path(folder).name} | as labelled | {row(trunk, data, int(size))} |", flush=True)
        for how in WRONG:
            wrong = made_wrong(data, how, np.random.default_rng(5))
            print(f"| | {how} | {row(trunk, wrong, int(size))} |", flush=True)


if __name__ == "__main__":
    main()
