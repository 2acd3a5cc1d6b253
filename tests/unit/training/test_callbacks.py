"""Callbacks hear of steps, epochs and the end; a training ends early where one asks for it or AP no longer rises."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from detrove.errors import InputError
from detrove.training import train
from detrove.training.callbacks import Callbacks, EpochDone, RunDone, StepDone, validations_without_gain
from detrove.training.events import Events, scalars

EXAMPLES = Path(__file__).parents[3] / "examples"
EPOCH = EpochDone({"epoch": 1, "step": 3, "loss": 2.0, "ap": 0.5, "watch": {"box_spread": 0.1, "told": None}}, None)


class Everything:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_step(self, event: StepDone) -> None:
        self.events.append(event)

    def on_epoch(self, event: EpochDone) -> None:
        self.events.append(event)

    def on_end(self, event: RunDone) -> None:
        self.events.append(event)


class EndsAt:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, event: EpochDone) -> bool:
        return event.line["epoch"] == self.epoch


@pytest.mark.slow
def test_a_training_tells_its_steps_its_epochs_and_its_end(squares: Path, tmp_path: Path, tiny_options):
    told = Everything()
    run = train(squares, **tiny_options(tmp_path / "run", epochs=2), callbacks=[told])
    kinds = [type(event) for event in told.events]
    assert kinds == [*[StepDone] * 3, EpochDone] * 2 + [RunDone]
    steps = [event for event in told.events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event.epoch for event in steps] == [1, 1, 1, 2, 2, 2]
    assert [event.fraction for event in steps] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [dict(event.line) for event in told.events if isinstance(event, EpochDone)] == lines
    assert lines[0]["loss"] == pytest.approx(sum(event.losses["loss"] for event in steps[:3]) / 3)
    assert told.events[-1].output == run.output
    assert told.events[-1].metrics == run.metrics


@pytest.mark.slow
def test_a_callback_may_end_the_training(squares: Path, tmp_path: Path, capsys, tiny_options):
    options = tiny_options(tmp_path / "run", epochs=9, progress=True)
    run = train(squares, **options, callbacks=[EndsAt(2)])
    assert "stopping early: a callback asked for it" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text())["epoch"] == 2
    assert run.metrics is not None


@pytest.mark.slow
def test_without_progress_for_too_long_a_training_ends(squares: Path, tmp_path: Path, capsys, tiny_options):
    still = {"learning_rate": 1e-12, "backbone_learning_rate": 1e-12, "weight_decay": 0.0, "patience": 2}
    options = tiny_options(tmp_path / "run", epochs=9, progress=True, settings=still)
    train(squares, **options)
    assert "stopping early: no better AP in 2 validations (patience)" in capsys.readouterr().err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    train(squares, **options, resume=True)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("aps", "waited"), [([], 0), ([None], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.2, 0.2, 0.1], 2), ([0.3, 0.1, 0.4], 0)]
)
def test_waiting_is_counted_from_the_first_best(aps: list[float | None], waited: int):
    assert validations_without_gain([{"ap": ap} for ap in aps]) == waited


def test_an_object_that_hears_nothing_is_refused():
    with pytest.raises(InputError, match="callbacks: dict has none of the methods on_step, on_epoch and on_end"):
        Callbacks([{}])  # pyright: ignore[reportArgumentType]


def test_all_are_told_even_where_one_ends_it():
    told = Everything()
    assert Callbacks([EndsAt(1), told]).on_epoch(EPOCH)
    assert told.events == [EPOCH]


def test_events_have_a_name_for_every_number(tmp_path: Path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = Events(tmp_path)
    events.on_epoch(EPOCH)
    events.on_end(RunDone(tmp_path, None, ()))
    read = reading.EventAccumulator(str(tmp_path)).Reload()
    assert {name: read.Scalars(name)[0].value for name in read.Tags()["scalars"]} == pytest.approx(
        dict(scalars(EPOCH.line))
    )
    assert set(read.Tags()["scalars"]) == {
        *("training/epoch", "training/step", "training/loss", "validation/ap", "watch/box_spread")
    }


def test_a_full_disk_ends_the_events_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard")
    events = Events(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(events._writer, "flush", full)
    with pytest.warns(UserWarning, match=r"no more events for TensorBoard \(No space left on device\)"):
        events.on_epoch(EPOCH)
    events.on_epoch(EPOCH)
    events.on_end(RunDone(tmp_path, None, ()))


@pytest.mark.slow
def test_the_example_logs_elsewhere(squares: Path, tmp_path: Path, tiny_options):
    log = runpy.run_path(str(EXAMPLES / "logger_callback.py"))["CsvLog"](tmp_path / "log.csv")
    train(squares, **tiny_options(tmp_path / "run", epochs=4), callbacks=[log])
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["step"] for row in rows if row["what"] == "loss"] == ["10"]
    assert [row["step"] for row in rows if row["what"] == "AP"] == ["3", "6", "9", "12"]
