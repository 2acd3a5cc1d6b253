"""Writing a file so that a crash, a full disk or a lost machine leaves the last good one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from detrove.errors import InputError


class WriteError(InputError):
    """A file could not be written: no room, or no leave."""


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, onto the disk, and rename it over `path` in one step.

    The folder is made where it is missing. Raises `WriteError` where the disk is full or the place cannot be written;
    whatever stood at `path` before is then still there, whole.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise WriteError(
                f"{path}: no room left on the disk for {len(content) / 1e6:.1f} MB; free some or write elsewhere"
            ) from None
        raise WriteError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
