"""Everything that may be handed to `predict` comes out as the same upright RGB picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.errors import InputError
from detrove.inference.sources import expand, read_source


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_the_same_picture_in_every_form(tmp_path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = {
        "path": tmp_path / "a.png",
        "string": str(tmp_path / "a.png"),
        "pil": Image.fromarray(array),
        "array": array,
        "array seen backwards": array[:, ::-1].copy()[:, ::-1],
        "float array": array / 255,
        "float32 array": (array / 255).astype(np.float32),
        "float array a little beyond its range": (array / 255 - 0.5) * (1 + 1e-6) + 0.5,
        "16-bit array": array.astype(np.uint16) * 257,
        "tensor": tensor,
        "float tensor": tensor / 255,
        "half tensor": (tensor / 255).double(),
        "tensor that asks for its gradient": (tensor / 255).requires_grad_(),
    }
    for name, form in forms.items():
        assert expand(form) is None, name
        np.testing.assert_array_equal(np.asarray(read_source(form)), array, err_msg=name)


def test_grey_and_transparent_arrays(array: np.ndarray) -> None:
    grey = array[..., 0]
    for form in (grey, grey[..., None], grey / 255, torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(np.asarray(read_source(form)), np.repeat(grey[..., None], 3, axis=2))
    see_through = np.dstack([array, np.zeros((6, 8), dtype=np.uint8)])
    assert np.asarray(read_source(see_through)).min() == 255
    mask = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(np.asarray(read_source(mask))[..., 1], mask * 255)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 6, 8), dtype=np.uint8), r"\(3, 6, 8\) is no picture"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "is no picture"),
        (np.full((4, 4), 3.5), "values from 0 to 1, found 3.5"),
        (np.full((4, 4), np.nan), "values from 0 to 1"),
        (np.zeros((4, 4), dtype=np.int64), "int64 cannot be read"),
        (torch.zeros(2, 3, 4, 4), "a batch as a list"),
        (torch.zeros(4, 4, 3), r"pass \(3, h, w\)"),
        (torch.full((3, 4, 4), -0.5), "undo its normalisation"),
        (7, "cannot read pictures from int"),
        (None, "cannot read pictures from NoneType"),
    ],
)
def test_what_is_no_picture_says_what_would_be(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_source(source)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, array: np.ndarray) -> Path:
    for name in ("b.png", "a.PNG", "c.jpg"):
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "deeper.png").mkdir()
    Image.fromarray(array).save(tmp_path / "deeper.png" / "d.png")
    return tmp_path


def test_folders_and_globs(folder: Path) -> None:
    assert expand(folder) == [folder / "a.PNG", folder / "b.png", folder / "c.jpg"]
    assert expand(str(folder / "*.png")) == [folder / "b.png"]
    assert expand(str(folder / "**" / "*.png")) == [folder / "b.png", folder / "deeper.png" / "d.png"]
    assert expand([folder / "c.jpg", str(folder / "[ab].*")]) == [
        folder / "c.jpg",
        folder / "a.PNG",
        folder / "b.png",
    ]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "street[1].png"
    Image.fromarray(array).save(path)
    assert expand(path) is None
    assert read_source(path).size == (8, 6)


def test_lists_keep_their_order_and_stay_unread(array: np.ndarray) -> None:
    first, second = expand((array, "missing.jpg")) or []
    assert first is array
    assert second == "missing.jpg"
    assert expand([]) == []


def test_nothing_found_is_an_error(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError, match="no pictures in this folder"):
        expand(tmp_path)
    with pytest.raises(InputError, match="no file matches"):
        expand(str(tmp_path / "*.jpg"))
    with pytest.raises(InputError, match="list within a list"):
        expand([[array]])


@pytest.mark.skipif(os.name == "nt", reason="a wildcard cannot stand in a file name there")
def test_a_missing_file_is_left_for_reading_to_report(tmp_path: Path) -> None:
    assert expand(tmp_path / "missing.jpg") is None
    with pytest.raises(InputError, match=r"missing\.jpg: no such picture"):
        read_source(tmp_path / "missing.jpg")
