"""`detrove experiment`: the list, and one line for what is wrong; running one is `compare`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detrove.cli.main import make_app
from detrove.models import catalogue
from detrove.study.experiments import EXPERIMENTS

GUIDE = Path(__file__).parents[3] / "docs" / "why_was_detr_slow.md"


def test_without_a_name_it_lists_all(detrove_command: Callable) -> None:
    answer = detrove_command("experiment")
    assert answer.status == 0
    for name, each in EXPERIMENTS.items():
        assert f"{name}\n" in answer.out
        for arm in each.arms:
            assert f"    {arm.name} ({arm.model})" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 100
    listed = json.loads(detrove_command("experiment", "--json").out)
    assert list(listed) == list(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heads",), "which data?"),
        (("heads", "nowhere", "--epochs", "1"), "nowhere: no such data set"),
        (("head", "nowhere", "--epochs", "1"), "unknown experiment 'head': did you mean heads"),
        (("heads", "nowhere", "--epochs", "1", "--seeds", "-1"), "--seeds -1: whole numbers"),
    ],
)
def test_one_line_for_what_is_wrong(detrove_command: Callable, arguments: tuple[str, ...], message: str) -> None:
    answer = detrove_command("experiment", *arguments)
    assert answer.status == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1


def test_options_reach_the_experiment(
    detrove_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Nothing:
        summaries = ()

        def refuse_failures(self) -> None: ...

    def run(name: str, data: Path, **options: Any) -> Nothing:
        asked.update(options, name=name, data=data)
        return Nothing()

    monkeypatch.setattr("detrove.study.experiment", run)
    arguments = ("--minutes", "2", "--seeds", "0,3", "--set", "model.dim=64", "--output", tmp_path / "out")
    assert detrove_command("experiment", "anchors", tmp_path, *arguments).status == 0
    assert (asked["name"], asked["data"], asked["output"]) == ("anchors", tmp_path, tmp_path / "out")
    assert (asked["minutes"], asked["epochs"], asked["seeds"]) == (2.0, None, [0, 3])
    assert asked["settings"] == {"model.dim": 64}


def test_the_guided_pages_commands_are_real() -> None:
    """Every line of its code blocks is one that the command line understands, with names that there are."""
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("detrove ")]
    verbs = set()
    for line in lines:
        tokens = shlex.split(line)[1:]
        _, bound, _ = make_app().parse_args(tokens, print_error=False, exit_on_error=False)
        verbs.add(tokens[0])
        if tokens[0] == "compare":
            assert set(bound.arguments["models"].split(",")) <= set(catalogue.preset_names())
        if tokens[0] == "experiment":
            assert bound.arguments["name"] in EXPERIMENTS
    assert verbs == {"compare", "experiment", "study"}
    assert {name for line in lines for name in EXPERIMENTS if f" {name} " in line} == set(EXPERIMENTS)
