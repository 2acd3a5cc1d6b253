"""Everything that `predict` takes as pictures, turned into upright RGB pictures."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from detrove.errors import InputError
from detrove.pictures import PICTURE_SUFFIXES, read_picture, to_rgb

ACCEPTED = "a path, a PIL picture, an (H, W, 3) or (H, W) array, a (3, h, w) tensor, or a list of those"

ROUNDING = 1e-3
"""How far floats may lie outside 0 to 1: arithmetic on them goes a little beyond."""


def expand(source: Any) -> list[Any] | None:
    """The single pictures that a list, a folder or a glob stands for, not yet read; None where it is one picture.

    A folder gives the pictures directly in it, by name. An empty folder, and a glob that nothing matches, raise
    `InputError`.
    """
    if isinstance(source, (str, Path)):
        return _expand_path(source)
    if isinstance(source, Sequence):
        return [single for item in source for single in _expand_item(item)]
    return None


def read_source(source: Any) -> Image.Image:
    """One picture as upright RGB: from a file, PIL, an array or a tensor (see `picture_of_array`)."""
    if isinstance(source, (str, Path)):
        return read_picture(source)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, Tensor):
        return picture_of_array(_tensor_as_array(source))
    if isinstance(source, np.ndarray):
        return picture_of_array(source)
    raise InputError(f"cannot read pictures from {type(source).__name__}: pass {ACCEPTED}")


def picture_of_array(array: np.ndarray) -> Image.Image:
    """An RGB picture of an array: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; 8-bit, 16-bit, or floats in [0, 1]."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise InputError(
            f"an array of shape {array.shape} is no picture: pass (H, W, 3) RGB or (H, W) grey, or a (3, h, w) tensor"
        )
    return to_rgb(Image.fromarray(_to_8_bit(array)))


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    """Values of the types that pictures come in as 8-bit ones."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.round(array.astype(np.float64) / 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= -ROUNDING and array.max() <= 1 + ROUNDING):
            raise InputError(
                f"a picture of {array.dtype} must hold values from 0 to 1, found {array.min():g} to {array.max():g}: "
                "divide it by its full range, or undo its normalisation"
            )
        return np.round(array.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)
    raise InputError(f"a picture of {array.dtype} cannot be read: pass uint8, uint16, or floats from 0 to 1")


def _tensor_as_array(tensor: Tensor) -> np.ndarray:
    """A (3, h, w) or (1, h, w) tensor as an (h, w, channels) array."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)} is no picture: pass (3, h, w), and a batch as a list of those"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.permute(1, 2, 0).numpy(force=True)


def _expand_item(item: Any) -> Iterator[Any]:
    """An item of a list: a folder or glob among them gives its pictures, everything else itself."""
    if isinstance(item, (list, tuple)):
        raise InputError(f"cannot read pictures from a list within a list: pass {ACCEPTED}")
    expanded = expand(item)
    yield from [item] if expanded is None else expanded


def _expand_path(source: str | Path) -> list[Path] | None:
    path = Path(source)
    if path.is_dir():
        pictures = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
        if not pictures:
            raise InputError(f"{path}: no pictures in this folder (looked for {', '.join(sorted(PICTURE_SUFFIXES))})")
        return pictures
    if path.exists() or not glob.has_magic(str(source)):
        return None
    matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True) if Path(match).is_file())
    if not matches:
        raise InputError(f"{source}: no file matches this pattern")
    return matches
