"""The report of a small data set: complete, with and without a history, and honest where nothing was measured."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.evaluation import coco_metrics, coco_results, findings, write_report
from detrove.evaluation.metrics import METRIC_NAMES
from detrove.structures import Category, Detections, LabelMap

LABELS = LabelMap((Category(1, "cat"), None, Category(7, "dog")))


class Pictures:
    """Five pictures with one cat each, the last also with a crowd of dogs."""

    def __init__(self, with_objects: bool = True) -> None:
        self.with_objects = with_objects
        self.records = [SimpleNamespace(image_id=10 + i, path=Path(f"{i}.jpg"), width=80, height=60) for i in range(5)]

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(image=Image.new("RGB", (80, 60), (40 * index, 90, 90)))

    def ground_truth(self) -> dict:
        annotations = [{"image_id": 10 + i, "category_id": 1, "bbox": [10, 10, 40, 40]} for i in range(5)]
        annotations.append({"image_id": 14, "category_id": 7, "bbox": [50, 0, 30, 60], "iscrowd": 1})
        return {
            "images": [{"id": r.image_id, "file_name": r.path.name} for r in self.records],
            "annotations": annotations if self.with_objects else [],
            "categories": [{"id": 7, "name": "dog"}, {"id": 1, "name": "cat"}],
        }


def detections() -> dict[int, Detections]:
    """Right in the first three pictures, wrong in the fourth, nothing in the fifth."""
    found = {}
    for index in range(5):
        box = [10.0, 10.0, 50.0, 50.0] if index < 3 else [0.0, 0.0, 20.0, 20.0]
        rows = int(index < 4)
        found[10 + index] = Detections(
            torch.tensor([box] * rows).reshape(-1, 4),
            torch.full((rows,), 0.7),
            torch.zeros(rows, dtype=torch.int64),
            LABELS,
        )
    return found


HISTORY = [
    {
        "epoch": 1,
        "step": 4,
        "minutes": 0.1,
        "pictures": 5,
        "learning_rate": 1e-4,
        "loss": 9.0,
        "class": 1.0,
        "box": 0.5,
    },
    {
        "epoch": 2,
        "step": 8,
        "minutes": 0.2,
        "pictures": 10,
        "learning_rate": 1e-5,
        "loss": 5.0,
        "class": 0.6,
        "box": 0.4,
    },
]


def report(path: Path, dataset: Pictures, **options) -> str:
    truth = dataset.ground_truth()
    found = detections()
    metrics = coco_metrics(truth, coco_results(found, truth))
    write_report(
        path,
        title="A <small> run",
        metrics=metrics,
        ground_truth=truth,
        detections=found,
        dataset=dataset,
        label_map=LABELS,
        **options,
    )
    return path.read_text(encoding="utf-8")


def test_the_report_of_a_run(tmp_path):
    validated = [line | dict.fromkeys(METRIC_NAMES, 0.25) | {"ap_small": None, "per_class": {}} for line in HISTORY]
    thresholds = torch.tensor([0.6, 0.5, 0.4])
    page = report(
        tmp_path / "report.html", Pictures(), thresholds=thresholds, history=validated, facts={"data": "x & y"}
    )
    assert "A &lt;small&gt; run" in page
    assert "the detector finds 3 of 5 objects (60%); 75% of the boxes it shows are right" in page
    for heading in ("How it learned", "Precision and recall", "Kinds of mistakes", "Class by class", "worst", "best"):
        assert heading in page
    assert "it went from 9.00 to 5.00" in page
    assert "4.jpg: 0 of 1 objects found, 0 false alarms, F1 0.00" in page
    assert "x &amp; y" in page
    assert page.count("data:image/jpeg") == 2 + 3
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_thresholds_hide_detections(tmp_path):
    page = report(tmp_path / "report.html", Pictures(), thresholds=[0.8, 0.5, 0.5])
    assert "finds 0 of 5 objects (0%); it shows no box at all" in page


def test_an_evaluation_has_no_history(tmp_path):
    page = report(tmp_path / "eval.html", Pictures())
    assert "How it learned" not in page
    assert "Class by class" in page


def test_a_run_that_was_never_validated(tmp_path):
    page = report(tmp_path / "report.html", Pictures(), history=HISTORY)
    assert "How it learned" in page
    assert "On the validation pictures" not in page


def test_pictures_without_objects(tmp_path):
    page = report(tmp_path / "report.html", Pictures(with_objects=False), history=HISTORY)
    assert "nothing could be measured" in page
    assert "Precision and recall" not in page


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "train longer"),
        ([0.1, 0.4, 0.5, 0.5, 0.5, 0.5, 0.505, 0.51], "flat over the last quarter.*: 0.510 at the end"),
        ([0.1, 0.5, 0.4, 0.3], "was best at 0.500 and fell to 0.300"),
        ([0.4], "last AP is 0.400"),
    ],
)
def test_what_is_said_of_progress_fits_it(values, said):
    assert re.search(said, findings.about_progress(values, num_objects=1000))


def test_what_may_be_luck_is_not_said_of_progress():
    """As the verdict has it: 0.03 on 250 objects is less than 0.5 / √250."""
    rising = [0.4, 0.5, 0.56, 0.57, 0.57, 0.57, 0.58, 0.6]
    assert "flat" in findings.about_progress(rising, num_objects=250)
    assert "rose by 0.030" in findings.about_progress(rising, num_objects=2000)


def test_pictures_are_drawn_with_hits_false_alarms_and_missed_objects():
    from detrove.drawing import SKY, VERMILION, YELLOW
    from detrove.evaluation.errors import analyse_errors
    from detrove.evaluation.examples import draw_example

    dataset = Pictures()
    truth = dataset.ground_truth()
    errors = analyse_errors(truth, coco_results(detections(), truth), [0.5, 0.5])

    def colours(position: int) -> set:
        drawn = np.asarray(draw_example(dataset[position].image, position, errors)).reshape(-1, 3)
        return {colour for colour in (SKY, VERMILION, YELLOW) if (drawn == colour).all(axis=1).sum() > 100}

    assert colours(0) == {SKY}
    assert colours(3) == {VERMILION, YELLOW}
    assert colours(4) == {YELLOW}
