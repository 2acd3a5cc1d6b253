"""What `detrove.study` offers by name, and that its recorder brings no figures along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from detrove import study


@pytest.mark.parametrize("name", study.__all__)
def test_every_name_resolves_and_is_explained(name: str) -> None:
    value = getattr(study, name)
    assert callable(value)
    assert len(value.__doc__) > 30


def test_no_file_takes_the_place_of_a_name() -> None:
    files = {file.stem for file in Path(study.__file__).parent.glob("*.py")}
    assert not files & set(study._HOMES)


@pytest.mark.slow
def test_the_recorder_brings_no_figures_along() -> None:
    """A service imports it with every start."""
    code = "import sys, detrove.study.record; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = answer.stdout.split()
    assert "detrove.study.record" in loaded
    heavy = ("matplotlib", "detrove.evaluation", "detrove.training", "detrove.study.figures")
    assert [name for name in loaded if name.startswith(heavy)] == []
