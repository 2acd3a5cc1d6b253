"""How much faster are the COCO metrics than those of pycocotools, on the same detections?

Detects with the COCO-trained detector "atto" (300 boxes a picture) on all pictures of coco-mini, then times both in
turn in one process, each from ground truth and results as Python dictionaries to the twelve numbers; ours gives each
class as well. Prints the ratio of each pair and their median.

    python benchmarks/metrics_against_pycocotools.py ../shared
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrove.evaluation import METRIC_NAMES, coco_metrics

SIZE = 320


def detections_and_truth(shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both splits as one ground truth, and what the detector sees in them."""
    root = shared / "data" / "coco-mini"
    session = onnxruntime.InferenceSession(str(shared / "weights" / "deimv2_hgnetv2_atto_coco.onnx"))
    ground_truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    results: list[dict[str, Any]] = []
    for split in ("train2017", "val2017"):
        part = json.loads((root / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        ground_truth["images"] += part["images"]
        ground_truth["annotations"] += part["annotations"]
        ground_truth["categories"] = part["categories"]
        category_ids = sorted(category["id"] for category in part["categories"])
        for entry in part["images"]:
            results += _detect(session, root / split / entry["file_name"], entry["id"], category_ids)
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        annotation["id"] = number
    return ground_truth, results


def _detect(session: Any, path: Path, image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    picture = Image.open(path).convert("RGB")
    resized = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)[None] / 255
    size = np.array([[picture.width, picture.height]], dtype=np.int64)
    outputs = session.run(["labels", "boxes", "scores"], {"images": pixels, "orig_target_sizes": size})
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for label, (x1, y1, x2, y2), score in zip(*(output[0].tolist() for output in outputs), strict=True)
    ]


def pycocotools_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()  # its annotations know files alone
        truth.dataset = ground_truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Time of one call; on copies, because pycocotools writes into what it is given."""
    arguments = copy.deepcopy(arguments)
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    ground_truth, results = detections_and_truth(options.shared)
    ours = coco_metrics(ground_truth, results)
    theirs = pycocotools_metrics(*copy.deepcopy((ground_truth, results)))
    difference = max(abs(ours[name] - value) for name, value in zip(METRIC_NAMES, theirs, strict=True))
    num_pictures, num_boxes = len(ground_truth["images"]), len(ground_truth["annotations"])
    print(f"{num_pictures} pictures, {num_boxes:,} boxes, {len(results):,} detections")
    print(f"largest difference of the twelve numbers: {difference:.1e}")
    ratios = []
    for _ in range(options.pairs):
        own, reference = (
            seconds(coco_metrics, ground_truth, results),
            seconds(pycocotools_metrics, ground_truth, results),
        )
        ratios.append(reference / own)
        print(f"detrove {own:.3f} s, pycocotools {reference:.3f} s, ratio {ratios[-1]:.2f}")
    print(f"median: {statistics.median(ratios):.2f} times faster")


if __name__ == "__main__":
    main()
