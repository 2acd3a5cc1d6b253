"""What stands out in the classes of a data set (unused, rare, numbered oddly), and pictures without boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detrove.data.annotations import Annotations
from detrove.data.doctor.findings import Finding, Place, make_finding

RARE = 20
"""Boxes in the training split below which a class is called rare."""
UNBALANCED = 10.0
"""How many times as many boxes the most frequent class has as the rarest one that is not called rare."""
_SHOWN = 12


def examine_classes(splits: Mapping[str, Annotations], format: str, training: str) -> list[Finding]:
    """The classes of the whole data set; `training` names the split that is learned from."""
    first = splits[training]
    file = first.source(0)
    counts = {split: Counter(annotations.category_ids.tolist()) for split, annotations in splits.items()}
    return [
        *_usage(file, first.categories, counts, training),
        _imbalance(file, first.categories, counts[training], training),
        *_numbering(file, first.categories, format),
        *(_repeated_ids(annotations, split) for split, annotations in splits.items()),
    ]


def examine_pictures_listed(annotations: Annotations, split: str) -> list[Finding]:
    """Pictures without boxes, pictures listed twice, and what the reader remarked."""
    files = [Place(annotations.source(0), text, split) for text in annotations.warnings]
    if not annotations.num_boxes:
        note = f"split {split} has {len(annotations):,} pictures and no box"
        return [
            make_finding("no boxes", [Place(annotations.source(0), note, split)]),
            make_finding("stray files", files),
        ]
    empty = np.flatnonzero(np.diff(annotations.starts) == 0).tolist()
    return [
        make_finding("stray files", files),
        make_finding("empty picture", [_place(annotations, p, split, "has no box") for p in empty]),
        make_finding(
            "repeated picture", [_place(annotations, p, split, "is listed twice") for p in repeated(annotations)]
        ),
    ]


def repeated(annotations: Annotations) -> list[int]:
    """The pictures whose file was listed before."""
    seen: set[str] = set()
    again = []
    for picture, path in enumerate(annotations.paths):
        if path in seen:
            again.append(picture)
        seen.add(path)
    return again


def _place(annotations: Annotations, picture: int, split: str, note: str) -> Place:
    path = annotations.path(picture)
    return Place(annotations.source(picture), f"{path.name} {note}", split, picture=path)


def _usage(
    file: Path, categories: Mapping[int, str], counts: Mapping[str, Counter[int]], training: str
) -> list[Finding]:
    """Classes that no box has, that training lacks, that have few boxes there."""
    total: Counter[int] = sum(counts.values(), Counter())
    trained = counts[training]
    unused, untrained, rare = [], [], []
    for id, name in categories.items():
        if not total[id]:
            unused.append(Place(file, f"no box is a {name} (id {id})", entry=name))
        elif not trained[id]:
            where = ", ".join(split for split, each in counts.items() if each[id])
            untrained.append(Place(file, f"{name} (id {id}) is in {where}, but not in {training}", entry=name))
        elif trained[id] < RARE:
            rare.append(Place(file, f"{name} has {trained[id]} in {training}", training, entry=name))
    return [
        make_finding("unused class", unused),
        make_finding("untrained class", untrained),
        make_finding("rare class", rare),
    ]


def _imbalance(file: Path, categories: Mapping[int, str], trained: Counter[int], training: str) -> Finding:
    if len(trained) < 2:
        return make_finding("class imbalance", [])
    ordered = trained.most_common()
    (most, largest), (least, smallest) = ordered[0], ordered[-1]
    if largest < UNBALANCED * smallest:
        return make_finding("class imbalance", [])
    note = (
        f"{training}: {largest:,} of {trained.total():,} boxes are {categories[most]}, {smallest:,} {categories[least]}"
    )
    return make_finding("class imbalance", [Place(file, note, training)], len(trained))


def _numbering(file: Path, categories: Mapping[int, str], format: str) -> list[Finding]:
    ids = sorted(categories)
    missing = sorted(set(range(ids[0], ids[-1] + 1)) - set(ids)) if ids[-1] - ids[0] < 10**6 else []
    gaps = []
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        gaps = [Place(file, f"ids run from {ids[0]} to {ids[-1]} without {shown}")]
    zero = [Place(file, f"{categories[0]} has the id 0")] if format == "coco" and 0 in categories else []
    return [
        make_finding("id gaps", gaps, len(missing)),
        make_finding("ids from zero", zero),
        make_finding("repeated class name", _same_names(file, categories)),
    ]


def _same_names(file: Path, categories: Mapping[int, str]) -> list[Place]:
    first: dict[str, int] = {}
    places = []
    for id, name in categories.items():
        other = first.setdefault("".join(name.split()).casefold(), id)
        if other != id:
            places.append(Place(file, f"{name!r} (id {id}) and {categories[other]!r} (id {other})", entry=name))
    return places


def _repeated_ids(annotations: Annotations, split: str) -> Finding:
    if annotations.entry_name != "annotation":
        return make_finding("repeated ids", [])
    counts = Counter(annotations.entries.tolist())
    source = annotations.source(0)
    places = [Place(source, f"{n} annotations have the id {id}", split) for id, n in counts.items() if n > 1]
    return make_finding("repeated ids", places)
