"""`detrove study`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrove.study import figures


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "DPI", 40)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_page_and_its_summary(detrove_command, weights, photos):
    answer = detrove_command("study", weights, photos / "a.jpg", "--query", 2, "--pixel", "10,20")
    assert answer.status == 0
    assert answer.out.startswith("query 2:")
    assert "where it looks is decided by content · content" in answer.out
    assert answer.err.strip() == "report: study/a/report.html"
    again = detrove_command("study", weights, photos / "a.jpg", "--json", "--head", 1)
    assert again.err.strip() == "report: study/a-2/report.html"
    assert json.loads(again.out)["detector"] == "detr-nano"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", 6], "query 6: this detector has queries 0 to 5"),
        (["--pixel", "1"], "pixel '1': give x,y in pixels of the picture, such as 120,80"),
        (["--temperature", 0], "temperature 0 must be above 0"),
        (["--output", "."], "name another --output"),
    ],
)
def test_refusals(detrove_command, weights, photos, options, message):
    answer = detrove_command("study", weights, photos / "a.jpg", *options)
    assert answer.status == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_no_such_picture(detrove_command, weights, photos):
    answer = detrove_command("study", weights, photos / "none.jpg")
    assert answer.status == 2
    assert "none.jpg" in answer.err


def test_queries_over_a_data_set(detrove_command, weights, labelled):
    answer = detrove_command("study", weights, "--data", labelled, "--split", "train", "--output", "queries")
    assert answer.status == 0
    assert "queries" in answer.out
    assert answer.err.strip() == "report: queries/report.html"
    assert json.loads(Path("queries/study.json").read_text())["queries"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "study what? name a picture"), (["a.jpg", "--data", "cells"], "either the picture a.jpg or --data cells")],
)
def test_a_picture_or_a_data_set(detrove_command, weights, arguments, message):
    answer = detrove_command("study", weights, *arguments)
    assert answer.status == 2
    assert message in answer.err
