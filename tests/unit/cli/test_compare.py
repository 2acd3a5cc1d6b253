"""`detrove compare`: the table, JSON, and one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from detrove.cli.compare import comparison_table
from detrove.data.scenes import make_scenes
from detrove.errors import InputError
from detrove.evaluation import METRIC_NAMES
from detrove.study import Comparison
from detrove.study.arms import Arm, ArmRecord, Conditions

TINY = (
    *("--epochs", "1", "--size", "64", "--batch-size", "4", "--backbone-weights", "none"),
    *("--set", "model.backbone=test_resnet", "--set", "model.dim=16", "--set", "model.num_heads=2"),
    *("--set", "model.num_queries=8", "--set", "workers=0"),
)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", {"train": 6, "val": 4, "test": 1})


@pytest.mark.slow
def test_from_pictures_to_a_page(detrove_command: Callable, scenes: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ("compare", scenes, "--models", "detr-nano", *TINY, "--output", output)
    answer = detrove_command(*arguments)
    assert answer.status == 0, answer.err
    assert "arm 1 of 1: detr-nano, seed 0" in answer.err
    assert "\ndetr-nano  " in answer.out
    assert f"report: {output / 'report.html'}" in answer.out
    again = detrove_command(*arguments, "--json")
    assert again.status == 0
    assert "finished before" in again.err
    assert json.loads(again.out) == json.loads((output / "comparison.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "detr-nan", "--epochs", "1"), "did you mean detr-nano"),
        (("--models", "detr-nano"), "one budget for all"),
        (("--models", "detr-nano", "--epochs", "1", "--minutes", "1"), "one budget for all"),
        (("--models", "detr-nano", "--epochs", "1", "--seeds", "0,x"), "--seeds 0,x: whole numbers"),
        (("--models", "detr-nano,detr-nano", "--epochs", "1"), "named twice"),
        (("--models", ",", "--epochs", "1"), "at least one model"),
        (("--models", "detr-nano", "--epochs", "1", "--set", "x=1"), "unknown setting 'x'"),
    ],
)
def test_one_line_for_what_is_wrong(
    detrove_command: Callable, scenes: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    answer = detrove_command("compare", scenes, *arguments, "--output", tmp_path / "out")
    assert answer.status == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_failed_arms_are_told_after_the_table_with_status_2(
    detrove_command: Callable, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(command: list[str]) -> int:
        ArmRecord.read(Path(command[3])).write(error="no room left on the disk")
        return 2

    monkeypatch.setattr("detrove.study.arms.run_process", process)
    answer = detrove_command("compare", scenes, "--models", "detr-nano", *TINY, "--output", tmp_path / "out")
    assert answer.status == 2
    assert "1 of 1 arms failed: detr-nano, seed 0: no room left on the disk" in answer.err.splitlines()[-1]


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    records = []
    for name, ap in (("deformable-nano", 0.123), ("anchors x, y, w, h, modulated", 0.3)):
        best = dict.fromkeys(METRIC_NAMES, ap) | {"ap_large": None}
        measured = {"latency": 0.0123, "parameters": 41_000_000, "multiply_adds": 1}
        record = ArmRecord(
            tmp_path / f"{name}.json",
            Arm(name, "detr-nano"),
            Conditions("data", epochs=100),
            trained={"best": best, "memory": 1234 * 2**20, "memory_kind": ""},
            measured=measured,
        )
        record.run.mkdir()
        (record.run / "metrics.jsonl").write_text(json.dumps({"epoch": 100, "minutes": 123.4}))
        records.append(record)
    table = comparison_table(Comparison(tmp_path, tuple(records)))
    lines = table.splitlines()
    assert lines[1].startswith("anchors x, y, w, h, modulated  0.300")
    figures = "deformable-nano 0.123 0.123 0.123 0.123 - 123.4 100 1234 MiB 12.3 41.00 M 1"
    assert " ".join(lines[2].split()) == figures
    assert max(len(line) for line in lines) <= 125


def test_failures_without_any_result_are_an_error_in_python(tmp_path: Path) -> None:
    record = ArmRecord(tmp_path / "a.json", Arm("a", "detr-nano"), Conditions("data", epochs=1), error="why")
    with pytest.raises(InputError, match="1 of 1 arms failed: a, seed 0: why"):
        Comparison(tmp_path, (record,)).refuse_failures()
