"""Loops compiled by Numba, shared out among the threads that torch's own operations run on.

Torch's OpenMP threads wait busily for the next operation, for milliseconds. Threads of our own would have to share the
cores with them: sampling 500 tokens behind a linear layer took two threads of ours as long as one, 0.8 to 1.3 ms, and
takes torch's two 0.5 to 0.6. OpenMP runs any C function of one address in parallel; here it is a Numba callback, and at
the address lie numbers: first how many shares have been taken, then what the loop needs. Each thread takes shares until
none is left. Where torch's OpenMP cannot be had (Windows; a forked process, in which its threads are gone), threads of
our own take them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_loaded_in = os.getpid()

loop = numba.cfunc(types.void(types.CPointer(types.int64)), cache=True)
"""Makes a loop of a function that takes the address of its numbers."""


def compiled(function: Callable[..., Any], inline: bool = False) -> Any:
    """Compile what a loop calls; with `inline` into whatever calls it, so that its numbers may be constants there.

    Sums may be reordered, which lets them fill vector registers; not-a-numbers must still come through.
    """
    options = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "boundscheck": False}
    return numba.njit(nogil=True, cache=True, forceinline=inline, **options)(function)


def _next_share(typingctx: Any, counter: Any) -> Any:  # noqa: ARG001

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.atomic_rmw("add", arguments[0], context.get_constant(types.int64, 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


next_share: Any = intrinsic(_next_share)
"""The number of the next share that no thread has taken: adds one to the int64 at an address, atomically."""


def _pointer_to(typingctx: Any, address: Any, number: Any) -> Any:  # noqa: ARG001
    """A number as the address of numbers of a type."""
    kind = types.CPointer(number.instance_type)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, number), generate


_pointer: Any = intrinsic(_pointer_to)


@compiled
def array_at(address, shape, number):
    """The array of that shape and type of number at an address."""
    return numba.carray(_pointer(address, number), shape)


def run(body: Any, numbers: Sequence[int], threads: int) -> None:
    """Run a `loop` with its numbers, which it finds behind the counter, on so many threads."""
    data = np.array([0, *numbers], dtype=np.int64)
    if threads == 1:
        body.ctypes(ctypes.cast(data.ctypes.data, body.ctypes.argtypes[0]))
    elif (openmp := _openmp()) is not None and os.getpid() == _loaded_in:
        openmp.GOMP_parallel(ctypes.c_void_p(body.address), ctypes.c_void_p(data.ctypes.data), threads, 0)
    else:
        _run_on_own_threads(body, data, threads)


def _run_on_own_threads(body: Any, data: np.ndarray, threads: int) -> None:
    address = ctypes.cast(data.ctypes.data, body.ctypes.argtypes[0])
    others = [_pool(threads).submit(body.ctypes, address) for _ in range(threads - 1)]
    body.ctypes(address)
    for other in others:
        other.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Waiting threads. After a fork the old ones are gone, so that each process has its own."""
    key = os.getpid(), threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads - 1, thread_name_prefix="detrove-loops")
    return _pools[key]


@cache
def _openmp() -> Any:
    """The OpenMP library that torch has loaded, if it starts regions as GNU's does (Intel's and LLVM's do on Linux)."""
    beside_torch = (Path(torch.__file__).parent / "lib").glob("lib*omp*.so*")
    for name in (*map(str, beside_torch), "libgomp.so.1", "libiomp5.so", "libomp.so"):
        with suppress(OSError, AttributeError):  # is not loaded, or has no such function
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            assert library.GOMP_parallel
            return library
    return None
