"""`detrove models`: what the table says is what is built."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from detrove.cli.models import summarise
from detrove.models import catalogue


def test_every_detector_has_a_line(detrove_command: Callable) -> None:
    answer = detrove_command("models")
    assert answer.status == 0
    assert [line.split()[0] for line in answer.out.splitlines()] == ["model", *catalogue.preset_names()]


def test_parameters_are_those_of_the_built_model() -> None:
    model = catalogue.create("deformable-nano", backbone_frozen=True)
    assert summarise("deformable-nano")["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "detr-r50",
            {"encoder": "6 dense", "cross_attention": "6 dense", "boxes": "from the query", "loss": "softmax"},
        ),
        ("deformable-r50", {"encoder": "6 deformable", "cross_attention": "6 deformable", "boxes": "from a point"}),
        ("deformable-refine-r50", {"boxes": "refined", "loss": "focal", "num_queries": 300}),
        ("deformable-two-stage-r50", {"boxes": "proposed, refined"}),
        ("detr-r50-dc5", {"backbone": "resnet50 (DC5)", "longer": 1333}),
    ],
)
def test_what_each_is_made_of(name: str, facts: dict[str, object]) -> None:
    assert {key: value for key, value in summarise(name).items() if key in facts} == facts


def test_one_detector_with_all_its_settings(detrove_command: Callable) -> None:
    answer = detrove_command("models", "detr-r50")
    assert "no_object_weight" in answer.out
    assert "41.5 M" in answer.out


def test_json(detrove_command: Callable) -> None:
    rows = json.loads(detrove_command("models", "--json").out)
    assert [row["name"] for row in rows] == catalogue.preset_names()
    assert json.loads(detrove_command("models", "detr-nano", "--json").out)["settings"]["detector"] == "detr"


def test_an_unknown_name_offers_the_nearest(detrove_command: Callable) -> None:
    answer = detrove_command("models", "detrove-nan")
    assert answer.status == 2
    assert "did you mean detrove-nano" in answer.err
