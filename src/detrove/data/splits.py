"""Dividing a data set into splits that can be trusted: stratified by class, look-alikes kept together.

A near-duplicate of a training picture in the validation split makes a detector look better than it is. So pictures that
look alike, and neighbouring frames of a video (see `similar`), go to the same split. Groups are dealt out as in
iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011): the rarest
class first, each of its groups to the split that lacks most of it and is not full yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from detrove.data import similar
from detrove.data.annotations import Annotations
from detrove.errors import InputError


def make_splits(
    annotations: Annotations, ratio: Sequence[float], seed: int = 0, groups: np.ndarray | None = None
) -> list[list[int]]:
    """The indices of the pictures of each split, in order; the same for the same seed.

    `ratio`: the splits' shares, any positive numbers. `groups` (P,): pictures with the same number stay together; by
    default those of `look_alikes`. Raises `InputError` where there are fewer groups than splits.
    """
    if len(ratio) < 2 or not all(np.isfinite(share) and share > 0 for share in ratio):
        raise InputError(f"ratio {', '.join(map(str, ratio))}: give two or more positive shares, such as 0.8,0.1,0.1")
    if groups is None:
        groups = look_alikes([annotations.paths[index] for index in range(len(annotations))])
    numbers, groups = np.unique(groups, return_inverse=True)
    if len(numbers) < len(ratio):
        raise InputError(
            f"{len(annotations)} pictures that look like {len(numbers)} cannot make {len(ratio)} splits; add pictures"
        )
    shares = np.array(ratio, dtype=np.float64) / sum(ratio)
    chosen = _deal(_contents(annotations, groups, len(numbers)), shares, np.random.default_rng(seed))
    return [np.flatnonzero(chosen[groups] == split).tolist() for split in range(len(ratio))]


def look_alikes(paths: Sequence[str]) -> np.ndarray:
    """(P,) a number for each picture, the same for near-duplicates and neighbouring frames of a video."""
    thumbs = similar.thumbnails(paths)
    return connected(len(paths), [*similar.near_duplicates(thumbs), *similar.frames_in_sequence(paths, thumbs)])


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(count,) the lowest index that each index is connected with.

    >>> connected(5, [(1, 3), (3, 4)]).tolist()
    [0, 1, 2, 1, 1]
    """
    lowest = list(range(count))

    def root(index: int) -> int:
        while lowest[index] != index:
            lowest[index] = lowest[lowest[index]]
            index = lowest[index]
        return index

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        lowest[second] = first
    return np.array([root(index) for index in range(count)], dtype=np.int64)


def _contents(annotations: Annotations, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """(G, C + 1) how many boxes of each class a group has, and last its pictures."""
    ids, classes = np.unique(annotations.category_ids, return_inverse=True)
    contents = np.zeros((num_groups, len(ids) + 1))
    np.add.at(contents, (groups[annotations.pictures_of_boxes()], classes), 1)
    contents[:, -1] = np.bincount(groups, minlength=num_groups)
    return contents


def _deal(contents: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(G,) the split of each group."""
    order = generator.permutation(len(contents))
    contents = contents[order]
    chosen = np.full(len(contents), -1)
    lacking = shares[:, None] * contents.sum(axis=0)
    while (free := chosen < 0).any():
        left = contents[free, :-1].sum(axis=0)
        # The rarest class that is left; when only pictures without boxes are, the pictures themselves.
        column = int(np.where(left > 0, left, np.inf).argmin()) if left.any() else -1
        members = np.flatnonzero(free & (contents[:, column] > 0))
        # Large groups first: small ones can still even out what these leave.
        for group in members[np.argsort(-contents[members, column], kind="stable")].tolist():
            full = lacking[:, -1] <= 0
            split = int(np.lexsort((-lacking[:, -1], -lacking[:, column], full))[0])
            chosen[group] = split
            lacking[split] -= contents[group]
    _fill_empty(chosen, contents[:, -1], len(shares))
    dealt = np.empty_like(chosen)
    dealt[order] = chosen
    return dealt


def _fill_empty(chosen: np.ndarray, num_pictures: np.ndarray, num_splits: int) -> None:
    """Give a split that got nothing the smallest group of the split that has most groups, in place."""
    for split in range(num_splits):
        if not (chosen == split).any():
            fullest = int(np.bincount(chosen, minlength=num_splits).argmax())
            members = np.flatnonzero(chosen == fullest)
            chosen[members[num_pictures[members].argmin()]] = split
