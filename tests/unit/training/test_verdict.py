"""Each rule of the verdict on evidence made by hand: said with its numbers where it holds, and silent where not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detrove.evaluation.errors import ErrorAnalysis
from detrove.evaluation.findings import luck
from detrove.evaluation.matching import BoxTable, match
from detrove.evaluation.metrics import METRIC_NAMES, Metrics
from detrove.training.progress import learning_curves, sparkline
from detrove.training.verdict import Evidence, verdict

SIDE = 40.0


def row_of_boxes(count: int, shift: float = 0.0) -> np.ndarray:
    """Squares that do not touch, in one picture."""
    left = np.arange(count) * 100.0 + shift
    return np.stack([left, np.zeros(count), left + SIDE, np.full(count, SIDE)], axis=1)


def table(boxes: np.ndarray) -> BoxTable:
    zeros = np.zeros(len(boxes), dtype=np.int64)
    return BoxTable(zeros, zeros, boxes, np.ones(len(boxes)), zeros.astype(bool))


def errors_of(truth: BoxTable, found: BoxTable, **kinds: int) -> ErrorAnalysis:
    names = ("hits", "wrong class", "duplicates", "badly placed", "around nothing", "missed objects")
    confusion = np.zeros((2, 2), dtype=np.int64)
    return ErrorAnalysis(["nut"], truth, found, match(truth, found), confusion, dict.fromkeys(names, 0) | kinds)


def metrics_of(ap: float | None, **per_class: dict[str, Any]) -> Metrics:
    values: dict[str, Any] = dict.fromkeys(METRIC_NAMES, ap)
    return Metrics(**values, per_class=per_class or {"nut": {"ap": ap, "ap50": ap, "num_boxes": 1000}})


def evidence(aps: list[float], num_objects: int = 1000, num_found: int = 800, **changes: Any) -> Evidence:
    truth = table(row_of_boxes(num_objects))
    found = table(row_of_boxes(num_objects)[:num_found])
    lines = [{"epoch": n, "step": 10 * n, "loss": 1.0, "ap": ap} for n, ap in enumerate(aps, start=1)]
    plain = Evidence(
        lines, metrics_of(max(aps)), errors_of(truth, found), np.full(num_objects, SIDE), 320, {"nut": 5000}, max(aps)
    )
    return replace(plain, **changes)


LEVEL = [0.1, 0.3, 0.4, 0.45, 0.47, 0.48, 0.48, 0.48]


def test_a_sound_training_is_called_so():
    [said] = verdict(evidence(LEVEL))
    assert said.startswith("Nothing stands out: AP 0.480, 0.480 on training pictures; AP was flat at the end")
    assert "hardly any object is shown twice" in said
    for unjudged in ("class", "small objects"):  # there is one class, and no small object
        assert unjudged not in said


def test_only_what_was_judged_is_called_sound():
    per_class = {name: {"ap": ap, "ap50": ap, "num_boxes": 1} for name, ap in (("nut", 0.7), ("bolt", 0.1))}
    metrics = metrics_of(0.4, **per_class)
    [said] = verdict(evidence(LEVEL, metrics=metrics, training_ap=0.4))
    assert "no class" not in said  # bolt is far below, of which one box says nothing
    per_class["bolt"].update(ap=0.0, num_boxes=500)
    [said] = verdict(evidence(LEVEL, metrics=metrics_of(0.35, **per_class), training_ap=0.35))
    assert "no class" not in said
    per_class["bolt"]["ap"] = 0.3
    [said] = verdict(evidence(LEVEL, metrics=metrics_of(0.5, **per_class), training_ap=0.5))
    assert "no class is far below the others" in said
    weak = replace(metrics_of(0.48), ap_small=0.2, ap_large=0.7)
    [said] = verdict(evidence(LEVEL, metrics=weak))
    assert said.startswith("Small objects are the weak side: AP 0.200 against 0.700")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aps": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}, r"^Under-trained: AP rose by 0\.200 .* to 0\.800"),
        (
            {"aps": [0.1, 0.4, 0.5, 0.5, 0.45, 0.42, 0.41, 0.4], "training_ap": 0.65},
            r"^Over-fitted: AP is 0\.650 on .*, and AP fell from 0\.500 in epoch 3 to 0\.400.*help most\.$",
        ),
        (
            {"aps": LEVEL, "training_ap": 0.9, "variation": ["--set colour=0.3"]},
            r"help most; then more variation \(--set colour=0\.3\)\.$",
        ),
        (  # 3.5 minutes of circuit boards: noise, and nothing learned by heart
            {"aps": [0.123, 0.2, 0.243, 0.146, 0.283, 0.253, 0.259, 0.234, 0.234], "training_ap": 0.29},
            r"^AP fell from 0\.283 in epoch 5 to 0\.234: the weights of the best epoch are kept",
        ),
        ({"aps": LEVEL, "training_ap": 0.9}, r"^Over-fitted: AP is 0\.900 on training pictures and 0\.480 on others"),
        ({"aps": [0.002, 0.004]}, r"^Nothing was learned yet: AP 0\.004 after 20 steps"),
        ({"aps": [0.0, 0.0], "alarm": "all alike"}, r"^Nothing was learned \(AP 0\.000\): all alike"),
    ],
)
def test_what_the_curve_tells(changes: dict[str, Any], words: str):
    [said] = verdict(evidence(**changes))
    assert re.search(words, said), said


def test_a_rise_that_may_be_luck_is_not_judged():
    """0.05 on 36 objects: less than 0.5 / √36."""
    rising = [0.1, 0.2, 0.3, 0.4, 0.41, 0.42, 0.44, 0.47]
    assert luck(36) == pytest.approx(1 / 12)
    [said] = verdict(evidence(rising, num_objects=36, num_found=30))
    assert said.startswith("Measured on 36 objects only: differences of AP below 0.08 are luck")
    [said] = verdict(evidence(rising, num_objects=1000))
    assert said.startswith("Under-trained: AP rose by 0.050")


def test_three_validations_are_no_curve():
    assert "too few validations for a curve" in verdict(evidence([0.1, 0.3, 0.6]))[0]


def test_a_weak_class_with_few_boxes_is_named():
    per_class = {
        "nut": {"ap": 0.6, "ap50": 0.8, "num_boxes": 900},
        "bolt": {"ap": 0.1, "ap50": 0.2, "num_boxes": 100},
        "washer": {"ap": 0.1, "ap50": 0.2, "num_boxes": 100},
    }
    boxes = {"nut": 4000, "bolt": 12, "washer": 3000}
    [said] = verdict(evidence(LEVEL, metrics=metrics_of(0.4, **per_class), boxes_of_class=boxes, training_ap=0.4))
    assert said.startswith("Too few boxes of bolt (12 to learn from, AP 0.100), against AP 0.400 of all")
    per_class["bolt"]["num_boxes"] = 2  # of which nothing can be said
    [said] = verdict(evidence(LEVEL, metrics=metrics_of(0.4, **per_class), boxes_of_class=boxes, training_ap=0.4))
    assert said.startswith("Nothing stands out")


def test_small_objects_that_are_missed_ask_for_a_larger_size():
    sides = np.where(np.arange(1000) < 600, SIDE, 10.0)  # the last 400 are small; of all the first 650 are found
    [said] = verdict(evidence(LEVEL, num_found=650, sides=sides))
    assert said.startswith(
        "Too small for the size: 40% of the objects are under 16 pixels at --size 320; 12% of those are found, of the "
        "others 100%. Try --size 640 (then 0% are)"
    )
    [said] = verdict(evidence(LEVEL, num_found=1000, sides=sides))
    assert said.startswith("Nothing stands out")


def test_objects_shown_twice_are_told():
    truth = table(row_of_boxes(100))
    found = table(np.concatenate([row_of_boxes(80), row_of_boxes(20, shift=3.0)]))
    [said] = verdict(evidence(LEVEL, num_objects=100, errors=errors_of(truth, found)))
    assert said.startswith("Duplicates: 20 boxes repeat one of the 80 objects that are found.")


def test_skipped_steps_are_counted():
    lines = [{"epoch": n, "step": 50 * n, "loss": 1.0, "ap": ap} for n, ap in enumerate(LEVEL, start=1)]
    lines[2]["skipped"], lines[3]["skipped"] = 3, 4
    [said] = verdict(evidence(LEVEL, lines=lines))
    assert said.startswith("7 of 400 steps were skipped")


def test_nothing_to_judge():
    [said] = verdict(evidence(LEVEL, metrics=metrics_of(None)))
    assert said.startswith("The validation pictures have no object")


def test_several_things_stand_out_the_gravest_first():
    truth = table(row_of_boxes(40))
    found = table(np.concatenate([row_of_boxes(30), row_of_boxes(20, shift=3.0)]))
    said = verdict(evidence(LEVEL, num_objects=40, training_ap=0.95, errors=errors_of(truth, found)))
    assert [sentence.split(":")[0].split(" on")[0] for sentence in said] == ["Over-fitted", "Duplicates", "Measured"]


def test_a_curve_in_one_line():
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0, 7, 3]) == "▁█▄"
    assert sparkline(list(range(80)), width=8) == "▁▂▃▄▅▆▇█"
    lines = [{"epoch": 1, "loss": 4.0, "ap": 0.1}, {"epoch": 2, "loss": 3.0}, {"epoch": 3, "loss": 2.0, "ap": 0.3}]
    assert learning_curves(lines) == [
        "loss  █▅▁  4.000 to 2.000",
        "AP    ▁█  0.100 to 0.300, best 0.300 in epoch 3",
    ]
    assert learning_curves(lines[:1]) == []
