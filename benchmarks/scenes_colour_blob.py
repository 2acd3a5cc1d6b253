"""How far do blobs of colour come on the generated scenes, without a detector?

Each picture is segmented in two ways: k-means colour clusters, and the difference from the blurred surroundings. The
connected components are the candidate boxes. What a candidate is (a class, or nothing) is learned from the training
split, by a vote of the nearest blobs there in size, aspect, colour, contrast, and crude shape (fill of the box, share
of holes, spread about the centre). Scores are shares of votes. Beside it stands a constant guess: boxes of each class's
median size on a grid over every picture.

    python benchmarks/scenes_colour_blob.py [FOLDER]

The scenes are only worth learning on while this stays under AP50 0.3.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from faster_coco_eval import COCO, COCOeval_faster
from scipy.cluster.vq import kmeans2
from scipy.spatial import KDTree

from detrove.data import DetectionDataset, open_dataset
from detrove.data.scenes import make_scenes

ndimage: Any = scipy.ndimage  # SciPy is not annotated, and what a checker infers of it is often wrong
NUM_COLOURS = 6
NUM_NEIGHBOURS = 15
SMALLEST_SIDE = 6
LIMIT = 0.3


def candidate_masks(pixels: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Connected components of one colour, or of what differs from its surroundings: (window, mask within it)."""
    smooth = ndimage.gaussian_filter(pixels, (1, 1, 0))
    flat = smooth.reshape(-1, 3)
    centres, _ = kmeans2(flat[::7], NUM_COLOURS, minit="++", seed=0)  # pyright: ignore[reportCallIssue]
    nearest = KDTree(centres).query(flat)[1].reshape(pixels.shape[:2])
    layers = [nearest == cluster for cluster in range(NUM_COLOURS)]
    for blur in (12, 30):
        layers.append(np.abs(smooth - ndimage.gaussian_filter(smooth, (blur, blur, 0))).sum(axis=2) > 60)
    for layer in layers:
        components, _ = ndimage.label(ndimage.binary_opening(layer))
        for number, window in enumerate(ndimage.find_objects(components), start=1):
            height, width = (side.stop - side.start for side in window)
            if min(height, width) >= SMALLEST_SIDE and max(height, width) <= 120:
                yield window, components[window] == number


def features(pixels: np.ndarray, window: tuple[slice, slice], mask: np.ndarray) -> list[float]:
    """Size, aspect, fill of the box, share of holes, spread about the centre, colour, its deviation, contrast."""
    height, width = mask.shape
    inside = pixels[window][mask]
    around = pixels[max(window[0].start - 4, 0) : window[0].stop + 4, max(window[1].start - 4, 0) : window[1].stop + 4]
    mean = inside.mean(axis=0)
    y, x = np.nonzero(mask)
    spread = (x.var() + y.var()) / len(x)
    contrast = np.abs(mean - around.reshape(-1, 3).mean(axis=0)).sum()
    return [
        np.log(height * width),
        np.log(width / height),
        3 * mask.mean(),
        4 * (ndimage.binary_fill_holes(mask).mean() / mask.mean() - 1),
        10 * spread,
        *(mean / 255),
        inside.std() / 100,
        contrast / 255,
    ]


def candidates(dataset: DetectionDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) xyxy boxes and (N, F) features of the blobs of one picture."""
    pixels = np.asarray(dataset[index].image, dtype=np.float64)
    boxes, rows = [], []
    for window, mask in candidate_masks(pixels):
        boxes.append([window[1].start, window[0].start, window[1].stop, window[0].stop])
        rows.append(features(pixels, window, mask))
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(rows).reshape(len(boxes), -1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 4), (M, 4) xyxy to (N, M)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return overlap / (area_a[:, None] + area_b[None] - overlap)


def learn(train: DetectionDataset, num_pictures: int) -> tuple[KDTree, np.ndarray]:
    """Blobs of the training split and what each is: the slot of the object it covers, or -1."""
    rows, labels = [], []
    for index, record in enumerate(train.records[:num_pictures]):
        boxes, own = candidates(train, index)
        if not len(boxes):
            continue
        rows.append(own)
        if len(record.labels):
            overlaps = iou(boxes, record.boxes_xyxy)
            labels.append(np.where(overlaps.max(axis=1) >= 0.6, record.labels[overlaps.argmax(axis=1)], -1))
        else:
            labels.append(np.full(len(boxes), -1))
    return KDTree(np.concatenate(rows)), np.concatenate(labels)


def blob_results(test: DetectionDataset, tree: KDTree, labels: np.ndarray) -> list[dict]:
    results = []
    for index, record in enumerate(test.records):
        boxes, rows = candidates(test, index)
        if not len(boxes):
            continue
        votes = labels[tree.query(rows, k=NUM_NEIGHBOURS)[1]]
        for slot, category in enumerate(test.label_map.entries):
            assert category is not None
            for box, score in zip(boxes, (votes == slot).mean(axis=1), strict=True):
                if score > 0:
                    results.append(result(record.image_id, category.id, box, float(score)))
    return results


def constant_results(train: DetectionDataset, test: DetectionDataset) -> list[dict]:
    """For each class, boxes of its median size in the training split on a grid of 4 by 4."""
    sizes = np.concatenate([record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2] for record in train.records])
    labels = np.concatenate([record.labels for record in train.records])
    results = []
    for record in test.records:
        for slot, category in enumerate(test.label_map.entries):
            assert category is not None
            half = np.median(sizes[labels == slot], axis=0) / 2
            for column in range(4):
                for row in range(4):
                    centre = np.array([(column + 0.5) * record.width / 4, (row + 0.5) * record.height / 4])
                    box = np.concatenate([centre - half, centre + half])
                    results.append(result(record.image_id, category.id, box, 0.5))
    return results


def result(image_id: int | str, category_id: int, box: np.ndarray, score: float) -> dict:
    x1, y1, x2, y2 = box.tolist()
    return {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def ap50(test: DetectionDataset, results: list[dict]) -> float:
    ground_truth = COCO(test.ground_truth(), print_function=lambda *_: None)
    evaluation = COCOeval_faster(
        ground_truth, ground_truth.loadRes(results), iouType="bbox", print_function=lambda *_: None
    )
    evaluation.run()
    return float(evaluation.stats[1])


def main(folder: Path) -> None:
    make_scenes(folder)
    train, test = open_dataset(folder, "train"), open_dataset(folder, "test")
    start = time.perf_counter()
    tree, labels = learn(train, len(train))
    blobs = ap50(test, blob_results(test, tree, labels))
    seconds = time.perf_counter() - start
    constant = ap50(test, constant_results(train, test))
    print(
        f"colour blobs: AP50 {blobs:.3f} on {len(test)} pictures, learned from {len(labels)} blobs in {seconds:.0f} s"
    )
    print(f"constant guess: AP50 {constant:.4f}; ratio {blobs / max(constant, 1e-9):.1f}")
    print(f"limit {LIMIT}: {'kept' if blobs < LIMIT else 'BROKEN'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "scenes")
