"""What `detrove.study` offers by name, and that its recorder brings no figures along."""

from __future__ import annotations

import ast
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


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'stury'"):
        getattr(study, "stury")  # noqa: B009


def test_editors_see_the_same_names_as_python() -> None:
    """The imports for type checkers and the table of homes cannot drift apart."""
    tree = ast.parse(Path(study.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == study._HOMES
    assert {*seen, "Recording", "record"} == set(study.__all__) <= set(dir(study))


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
