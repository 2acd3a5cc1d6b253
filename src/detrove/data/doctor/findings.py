"""What the doctor finds: a `Finding` for each kind of fault or remark, with the places where it is.

A fault teaches the detector something wrong, loses pictures or boxes, or makes its measure worthless. A remark is worth
knowing, and may well be meant so. `KINDS` holds, for each kind, what it means for training and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["fault", "remark"]
Rectangle = tuple[float, float, float, float]

MOST_PLACES = 1000
"""Places that a finding lists; it counts all."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding: `unit` is what is counted; `meaning` is for training, `remedy` what to do."""

    severity: Severity
    unit: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Place:
    """Where something is: the file and, as far as it is known, the line and the entry ("annotation 50") in it.

    `note` says what stands there. `picture` and `boxes` (left, top, right, bottom in its pixels) are what to look at;
    `other` is the picture that it is too much like.
    """

    file: Path
    note: str
    split: str = ""
    line: int | None = None
    entry: str = ""
    picture: Path | None = None
    boxes: tuple[Rectangle, ...] = ()
    other: Path | None = None

    def __str__(self) -> str:
        """One line."""
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.note}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        values = {
            "file": str(self.file),
            "line": self.line,
            "entry": self.entry,
            "split": self.split,
            "picture": self.picture and str(self.picture),
            "other": self.other and str(self.other),
            "boxes": [list(box) for box in self.boxes],
            "note": self.note,
        }
        return {key: value for key, value in values.items() if value not in (None, "", [])}


@dataclass(frozen=True)
class Finding:
    """All that was found of one kind: how many, what it means, what to do, and the first `MOST_PLACES` places."""

    kind: str
    severity: Severity
    count: int
    unit: str
    meaning: str
    remedy: str
    places: tuple[Place, ...]

    @property
    def amount(self) -> str:
        """The number and what is counted: "2 boxes", "1 picture"."""
        return f"{self.count:,} {self.unit if self.count != 1 else _SINGULAR[self.unit]}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "places": [place.to_json() for place in self.places]}


_SINGULAR = {
    "boxes": "box",
    "pictures": "picture",
    "classes": "class",
    "files": "file",
    "entries": "entry",
    "pairs": "pair",
    "splits": "split",
    "ids": "id",
}

KINDS: dict[str, Kind] = {
    "broken file": Kind("fault", "files", "Its labels cannot be read; they are missing.", "Export it again."),
    "missing file": Kind("fault", "files", "What it lists is missing.", "Add it, or drop what names it."),
    "no pictures": Kind("fault", "splits", "The split cannot be used.", "Add its pictures, or correct the paths."),
    "bad picture entry": Kind(
        "fault", "entries", "The picture and its boxes cannot be used.", "Correct or delete the entry."
    ),
    "missing picture": Kind("fault", "pictures", "Its boxes cannot be used.", "Add the file, or drop its entry."),
    "unreadable picture": Kind(
        "fault", "pictures", "It cannot be decoded: its boxes cannot be used.", "Replace it, or remove it."
    ),
    "truncated picture": Kind(
        "fault", "pictures", "Its end is lost: its boxes cannot be used.", "Copy the whole file again, or remove it."
    ),
    "bad category": Kind("fault", "entries", "Classes without a name cannot be learned.", "Correct the class list."),
    "unknown picture": Kind(
        "fault", "boxes", "They belong to no picture, and are lost.", "Add the picture to the list, or delete them."
    ),
    "unknown category": Kind(
        "fault", "boxes", "They have no class, and are lost.", "Add the class to the list, or correct them."
    ),
    "bad box": Kind("fault", "boxes", "They are no boxes, and are lost.", "Correct or delete them."),
    "shifted class numbers": Kind(
        "fault",
        "boxes",
        "Every object is learned under the name of its neighbour in the list; one class is lost.",
        "Number classes and labels from the same first number, and export again.",
    ),
    "wrong box format": Kind(
        "fault",
        "boxes",
        "Read as they stand, the boxes are not where the objects are: nothing can be learned.",
        "Export in the right format, or let --fix read the numbers in the other way.",
    ),
    "no boxes": Kind("fault", "splits", "Nothing can be learned or measured.", "Add labels, or correct the paths."),
    "rotated labels": Kind(
        "fault",
        "pictures",
        "Labelled lying on their side, against the camera's note: learned sideways, met upright.",
        "Turn the boxes with the picture: --fix does.",
    ),
    "size mismatch": Kind(
        "fault",
        "pictures",
        "Labelled at another size than the file has: where the boxes belong is not known.",
        "Put the original picture back, or correct size and boxes.",
    ),
    "repeated picture": Kind(
        "fault",
        "pictures",
        "Listed twice in a split: in each copy the other's objects count as background.",
        "Merge the entries.",
    ),
    "zero-size box": Kind(
        "fault", "boxes", "No width or no height: skipped in training.", "Draw them again, or delete them."
    ),
    "box outside": Kind(
        "fault",
        "boxes",
        "They leave the picture: clipped in training, skipped where nothing remains.",
        "Clip them: --fix does. Many of them: look for a wrong format or size.",
    ),
    "absurd box": Kind(
        "fault",
        "boxes",
        "No object looks so; their loss drowns that of others.",
        "Draw them again, or delete them.",
    ),
    "duplicate box": Kind(
        "fault",
        "boxes",
        "One object twice: the detector learns to find it twice.",
        "Delete the copies: --fix does.",
    ),
    "leaked picture": Kind(
        "fault",
        "pairs",
        "The same picture in two splits: the measure tells memory, not skill.",
        "Keep it in one: --fix keeps it out of training. detrove data split makes clean splits.",
    ),
    "too few queries": Kind(
        "fault",
        "pictures",
        "More objects than the detector has queries: the rest cannot be found, or learned.",
        "Raise --set model.num_queries, choose another --model, or cut the pictures into tiles.",
    ),
    "small objects": Kind(
        "remark",
        "boxes",
        "Under 8 pixels at the training size: hardly to be found.",
        "Train at a larger --size, or on tiles.",
    ),
    "alike across splits": Kind(
        "remark",
        "pairs",
        "Nearly the same picture in two splits: the measure may flatter.",
        "Look at them; detrove data split keeps what looks alike together.",
    ),
    "orientation note": Kind(
        "remark",
        "pictures",
        "The camera turned them, and sizes cannot tell whether the labels turned along.",
        "Look at one: detrove turns the picture upright and takes the labels as upright.",
    ),
    "empty picture": Kind(
        "remark",
        "pictures",
        "No boxes: background to learn from, if nothing is there.",
        "Look whether labels are lost.",
    ),
    "unused class": Kind("remark", "classes", "Never seen, so never found.", "Label some, or drop the class."),
    "untrained class": Kind(
        "remark", "classes", "Measured, but no training picture shows it.", "Split anew, or label some for training."
    ),
    "rare class": Kind("remark", "classes", "Too few boxes to learn from.", "Label more, or merge it with another."),
    "class imbalance": Kind(
        "remark", "classes", "Frequent classes are learned first and best.", "Label more of the rare ones."
    ),
    "id gaps": Kind("remark", "ids", "detrove reads ids as names; other tools may not.", "Nothing, for detrove."),
    "ids from zero": Kind(
        "remark", "ids", "In COCO files some tools take 0 for the background.", "Nothing, for detrove."
    ),
    "repeated ids": Kind(
        "remark", "ids", "detrove counts anew; other tools overwrite one by the other.", "Number annotations anew."
    ),
    "repeated class name": Kind(
        "remark",
        "classes",
        "Names that differ in case or spaces, or not at all: one thing, learned as two?",
        "Merge them.",
    ),
    "one box, two classes": Kind(
        "remark", "pairs", "The same box under two names: one of them is wrong, or both are meant.", "Look at them."
    ),
    "stray files": Kind("remark", "files", "They are not used.", "Look whether pictures are lost."),
}


def make_finding(kind: str, places: Iterable[Place], count: int | None = None, remedy: str = "") -> Finding:
    """A finding of a kind at these places; `count` where it is not their number."""
    places = tuple(places)
    known = KINDS[kind]
    number = len(places) if count is None else count
    return Finding(
        kind, known.severity, number, known.unit, known.meaning, remedy or known.remedy, places[:MOST_PLACES]
    )


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a kind, in the order of `KINDS`, faults first."""
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.count:
            by_kind.setdefault(finding.kind, []).append(finding)
    order = {kind: number for number, kind in enumerate(KINDS)}
    found = []
    for kind in sorted(by_kind, key=lambda kind: (KINDS[kind].severity != "fault", order[kind])):
        parts = by_kind[kind]
        places = [place for part in parts for place in part.places]
        found.append(make_finding(kind, places, sum(part.count for part in parts), parts[0].remedy))
    return found
