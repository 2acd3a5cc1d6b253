"""The pages in docs/: every detector has one, they name only what exists, and their figures are the presets'."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import detrove
from detrove.models import catalogue

SOURCE = Path(detrove.__file__).parent
DOCS = Path(__file__).resolve().parents[3] / "docs"
NAMES = {**{name: name for name in catalogue.DETECTORS}, "dn": "denoising"}
"""The pages and the files in `models/` that they speak of."""
PAGES = [f"{name}.md" for name in NAMES]
PARENTS = {
    "deformable": "detr",
    "conditional": "detr",
    "stacked": "detr",
    "dab": "conditional",
    "dab_deformable": "deformable",
    "dino": "dab_deformable",
    "detrove": "deformable",
}


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/make_diagrams.py as a module."""
    spec = importlib.util.spec_from_file_location("make_diagrams", DOCS / "make_diagrams.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def names_in(name: str) -> set[str]:
    """Functions, classes, `Class.method` and every other name of a detector's file and of the blocks below it."""
    files = [SOURCE / "models" / f"{name}.py", *(SOURCE / "nn").glob("*.py"), *(SOURCE / "losses").glob("*.py")]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                found |= {node.name, *(f"{node.name}.{method.name}" for method in methods)}
            elif isinstance(node, ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def named_in(page: str) -> Iterator[str]:
    """What stands in backticks in the last column of the tables that say where something is."""
    for table in re.findall(r"^\|[^\n]*\| where \|\n(?:\|[^\n]*\n)+", page, flags=re.MULTILINE):
        for row in table.splitlines()[2:]:
            yield from re.findall(r"`([^`]+)`", row.split(" | ")[-1])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_what_exists(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(named_in(text))
    assert len(named) >= 4
    assert named - names_in(NAMES[page.removesuffix(".md")]) == set()


def test_a_name_that_does_not_exist_would_be_found() -> None:
    assert "DETR.forward" in names_in("detr")
    assert "DETR.backward" not in names_in("detr")
    assert list(named_in("| the paper | where |\n|---|---|\n| `x` | `Gone.forward`: `y` |\n")) == ["Gone.forward", "y"]


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (DOCS / link).exists()] == []


def test_the_index_links_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if f"]({page})" not in index] == []


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_are_the_presets(name: str) -> None:
    """A detector's own page tells those of its file; DN-DETR's are in two files and on a page of their own."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([0-9.]+) \|", text, flags=re.MULTILINE))
    presets = catalogue.PRESETS if name == "dn" else catalogue.DETECTORS[name].PRESETS
    published = {
        key: preset.published.split()[1].rstrip(",")
        for key, preset in presets.items()
        if preset.published and key.startswith("dn-") == (name == "dn")
    }
    assert told == published


@pytest.mark.parametrize("name", PARENTS)
def test_the_size_of_the_diff_is_about_right(name: str) -> None:
    """The page quotes what git counts; difflib finds nearly the same lines."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    [(come, go)] = re.findall(r"^(\d+) lines come, (\d+) go", text, flags=re.MULTILINE)
    assert f"src/detrove/models/{PARENTS[name]}.py src/detrove/models/{name}.py" in text
    old, new = (
        (SOURCE / "models" / f"{file}.py").read_text(encoding="utf-8").splitlines() for file in (PARENTS[name], name)
    )
    lines = list(difflib.unified_diff(old, new, n=0))[2:]
    assert sum(line.startswith("+") for line in lines) == pytest.approx(int(come), rel=0.25)
    assert sum(line.startswith("-") for line in lines) == pytest.approx(int(go), rel=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_drawings_are_what_the_script_makes(name: str, drawings: ModuleType) -> None:
    file = DOCS / "pictures" / f"{name}.svg"
    assert file.read_text(encoding="utf-8") == drawings.DIAGRAMS[name].svg(), "run: python docs/make_diagrams.py"
    assert f"(pictures/{name}.svg)" in (DOCS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_texts_fit_their_boxes(name: str, drawings: ModuleType) -> None:
    nodes = drawings.DIAGRAMS[name].nodes.values()
    assert [line for node in nodes for line in node.lines if len(line) > 25] == []
    assert [node.title for node in nodes if len(node.title) > 18 or len(node.lines) > 3] == []
