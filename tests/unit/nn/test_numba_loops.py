"""Every share of a loop is taken once, by torch's threads and by our own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")

from detrove.nn import numba_loops  # noqa: E402
from detrove.nn.numba_loops import array_at, loop, next_share, run  # noqa: E402


@loop
def count(at):
    """Adds one to each share that is taken."""
    taken = array_at(at[2], (at[1],), numba.int64)
    share = next_share(at)
    while share < at[1]:
        taken[share] += 1
        share = next_share(at)


def counted(shares: int, threads: int) -> np.ndarray:
    taken = np.zeros(shares, np.int64)
    run(count, [shares, taken.ctypes.data], threads)
    return taken


@pytest.mark.parametrize("shares", [0, 1, 2, 200_000])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("by", ["OpenMP", "own threads"])
def test_every_share_is_taken_once(by: str, threads: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "own threads":
        monkeypatch.setattr(numba_loops, "_openmp", lambda: None)
    assert (counted(shares, threads) == 1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="the names of the libraries are Linux's")
def test_torchs_own_openmp_is_found() -> None:
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no OpenMP")
    assert numba_loops._openmp() is not None
