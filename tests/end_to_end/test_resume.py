"""A training that was killed and continued ends as one that was never stopped, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_points.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks its trainings")
def test_two_kill_points() -> None:
    """One within a step, one in the midst of writing a file; the script takes any number."""
    command = [sys.executable, str(SCRIPT), "--points", "2", "--seed", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "2 of 2 runs ended as the one that was never stopped"
    assert "killed in step" in lines[1]
    assert "file operation" in lines[2]
    assert "was over before" not in done.stdout
