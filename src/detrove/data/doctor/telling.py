"""A diagnosis in words, for a terminal: in full, and in a few lines before a training."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

from detrove.data.dataset import FORMAT_NAMES
from detrove.data.doctor.check import Diagnosis
from detrove.data.doctor.findings import Finding, Place

NARROWEST, WIDEST = 60, 100
EXAMPLES = 3
_INDENT = "    "


def in_full(diagnosis: Diagnosis, width: int = WIDEST) -> str:
    """Every finding with what it means, what to do, and its first places; faults first, remarks apart."""
    width = max(NARROWEST, min(width, WIDEST))
    faults, remarks = diagnosis.of("fault"), diagnosis.of("remark")
    lines = [*_wrapped(summary(diagnosis), width), ""]
    lines += _heading("Faults", faults)
    for finding in faults:
        lines += _block(finding, diagnosis.path, width)
    lines += _heading("Remarks", remarks)
    for finding in remarks:
        lines += _block(finding, diagnosis.path, width)
    return "\n".join(lines).rstrip()


def summary(diagnosis: Diagnosis) -> str:
    """One line: where, what, how much, how much of it was decoded."""
    splits = "; ".join(
        f"{split}: {len(annotations):,} pictures, {annotations.num_boxes:,} boxes"
        for split, annotations in diagnosis.splits.items()
    )
    decoded = "all" if diagnosis.num_looked == diagnosis.num_pictures else f"{diagnosis.num_looked:,}"
    return f"{diagnosis.path}: {FORMAT_NAMES[diagnosis.format]}; {splits or 'nothing can be read'}; {decoded} decoded"


def in_short(diagnosis: Diagnosis) -> list[str]:
    """A line for each fault, and where the rest is told; nothing where there is no fault."""
    faults = diagnosis.of("fault")
    lines = [f"{finding.amount}: {finding.kind}: {_first_place(finding, diagnosis.path)}" for finding in faults]
    return [*lines, f"what each means, and what to do: detrove data check {diagnosis.path}"] if lines else []


def verdict(diagnosis: Diagnosis) -> str:
    """One line on the faults: how many of what."""
    kinds = ", ".join(f"{finding.kind} ({finding.amount})" for finding in diagnosis.of("fault"))
    return f"{diagnosis.path}: {kinds}" if kinds else f"{diagnosis.path}: no faults"


def place_in(place: Place, root: Path) -> str:
    """A place in one line, its file as seen from the data set's folder."""
    file = os.path.relpath(place.file, root) if root.is_dir() and place.file.is_relative_to(root) else str(place.file)
    return f"{file if place.line is None else f'{file}:{place.line}'}: {place.note}"


def _first_place(finding: Finding, root: Path) -> str:
    if not finding.places:
        return finding.meaning
    first, *others = finding.places
    return place_in(first, root) + (f" (and {len(others):,} more)" if others else "")


def _heading(name: str, findings: list[Finding]) -> list[str]:
    return [f"{name}: {len(findings) or 'none'}", *([] if findings else [""])]


def _block(finding: Finding, root: Path, width: int) -> Iterator[str]:
    yield f"  {finding.kind:<24}{finding.amount:>14}"
    yield from _wrapped(finding.meaning, width, _INDENT)
    yield from _wrapped(f"→ {finding.remedy}", width, _INDENT)
    for place in finding.places[:EXAMPLES]:
        yield from _wrapped(place_in(place, root), width, _INDENT + "· ")
    if len(finding.places) > EXAMPLES:
        yield f"{_INDENT}· … and {max(finding.count, len(finding.places)) - EXAMPLES:,} more"
    yield ""


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=" " * max(len(indent), 2), break_on_hyphens=False
    )
