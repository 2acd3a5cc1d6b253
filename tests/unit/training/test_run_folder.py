import errno
import os
from pathlib import Path

import pytest
import torch

from detrove.errors import InputError
from detrove.training.run_folder import RunFolder, TrainingState, free_folder


def state(value: float) -> TrainingState:
    tensors = {"weight": torch.full((3,), value)}
    shared = {"head.weight": tensors["weight"], "second_head.weight": tensors["weight"]}
    return TrainingState(shared, tensors, None, {"epoch": int(value)})


def test_last_round_trip_with_shared_tensors(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    assert folder.load_last() is None
    folder.save_last(state(1))
    folder.save_last(state(2))
    loaded = folder.load_last()
    assert loaded is not None
    assert loaded.facts == {"epoch": 2}
    assert loaded.average is None
    assert torch.equal(loaded.model["second_head.weight"], torch.full((3,), 2.0))
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["last"]


def test_what_a_killed_process_left_half_written_is_no_run(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert not folder.is_begun
    (tmp_path / ".config.yaml.123.partial").write_text("cut")
    (tmp_path / "last.partial").mkdir()
    (tmp_path / "last.partial" / "model.safetensors").write_bytes(b"cut")
    assert not folder.is_begun
    folder.save_last(state(1))
    assert folder.is_begun
    (tmp_path / "last.partial").mkdir()
    folder.remove_partial()
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


def test_only_one_process_writes(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", writing=False)
    folder.save_last(state(1))
    folder.write_metrics([{"epoch": 1}])
    folder.remove_partial()
    assert not folder.path.exists()


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str):
    folder = RunFolder(tmp_path / "run")
    folder.save_last(state(1))

    def no_room(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, no_room)
        with pytest.raises(InputError, match="no room left"):
            folder.save_last(state(2))
        with pytest.raises(InputError, match=r"metrics\.jsonl"):
            folder.write_metrics([{"epoch": 1}])
    loaded = folder.load_last()
    assert loaded is not None
    assert loaded.facts == {"epoch": 1}
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["last"]


def test_a_crash_between_the_renames_loses_nothing(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.save_last(state(1))
    folder.last.rename(folder.path / "last.old")
    loaded = folder.load_last()
    assert loaded is not None
    assert loaded.facts == {"epoch": 1}
    folder.save_last(state(2))
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["last"]


def test_a_damaged_state_is_named(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.save_last(state(1))
    (folder.last / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot continue"):
        folder.load_last()


def test_taken_folders_are_refused(tmp_path: Path):
    RunFolder(tmp_path / "new").refuse_if_taken()
    RunFolder(tmp_path).refuse_if_taken()
    (tmp_path / "something").write_text("precious")
    for taken in (tmp_path, tmp_path / "something"):
        with pytest.raises(InputError, match="--resume"):
            RunFolder(taken).refuse_if_taken()


def test_metrics_round_trip(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    folder.write_metrics([{"epoch": 1, "ap": None}, {"epoch": 2}])
    assert folder.read_metrics() == [{"epoch": 1, "ap": None}, {"epoch": 2}]


def test_free_folder_numbers(tmp_path: Path):
    for expected in ("cells", "cells-2", "cells-3"):
        path = free_folder(tmp_path, "cells")
        assert path.name == expected
        path.mkdir()
