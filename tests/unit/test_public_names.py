"""The public surface: exactly these names, each of them real and explained."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import detrove
from detrove import study

NAMES = [
    "Detections",
    "Detector",
    "ImageBatch",
    "InputError",
    "LabelMap",
    "Predictions",
    "Preprocessing",
    "Targets",
    "__version__",
    "create",
    "criterion_for",
    "evaluate",
    "load",
    "optimize",
    "record",
    "save",
    "train",
]


def test_the_list_is_the_one_that_users_rely_on() -> None:
    assert detrove.__all__ == NAMES
    assert sorted(NAMES) == NAMES
    assert set(NAMES) <= set(dir(detrove))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_is_explained(name: str) -> None:
    value = getattr(detrove, name)
    assert name == "__version__" or len(value.__doc__) > 30


@pytest.mark.parametrize("package", [detrove, study])
def test_another_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'trane'"):
        getattr(package, "trane")  # noqa: B009


@pytest.mark.parametrize(("package", "others"), [(detrove, {"__version__"}), (study, {"Recording", "record"})])
def test_editors_see_the_same_names_as_python(package: Any, others: set[str]) -> None:
    """The imports for type checkers and the table of homes cannot drift apart."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == package._HOMES
    assert {*seen, *others} == set(package.__all__) <= set(dir(package))


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, detrove; print(sorted({'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_version_is_the_installed_one() -> None:
    assert detrove.__version__.count(".") >= 2
