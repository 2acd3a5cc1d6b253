"""Memory of the process: how much may be had, and freed memory kept instead of being handed back to the system.

A step on the CPU frees and asks for gigabytes in large pieces. glibc hands each back to the system, which must clear
every page before it gives it out again: in Deformable DETR's training step that was a third of the time. Kept, the same
memory serves every step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
"""mallopt's numbers for: the free bytes at the end that are handed back, how much more is asked for than needed, from
which size a piece is had from the system by itself, how many pieces may be had so."""
KEEP = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20, MMAP_MAX: 0}
USUAL = {TRIM_THRESHOLD: 64 * 2**20, TOP_PAD: 128 * 2**10, MMAP_THRESHOLD: 32 * 2**20, MMAP_MAX: 65536}
"""What glibc's own adapting arrives at after pieces of more than 32 MiB; it no longer adapts once it was told."""

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
CONTAINER_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Where the two kinds of control groups tell a container's limit and what of it is in use."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """In this block the process keeps what it frees; after it, it hands it back. Does nothing without glibc.

    The settings are the whole process's, so nested or simultaneous blocks end with the first that ends.
    """
    _set(KEEP)
    try:
        yield
    finally:
        _set(USUAL)
        give_back()


def give_back() -> None:
    """Hand all freed memory back to the system. Does nothing without glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def available_memory() -> int | None:
    """Bytes that may be had without others being put out of memory; None where the system does not tell (not Linux).

    The least of what the machine has available and of what a container's limit leaves.
    """
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    left = [kilobytes[0] * 1024] if kilobytes else []
    for limit, used in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no container, or one whose limit is called "max"
            left.append(int((CGROUPS / limit).read_text()) - int((CGROUPS / used).read_text()))
    return max(0, min(left)) if left else None


def _set(options: dict[int, int]) -> None:
    library = _glibc()
    if library is not None:
        for option, value in options.items():
            library.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such library
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
