"""Decoded pictures, kept for the next epoch: `--cache 2GB`."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrove.data.dataset import DetectionDataset
from detrove.data.views import Decoded, resample
from detrove.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bytes(text: str) -> int:
    """A size as people write it, in bytes; decimal units.

    >>> parse_bytes("2GB"), parse_bytes("1.5 mb"), parse_bytes("800")
    (2000000000, 1500000, 800)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None or float(match[1]) == 0:
        raise InputError(f"cache must be a size above 0, for example 2GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


class PictureCache:
    """The first pictures of a data set that fit into `num_bytes`, decoded and resized, filled as they are read.

    `largest_scale` (N,) is the largest part of its own size at which each picture is ever looked at; it is kept at that
    size. Which pictures are kept and how depends on the data set and the options alone, never on what was read before:
    a continued training sees the same samples.

    All worker processes share the arrays. They lie in a temporary file mapped into memory, whose room is taken at once:
    a full disk is an `InputError` now instead of a crash later, and the system gives back memory that others need.
    """

    def __init__(self, dataset: DetectionDataset, num_bytes: int, largest_scale: np.ndarray) -> None:
        sizes = np.array([(record.height, record.width) for record in dataset.records]).reshape(-1, 2)
        scale = np.minimum(largest_scale, 1.0)[:, None]
        self.shapes = np.maximum(1, np.ceil(sizes * scale - 1e-9)).astype(np.int64)
        self.sizes = sizes
        self.budget = num_bytes
        ends = np.cumsum(3 * self.shapes.prod(axis=1))
        self.num_kept = int(np.searchsorted(ends, num_bytes - len(sizes), side="right"))
        self._starts = np.concatenate([[0], ends])[: self.num_kept + 1]
        self.file = _take_room(int(self._starts[-1]) + self.num_kept)
        self._open()
        weakref.finalize(self, _remove, self.file, os.getpid())

    def _open(self) -> None:
        memory = np.memmap(self.file, dtype=np.uint8, mode="r+") if self.num_kept else np.empty(0, np.uint8)
        self._pixels, self._filled = memory[: self._starts[-1]], memory[self._starts[-1] :]

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapping: a process that is spawned maps the file itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_pixels", "_filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def describe(self) -> str:
        """One line: what is kept."""
        used = int(self._starts[-1])
        largest = self.shapes[: self.num_kept].max(axis=0, initial=0).tolist()
        return (
            f"cache: keeps {self.num_kept:,} of {len(self.shapes):,} pictures decoded, at up to "
            f"{largest[1]}x{largest[0]} pixels, in {used / 1e6:,.0f} of {self.budget / 1e6:,.0f} MB"
        )

    def get(self, index: int) -> Decoded | None:
        """The picture as it is kept; None where it is not kept, or not yet."""
        if index >= self.num_kept or not self._filled[index]:
            return None
        return self._decoded(index)

    def put(self, index: int, pixels: Tensor) -> Decoded | None:
        """Take the whole picture's pixels (3, H, W) in, and answer it as it is kept; None where it is not."""
        if index >= self.num_kept:
            return None
        height, width = self.shapes[index].tolist()
        if pixels.shape[1:] != (height, width):
            pixels = resample(pixels, (0, 0, pixels.shape[2], pixels.shape[1]), (height, width))
        kept = self._decoded(index)
        kept.pixels.copy_(pixels)
        self._filled[index] = 1
        return kept

    def keeps(self, index: int) -> bool:
        """Whether there is room for this picture."""
        return index < self.num_kept

    def _decoded(self, index: int) -> Decoded:
        height, width = self.shapes[index].tolist()
        flat = self._pixels[self._starts[index] : self._starts[index + 1]]
        pixels = torch.from_numpy(flat.reshape(height, width, 3)).permute(2, 0, 1)
        return Decoded(pixels, (width / int(self.sizes[index, 1]), height / int(self.sizes[index, 0])))


def _take_room(num_bytes: int) -> Path:
    handle, name = tempfile.mkstemp(prefix="detrove-cache-")
    path = Path(name)
    try:
        if num_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, num_bytes)
        elif num_bytes:
            os.truncate(handle, num_bytes)
    except OSError as error:
        path.unlink()
        raise InputError(
            f"{path.parent}: no room for a cache of {num_bytes / 1e6:,.0f} MB ({error.strerror}); make it smaller, or "
            "point TMPDIR to a larger disk"
        ) from None
    finally:
        os.close(handle)
    return path


def _remove(path: Path, owner: int) -> None:
    """Only the process that made the file removes it: a forked one also ends."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            path.unlink()
