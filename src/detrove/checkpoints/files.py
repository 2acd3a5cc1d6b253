"""Writing a file so that a crash, a full disk or a lost machine leaves the last good one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detrove.errors import InputError


class WriteError(InputError):
    """A file could not be written: no room, or no leave."""


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to in this block, renamed over `path` at its end, or removed where it fails.

    The folder is made where it is missing.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, onto the disk, and rename it over `path` in one step.

    The folder is made where it is missing. Raises `WriteError` where the disk is full or the place cannot be written;
    whatever stood at `path` before is then still there, whole.
    """
    path = Path(path)
    try:
        with whole_or_not_at_all(path) as beside, beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in NO_ROOM:
            raise WriteError(
                f"{path}: no room left on the disk for {len(content) / 1e6:.1f} MB; free some or write elsewhere"
            ) from None
        raise WriteError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
