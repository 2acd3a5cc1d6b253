"""Foreign pickled files: their tensors come out, nothing in them runs, and every bad one gets its line."""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detrove.checkpoints.pickles import read_pickle
from detrove.errors import InputError

WEIGHTS = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2))


class Trap:
    """Fails the test by leaving a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture(params=[True, False], ids=["zip", "old format"])
def zipped(request: pytest.FixtureRequest) -> bool:
    """torch's two file formats: DETR's published files are of the old one."""
    return request.param


def saved(path: Path, content: Any, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "optimizer": {"state": {}}, "epoch": 3},
        {"state_dict": WEIGHTS},
        {"ema": {"module": WEIGHTS, "updates": 9}},
        {"model": {f"module.{key}": value for key, value in WEIGHTS.items()}},
    ],
    ids=["bare", "model", "state_dict", "ema", "DataParallel"],
)
def test_where_trainings_keep_their_weights(tmp_path: Path, content: Any, zipped: bool) -> None:
    found = read_pickle(saved(tmp_path / "a.pth", content, zipped))
    assert list(found.tensors) == ["a", "b"]
    assert torch.equal(found.tensors["a"], WEIGHTS["a"])
    assert found.arguments == {}


def test_the_trainings_settings_come_along(tmp_path: Path, zipped: bool) -> None:
    content = {"model": WEIGHTS, "args": Namespace(dilation=True, lr=1e-4, masks=None)}
    found = read_pickle(saved(tmp_path / "a.pth", content, zipped))
    assert found.arguments == {"dilation": True, "lr": 1e-4, "masks": None}
    assert list(found.tensors) == ["a", "b"]


def test_a_prefix_of_some_keys_only_is_their_name(tmp_path: Path) -> None:
    content = {"module.a": WEIGHTS["a"], "b": WEIGHTS["b"]}
    assert list(read_pickle(saved(tmp_path / "a.pth", content, True)).tensors) == ["module.a", "b"]


def test_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "it ran"
    path = saved(tmp_path / "a.pth", {"model": WEIGHTS, "args": Trap(mark)}, zipped)
    assert "could run code" in refused(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [(nn.Linear(2, 2), "torch.nn.modules.linear.Linear"), ({"model": WEIGHTS, "best": Fraction(1, 2)}, "Fraction")],
    ids=["a whole model", "an object"],
)
def test_what_needs_more_than_tensors(tmp_path: Path, content: Any, wanted: str, zipped: bool) -> None:
    message = refused(saved(tmp_path / "a.pth", content, zipped))
    assert f"{wanted}, which is more than tensors" in message
    assert ".safetensors" in message


@pytest.mark.parametrize("kept", [0, 3, 50, 400, -3])
def test_a_truncated_file(tmp_path: Path, zipped: bool, kept: int) -> None:
    path = saved(tmp_path / "a.pth", {"model": WEIGHTS}, zipped)
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"hello world " * 30, pickle.dumps({"a": 1})])
def test_no_file_of_torch(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert "cut off or something else" in refused(path)


def test_another_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("a.txt", "x")
    assert "cut off or something else" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "described"),
    [
        ({"optimizer": {}, "epoch": 3}, "entries named optimizer, epoch"),
        ({"model": {}}, "entries named model"),
        ({}, "nothing"),
        ([torch.zeros(1)], "a list"),
        (torch.zeros(1), "a Tensor"),
    ],
)
def test_no_weights_inside(tmp_path: Path, content: Any, described: str) -> None:
    assert f"holds no weights, but {described};" in refused(saved(tmp_path / "a.pth", content, True))


def refused(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message
