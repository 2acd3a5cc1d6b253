"""Freed memory that is kept while a block lasts, and handed back after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from detrove import memory

SCRIPT = """
import torch
from pathlib import Path
from detrove.memory import freed_memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def use():
    torch.ones(100 * 2**20 // 4)

use()
before = resident()
with freed_memory_kept():
    use()
    kept = resident() - before
    x = torch.ones(2**24)  # in the kept memory
    again = resident() - before
    del x
print(kept, again, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no such file on this system")
def test_keeps_in_the_block_and_gives_back_after_it():
    if memory._glibc() is None:
        pytest.skip("another library than glibc")
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    kept, again, after = map(float, output.split())
    assert kept > 90
    assert again < kept + 10
    assert after < 40


def test_does_nothing_without_glibc(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.freed_memory_kept():
        pass
