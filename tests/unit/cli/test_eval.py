"""`detrove eval`: the same numbers on the screen, as JSON and in the report's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from detrove.evaluation import METRIC_NAMES, evaluate


def test_the_numbers(detrove_command: Callable, weights: Path, labelled: Path) -> None:
    answer = detrove_command("eval", weights, labelled, "--split", "train")
    assert answer.status == 0
    assert "3 pictures" in answer.err
    for name in METRIC_NAMES:
        assert f"\n{name} " in answer.out
    assert "\ndebris" in answer.out or "\ncell" in answer.out


def test_json_equals_what_python_gives(detrove_command: Callable, weights: Path, labelled: Path) -> None:
    metrics = json.loads(detrove_command("eval", weights, labelled, "--split", "train", "--json").out)
    assert metrics == json.loads(json.dumps(evaluate(weights, labelled, split="train").to_json()))
    assert metrics["ap50"] > 0.9


@pytest.mark.slow
def test_output_gets_the_numbers_and_a_report(
    detrove_command: Callable, weights: Path, labelled: Path, tmp_path: Path
) -> None:
    output = tmp_path / "measured"
    answer = detrove_command("eval", weights, labelled, "--split", "train", "--output", output)
    assert answer.status == 0
    assert sorted(path.name for path in output.iterdir()) == ["metrics.json", "report.html"]
    assert json.loads((output / "metrics.json").read_text())["ap50"] > 0.9
    assert "<html" in (output / "report.html").read_text(encoding="utf-8")
    assert detrove_command("eval", weights, labelled, "--split", "train", "--output", output).status == 2


def test_a_split_that_is_not_there(detrove_command: Callable, weights: Path, labelled: Path) -> None:
    answer = detrove_command("eval", weights, labelled)
    assert answer.status == 2
    assert "train" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_tiles(detrove_command: Callable, weights: Path, labelled: Path) -> None:
    whole = json.loads(detrove_command("eval", weights, labelled, "--split", "train", "--json").out)
    answer = detrove_command("eval", weights, labelled, "--split", "train", "--json", "--tiles", 32)
    assert "tiles of 32 pixels" in answer.err
    assert json.loads(answer.out)["ap"] != whole["ap"]
    larger = detrove_command("eval", weights, labelled, "--split", "train", "--json", "--tiles", 64)
    assert json.loads(larger.out) == whole
