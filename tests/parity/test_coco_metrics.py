"""COCO metrics equal those of pycocotools, on the detections of a COCO-trained detector on real pictures."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrove.evaluation.matching import BoxTable, match
from detrove.evaluation.metrics import METRIC_NAMES, class_names, coco_metrics, numbering

SIZE = 320
"""Pixels of the square that the detector "atto" was trained at."""


def reference_evaluation(ground_truth: dict, results: list[dict], max_detections: int = 100) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def session(shared: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    weights = shared / "weights" / "deimv2_hgnetv2_atto_coco.onnx"
    return onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])


def detect_with(session: onnxruntime.InferenceSession, folder: Path, ground_truth: dict) -> list[dict[str, Any]]:
    category_ids = sorted(category["id"] for category in ground_truth["categories"])
    results = []
    for entry in ground_truth["images"]:
        picture = Image.open(folder / entry["file_name"]).convert("RGB")
        resized = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)[None] / 255
        size = np.array([[picture.width, picture.height]], dtype=np.int64)
        outputs = session.run(["labels", "boxes", "scores"], {"images": pixels, "orig_target_sizes": size})
        for label, (x1, y1, x2, y2), score in zip(*(np.asarray(output)[0].tolist() for output in outputs), strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            result = {"image_id": entry["id"], "category_id": category_ids[label], "bbox": bbox, "score": score}
            results.append(result)
    return results


def read_split(shared: Path, name: str) -> tuple[Path, dict]:
    root = shared / "data" / "coco-mini"
    return root / name, json.loads((root / "annotations" / f"instances_{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def val(shared: Path, session) -> tuple[dict, list[dict]]:
    folder, ground_truth = read_split(shared, "val2017")
    return ground_truth, detect_with(session, folder, ground_truth)


@pytest.fixture(scope="module")
def crowded(shared: Path, session) -> tuple[dict, list[dict]]:
    """The training pictures with crowd regions, and as many without."""
    folder, ground_truth = read_split(shared, "train2017")
    with_crowd = {box["image_id"] for box in ground_truth["annotations"] if box["iscrowd"]}
    others = [image["id"] for image in ground_truth["images"] if image["id"] not in with_crowd]
    chosen = with_crowd | set(others[: len(with_crowd)])
    ground_truth["images"] = [image for image in ground_truth["images"] if image["id"] in chosen]
    ground_truth["annotations"] = [box for box in ground_truth["annotations"] if box["image_id"] in chosen]
    assert sum(box["iscrowd"] for box in ground_truth["annotations"]) >= 20
    return ground_truth, detect_with(session, folder, ground_truth)


def assert_equal_to_reference(ground_truth: dict, results: list[dict]) -> None:
    untouched = copy.deepcopy((ground_truth, results))
    metrics = coco_metrics(ground_truth, results)
    assert (ground_truth, results) == untouched
    evaluation = reference_evaluation(ground_truth, results)
    for name, expected in zip(METRIC_NAMES, evaluation.stats, strict=True):
        assert (-1 if metrics[name] is None else metrics[name]) == pytest.approx(expected, abs=1e-6), name
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, name in enumerate(class_names(ground_truth)):
        for key, curves in (("ap", precision[:, :, index]), ("ap50", precision[0, :, index])):
            expected = -1 if curves.max() < 0 else curves[curves > -1].mean()
            ours = metrics.per_class[name][key]
            assert (-1 if ours is None else ours) == pytest.approx(expected, abs=1e-6), (name, key)


def test_real_detections(val):
    assert_equal_to_reference(*val)
    assert coco_metrics(*val).ap == pytest.approx(0.330, abs=0.002)


def test_real_detections_with_crowd_regions(crowded):
    assert_equal_to_reference(*crowded)


def test_crowd_regions_count(crowded):
    ground_truth, results = copy.deepcopy(crowded)
    before = coco_metrics(ground_truth, results)
    for box in ground_truth["annotations"]:
        box["iscrowd"] = 0
    assert coco_metrics(ground_truth, results).ap != before.ap


def test_matching_is_that_of_the_reference(crowded):
    """Which detections hit, and which are ignored, at IoU 0.5: for every picture and class."""
    ground_truth, results = crowded
    evaluation = reference_evaluation(ground_truth, results, max_detections=300)
    expected_hits, expected_ignored = set(), set()
    for entry in evaluation.evalImgs[: len(ground_truth["categories"]) * len(ground_truth["images"]) * 4]:
        if entry is None or entry["aRng"] != [0, 1e5**2]:
            continue
        for detection, matched, ignored in zip(
            entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
        ):
            if matched and not ignored:
                expected_hits.add(detection - 1)
            if ignored:
                expected_ignored.add(detection - 1)
    truth, found = BoxTable.of(ground_truth, ground_truth["annotations"]), BoxTable.of(ground_truth, results)
    matching = match(truth, found)
    assert set(np.flatnonzero(matching.is_hit).tolist()) == expected_hits
    assert set(np.flatnonzero(matching.ignored).tolist()) == expected_ignored
    assert expected_ignored


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Boxes of all sizes in 12 pictures and 4 classes (one never used), crowd regions, duplicates, tied scores."""
    generator = np.random.default_rng(seed)
    ground_truth: dict = {
        "images": [{"id": 100 - 7 * index} for index in range(12)],
        "categories": [{"id": id, "name": f"class {id}"} for id in (17, 3, 90, 1)],
        "annotations": [],
    }
    results = []
    for number in range(60):
        width, height = np.exp(generator.uniform(np.log(8), np.log(300), 2))
        x, y = generator.uniform(0, 300, 2)
        image_id, category_id = 100 - 7 * int(generator.integers(12)), int(generator.choice([17, 3, 90]))
        ground_truth["annotations"].append(
            {
                "id": number + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [x, y, width, height],
                "area": width * height * generator.uniform(0.5, 1),
                "iscrowd": int(generator.random() < 0.15),
            }
        )
        for _ in range(generator.integers(0, 4)):
            shift = generator.normal(0, 0.08, 4) * [width, height, width, height]
            result = {
                "image_id": image_id,
                "category_id": category_id if generator.random() < 0.8 else 1,
                "bbox": (np.array([x, y, width, height]) + shift).tolist(),
                "score": round(float(generator.random()), 1),
            }
            results.append(result)
    return ground_truth, results


@pytest.mark.parametrize("seed", range(5))
def test_random_boxes(seed: int):
    assert_equal_to_reference(*random_case(seed))


def test_numbering_follows_the_file_and_the_ids():
    ground_truth, _ = random_case(0)
    pictures, categories = numbering(ground_truth)
    assert pictures[100] == 0
    assert pictures[93] == 1
    assert categories == {1: 0, 3: 1, 17: 2, 90: 3}
