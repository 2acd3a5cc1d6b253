"""Which pictures look alike: the same one saved twice, and neighbouring frames of one video.

Each picture is reduced to a small grey thumbnail. Near-duplicates are looked for among those whose 64-bit hashes (is
each of 8 x 8 fields brighter than its right neighbour?) share one of eight bytes, so that a large set is not compared
pair by pair; whether two really are is decided by the correlation of their thumbnails.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
SAME = 0.99
"""Correlation of the thumbnails of one picture saved twice: other sizes, qualities, brightness."""
NEIGHBOURS = 0.9
"""Correlation of the thumbnails of frames that follow each other."""

_MAX_DIFFERENT_BITS = 7
_LARGEST_BUCKET = 512
_PAIRS_AT_ONCE = 4096
_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def thumbnails(paths: Sequence[str | Path]) -> np.ndarray:
    """(P, 32, 32) uint8 grey pictures; a picture that cannot be read is all 0, and like no other."""
    found = np.zeros((len(paths), SIDE, SIDE), dtype=np.uint8)
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                # Four times the size, and a filter that overlaps: a copy of another size is then as like as one of the
                # same (correlation at least 0.998; 0.964 with twice the size and plain averages).
                picture.draft("L", (4 * SIDE, 4 * SIDE))
                found[index] = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
    return found


def near_duplicates(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of pictures that are near-duplicates; of many that are all alike, a chain of pairs."""
    hashes = _hashes(thumbs)
    bits = np.unpackbits(hashes, axis=1)
    pairs: set[tuple[int, int]] = set()
    for band in range(hashes.shape[1]):
        order = np.argsort(hashes[:, band], kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(hashes[order, band])) + 1):
            # A bucket of half the set (blank pictures) is compared in stretches of similar hashes.
            bucket = bucket[np.lexsort(hashes[bucket].T)]
            for start in range(0, len(bucket), _LARGEST_BUCKET):
                members = np.sort(bucket[start : start + _LARGEST_BUCKET])
                different = (bits[members, None] != bits[None, members]).sum(axis=2)
                for a, b in np.argwhere(np.triu(different <= _MAX_DIFFERENT_BITS, k=1)).tolist():
                    pairs.add((int(members[a]), int(members[b])))
    return _alike(thumbs, sorted(pairs), SAME)


def frames_in_sequence(paths: Sequence[str | Path], thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of pictures that are neighbours by the running number in their names, and look like it.

    Numbers alone do not make a video: most sets are numbered.
    """
    series: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for index, path in enumerate(map(Path, paths)):
        match = _NUMBERED.match(path.stem)
        if match:
            series[str(path.parent), match[1]].append((int(match[2]), index))
    pairs = []
    for frames in series.values():
        indices = [index for _, index in sorted(frames)]
        pairs += itertools.pairwise(indices)
    return _alike(thumbs, pairs, NEIGHBOURS)


def _alike(thumbs: np.ndarray, pairs: list[tuple[int, int]], threshold: float) -> list[tuple[int, int]]:
    """Those of the pairs whose thumbnails correlate at least so much."""
    kept = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[start : start + _PAIRS_AT_ONCE]
        first, second = (_patterns(thumbs[list(side)]) for side in zip(*some, strict=True))
        correlation = np.einsum("ij,ij->i", first, second)
        kept += [pair for pair, alike in zip(some, (correlation >= threshold).tolist(), strict=True) if alike]
    return kept


def _patterns(thumbs: np.ndarray) -> np.ndarray:
    """(P, 1024) thumbnails of mean 0 and length 1; 0 where a picture is of one brightness."""
    flat = thumbs.reshape(len(thumbs), SIDE * SIDE).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > SIDE, flat / np.maximum(length, 1e-6), 0)


def _hashes(thumbs: np.ndarray) -> np.ndarray:
    """(P, 8) bytes: for each of 8 x 8 fields, whether it is brighter than its right neighbour, around the edge."""
    fields = thumbs.reshape(len(thumbs), 8, SIDE // 8, 8, SIDE // 8).mean(axis=(2, 4))
    return np.packbits(fields > np.roll(fields, -1, axis=2), axis=2).reshape(len(thumbs), 8)
