"""Other classes than the files have: renamed, merged, or only some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from detrove.data.annotations import Annotations
from detrove.errors import InputError, nearest


def rename_classes(annotations: Annotations, names: Mapping[str, str]) -> Annotations:
    """The same boxes, their classes renamed old -> new; two classes of one name become one, under the lowest id.

    Raises `InputError` where there is no class of an old name.
    """
    _refuse_unknown(names, annotations)
    renamed = {id: names.get(name, name) for id, name in sorted(annotations.categories.items())}
    ids_of_names: dict[str, int] = {}
    new_ids = {id: ids_of_names.setdefault(name, id) for id, name in renamed.items()}
    ids, inverse = np.unique(annotations.category_ids, return_inverse=True)
    category_ids = np.array([new_ids[id] for id in ids.tolist()], dtype=np.int64)[inverse]
    return replace(annotations, category_ids=category_ids, categories={id: name for name, id in ids_of_names.items()})


def select_classes(annotations: Annotations, names: Iterable[str]) -> Annotations:
    """The boxes of these classes alone, with their ids; pictures that have none of them are background.

    Raises `InputError` where there is no class of a name.
    """
    wanted = frozenset(names)
    if not wanted:
        raise InputError(f"no class is chosen: choose from {', '.join(annotations.categories.values())}")
    _refuse_unknown(wanted, annotations)
    categories = {id: name for id, name in annotations.categories.items() if name in wanted}
    return replace(annotations.keep(np.isin(annotations.category_ids, list(categories))), categories=categories)


def change_classes(
    annotations: Annotations, classes: Iterable[str] | None = None, rename: Mapping[str, str] | None = None
) -> Annotations:
    """Renamed as of `rename_classes` first, then those `classes` alone as of `select_classes`; None: as they are."""
    if rename:
        annotations = rename_classes(annotations, rename)
    return annotations if classes is None else select_classes(annotations, classes)


def _refuse_unknown(names: Iterable[str], annotations: Annotations) -> None:
    known = list(annotations.categories.values())
    for name in sorted(names):
        if name not in known:
            raise InputError(f"no class {name!r} in the data set: {nearest(name, known)}")
