"""What stands around the training loop: Ctrl-C, progress, how often to validate, splits."""

import signal
from pathlib import Path

import pytest

from detrove.data import open_dataset
from detrove.errors import InputError
from detrove.training import progress
from detrove.training.clock import TrainingClock
from detrove.training.held_out import choose_splits, hold_out
from detrove.training.interruption import Interruption
from detrove.training.progress import PlainDisplay, Status, TerminalDisplay, make_display
from detrove.training.validation import affordable

STATUS = Status(epoch=3, fraction=0.25, seconds_left=75.0, losses={"loss": 4.5, "box": 0.25}, ap=0.125)


def test_the_first_ctrl_c_asks_and_the_second_stops():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_status_line_tells_losses_ap_and_time_left():
    assert STATUS.describe() == "epoch 3 · loss 4.500 · box 0.250 · best AP 0.125 · 1:15 left"
    assert "unknown" in Status(1, 0.0, None, {}, None).describe()


def test_plain_lines_come_at_most_each_half_minute_within_an_epoch(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = PlainDisplay()
    for _ in range(100):
        now[0] += 1.0
        display.step(STATUS)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_plain_epochs_tell_validation(capsys):
    PlainDisplay().epoch(STATUS, {"ap": 0.5, "ap50": None})
    assert "validation: AP 0.500, AP50 none" in capsys.readouterr().err


def test_short_epochs_without_validation_are_not_worth_a_line(capsys):
    PlainDisplay().epoch(STATUS, None)
    assert capsys.readouterr().err == ""


def test_the_terminal_shows_messages_and_the_bar(capsys):
    display = TerminalDisplay()
    display.message("scores [bold]")
    display.epoch(STATUS, {"ap": 0.5, "ap50": 0.75})
    display.close()
    shown = capsys.readouterr().err
    assert "scores [bold]" in shown
    assert "AP50 0.750" in shown
    assert "25%" in shown


def test_without_progress_nothing_is_told(capsys):
    display = make_display(progress=False)
    display.message("x")
    display.step(STATUS)
    display.epoch(STATUS, {"ap": 0.5, "ap50": 0.5})
    display.close()
    assert capsys.readouterr().err == ""


def test_validation_is_rationed_under_a_budget_only():
    clock = TrainingClock(budget=600, used=100)
    assert affordable(clock, spent=0, expected=5)
    assert not affordable(clock, spent=0, expected=6)
    assert not affordable(clock, spent=4, expected=4)
    assert affordable(TrainingClock(None, used=1), spent=100, expected=100)


def test_held_out_pictures_are_seeded_and_apart(squares_unsplit: Path):
    data = open_dataset(squares_unsplit)
    training, held_out = hold_out(data, 0.25, seed=3)
    ids = [{record.image_id for record in part.records} for part in (training, held_out)]
    assert [len(part) for part in ids] == [9, 3]
    assert not ids[0] & ids[1]
    assert {entry["id"] for entry in held_out.ground_truth()["images"]} == ids[1]
    assert {entry["image_id"] for entry in held_out.ground_truth()["annotations"]} <= ids[1]
    again = hold_out(data, 0.25, seed=3)[1]
    assert [record.image_id for record in again.records] == [record.image_id for record in held_out.records]


def test_the_test_split_is_never_validated_on(squares: Path, tmp_path: Path):
    for names, expected in [(("train", "test"), ("train", None)), (("train", "val", "test"), ("train", "val"))]:
        folder = tmp_path / "-".join(names)
        (folder / "annotations").mkdir(parents=True)
        for name in names:
            (folder / name).symlink_to(squares / "train")
            (folder / "annotations" / f"instances_{name}.json").symlink_to(
                squares / "annotations" / "instances_train.json"
            )
        chosen = choose_splits(folder)
        assert (chosen["train_split"], chosen["val_split"]) == expected


def test_without_a_train_split_the_user_is_asked(squares: Path, tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    for name in ("val", "test"):
        (tmp_path / name).symlink_to(squares / "val")
        (tmp_path / "annotations" / f"instances_{name}.json").symlink_to(squares / "annotations" / "instances_val.json")
    with pytest.raises(InputError, match="no split called train among val, test"):
        choose_splits(tmp_path)
