"""`detrove models`: what the table says is what is built."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from detrove.models import catalogue


@pytest.mark.slow
def test_every_detector_has_a_line_that_fits_a_terminal(detrove_command: Callable) -> None:
    answer = detrove_command("models")
    assert answer.status == 0
    table, legend = answer.out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["model", *catalogue.preset_names()]
    assert max(len(line) for line in answer.out.splitlines()) <= 120
    assert "640×480" in legend


@pytest.mark.slow
def test_the_whole_catalogue_as_json(detrove_command: Callable) -> None:
    rows = json.loads(detrove_command("models", "--json").out)
    assert [row["name"] for row in rows] == catalogue.preset_names()


def test_one_detector_with_its_paper_and_all_its_settings(detrove_command: Callable) -> None:
    answer = detrove_command("models", "detr-nano")
    assert answer.out.startswith("DETR: End-to-End Object Detection with Transformers")
    assert "no_object_weight" in answer.out
    assert "at 320×240 pixels" in answer.out
    assert "Differs" not in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 120


def test_one_detector_says_what_differs(detrove_command: Callable) -> None:
    answer = detrove_command("models", "stacked-nano")
    assert "\nDiffers from DETR in:\n- two stacks" in answer.out
    assert "2 + 1 dense (8/1 heads)" in answer.out


def test_one_detector_as_json(detrove_command: Callable) -> None:
    row = json.loads(detrove_command("models", "detr-nano", "--json").out)
    assert row["settings"]["detector"] == "detr"
    assert row["queries"] == 100


def test_an_unknown_name_offers_the_nearest(detrove_command: Callable) -> None:
    answer = detrove_command("models", "detrove-nan")
    assert answer.status == 2
    assert "did you mean detrove-nano" in answer.err
