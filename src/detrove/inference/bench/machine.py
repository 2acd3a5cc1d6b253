"""What a machine can do and what a process takes of it: its peak of matrix products, and memory."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import torch

SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Sides of the square matrices that are multiplied, by kind of device."""
LEAST_PRODUCTS = 5

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def matrix_product_peak(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Multiply-adds a second of this machine's fastest product of two square matrices, at torch's number of threads.

    The best of all products that fit into the time, a few at least of each size: a peak, not an average.
    """
    sides = SIDES.get(device.type, SIDES["cpu"])
    return max(_fastest_product(side, dtype, device, seconds / len(sides)) for side in sides)


@torch.inference_mode()
def _fastest_product(side: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    one, other = (torch.ones(side, side, device=device).to(dtype) for _ in range(2))
    product = one @ other  # libraries make their plans at the first
    times: list[float] = []
    while len(times) < LEAST_PRODUCTS or sum(times) < seconds:
        synchronise(device)
        start = time.perf_counter()
        torch.mm(one, other, out=product)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return side**3 / min(times)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that clocks tell the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The most memory that was held since this was made: a GPU's by tensors, else the whole process's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.can_reset = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            self.can_reset = _reset_resident_peak()

    def read(self) -> tuple[int | None, str]:
        """Bytes, and in words how they were measured; None where this system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device), "of the GPU, held by tensors while predicting"
        if self.can_reset:
            return _status_bytes("VmHWM"), "resident in the whole process while predicting"
        if sys.platform == "win32":
            return None, "not measured on Windows"
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, "resident in the whole process since it began, loading included"


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now, where Linux tells."""
    return _status_bytes("VmRSS") if sys.platform == "linux" else None


def processor() -> str:
    """The name of the CPU."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _status_bytes(key: str) -> int:
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def _reset_resident_peak() -> bool:
    """Linux forgets the process's peak, where it is allowed to."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True
