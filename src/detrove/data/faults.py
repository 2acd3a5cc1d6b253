"""What is wrong with annotation files: one `Fault` for each thing that cannot be read as it stands.

A reader reports to `Faults`. Strict ones, which opening a data set uses, raise the first fault as an `InputError`;
lenient ones keep them all and the reader goes on with what is left, so that one pass finds everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detrove.errors import InputError

FaultKind = Literal[
    "broken file",
    "missing file",
    "no pictures",
    "bad picture entry",
    "missing picture",
    "unreadable picture",
    "bad category",
    "unknown picture",
    "unknown category",
    "bad box",
]


@dataclass(frozen=True)
class Fault:
    """One thing that cannot be read: `message` says what, `remedy` what to do about it.

    `line` (from 1) and `entry` ("annotation 50", "object 2") say where in `file`, as far as it is known. `num_boxes`
    counts the boxes that are left out because of it.
    """

    kind: FaultKind
    file: Path
    message: str
    remedy: str = ""
    line: int | None = None
    entry: str = ""
    num_boxes: int = 0

    def __str__(self) -> str:
        """One line: the place, the message, the remedy."""
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


class AnnotationError(InputError):
    """A fault that ends the reading of what it is in."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass
class Faults:
    """Where readers report to. `strict`: the first is raised as an `AnnotationError`; otherwise all are `found`."""

    strict: bool = True
    found: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Raise the fault, or keep it."""
        if self.strict:
            raise AnnotationError(fault)
        self.found.append(fault)
