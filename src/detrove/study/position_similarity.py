"""Content and position apart: how much of where a query looks comes from what it seeks, how much from where.

Conditional DETR's lens (Meng et al. 2021, §3) on any dense block, and DAB-DETR's (Liu et al. 2022, §4.4): attention as
broad as the anchor, and how sharp a temperature makes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.nn.attention import split_heads
from detrove.nn.conditional_attention import ConditionalCrossAttention
from detrove.nn.positions import sine_encoding, sine_of_anchors
from detrove.nn.recording import DenseAttention
from detrove.study.record import Recording, place_of

CONTENT, POSITION = "content · content", "position · position"
MIXED = ("content · position", "position · content")


@dataclass(frozen=True)
class ScoreTerms:
    """What the scores of some queries are made of, before the softmax: `terms`, each (M, N, T), add up to them.

    Two terms where content and position are concatenated, four where they are added: the query's part stands first.
    """

    terms: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The scores (M, N, T) whose softmax over T is A."""
        return torch.stack(list(self.terms.values())).sum(dim=0)

    def shares(self, head: int | None = None) -> dict[str, float]:
        """The share of each term in how scores differ between cells; they add up to 1.

        Covariance with the total over the total's variance, over all queries and all heads, or one: a term that is the
        same everywhere decides nothing, and one that works against the others is negative.
        """
        heads = slice(None) if head is None else slice(head, head + 1)
        total = _centred(self.total[heads])
        variance = total.square().sum().clamp(min=1e-30)
        return {name: float((_centred(term[heads]) * total).sum() / variance) for name, term in self.terms.items()}

    def alone(self, *names: str) -> Tensor:
        """Where the queries would look by these terms alone: (M, N, T), softmax over T."""
        return torch.stack([self.terms[name] for name in names]).sum(dim=0).softmax(dim=-1)


def score_terms(entry: DenseAttention, queries: list[int] | slice = slice(None), picture: int = 0) -> ScoreTerms:
    """The terms of a recorded block's scores for some of its queries (or cells) of one picture, unpadded."""
    parts = entry.parts
    if parts is None:
        raise InputError(f"{entry.name} was recorded without its parts: record the detector as a whole")
    scale = entry.query.shape[-1] ** -0.5
    query = {"content": parts.query_content, "position": parts.query_position}
    key = {"content": parts.key_content, "position": parts.key_position}
    names = [CONTENT, POSITION] if parts.concatenated else [CONTENT, *MIXED, POSITION]
    terms = {}
    for name in names:
        asks, is_asked = name.split(" · ")
        terms[name] = scale * query[asks][picture][:, queries] @ key[is_asked][picture].transpose(-2, -1)
    return ScoreTerms(terms)


def _centred(scores: Tensor) -> Tensor:
    """Softmax over T does not see what all cells have in common."""
    return scores - scores.mean(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Modulation:
    """DAB-DETR's attention by width and height, for one query: what the position finds `before` and `after`.

    `before`, `after` (M, h, w) are scores; `size_ratio` (w, h) is wanted by own size: above 1 sharpens attention along
    that side. `anchor` is the query's box cxcywh in [0, 1].
    """

    before: np.ndarray
    after: np.ndarray
    size_ratio: tuple[float, float]
    anchor: tuple[float, ...]


@torch.no_grad()
def modulation(model: nn.Module, seen: Recording, name: str, query: int, picture: int = 0) -> Modulation:
    """What the width and height of a query's anchor do to its position scores in a recorded cross-attention."""
    block, layer_name = model.get_submodule(name), place_of(name).layer_name
    if not isinstance(block, ConditionalCrossAttention) or layer_name not in seen.anchors:
        raise InputError(f"{name}: only DAB-DETR's cross-attention is modulated by width and height")
    entry, anchors = seen.dense[name], seen.anchors[layer_name]
    after_sine, before_sine = seen.layers[layer_name].sine, anchors.sine
    assert entry.parts is not None
    assert after_sine is not None
    key = entry.parts.key_position[picture]
    maps = []
    for sine in (before_sine, after_sine):
        asked = split_heads(block.query_sine(sine[picture, query][None, None]), block.num_heads)[0]
        scores = (asked @ key.transpose(-2, -1))[:, 0] * entry.query.shape[-1] ** -0.5
        maps.append(scores.unflatten(-1, seen.shape_of(name)).float().numpy(force=True))
    height_ratio, width_ratio = (
        float((after * before).sum() / (before * before).sum())
        for after, before in zip(after_sine[picture, query].chunk(2), before_sine[picture, query].chunk(2), strict=True)
    )
    anchor = tuple(anchors.anchors[picture, query].tolist())
    return Modulation(maps[0], maps[1], (width_ratio, height_ratio), anchor)


def sine_similarity(
    centre: tuple[float, float],
    shape: tuple[int, int],
    dim: int,
    temperature: float,
    size_ratio: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """How like a point's sine encoding that of every cell is: (h, w), 1 where they meet, without anything learned.

    `centre` is x, y in [0, 1]; `dim` is D, half of it for y, half for x; `size_ratio` (w, h) multiplies the halves as
    DAB-DETR's modulation does (Liu et al. 2022, eq. 6). A low `temperature` makes the encodings of neighbours differ
    more, and the map narrower.
    """
    height, width = shape
    cells = sine_encoding(torch.zeros(1, height, width, dtype=torch.bool), dim, temperature, offset=-0.5)[0]
    y, x = sine_of_anchors(torch.tensor(centre), dim // 2, temperature).chunk(2)
    cells_y, cells_x = cells.chunk(2, dim=-1)
    similarity = (cells_x @ x * size_ratio[0] + cells_y @ y * size_ratio[1]) / (dim / 4)
    return (similarity / sum(size_ratio)).numpy()


def half_width(similarity: np.ndarray) -> float:
    """How broad a map of `sine_similarity` is: the share of its cells more than half as like as the centre."""
    return float((similarity > similarity.max() / 2).mean())


def softmax_map(scores: np.ndarray) -> np.ndarray:
    """Scores (..., h, w) to what attention they alone would give, every map summing to 1."""
    flat = scores.reshape(*scores.shape[:-2], -1)
    raised = np.exp(flat - flat.max(axis=-1, keepdims=True))
    return (raised / raised.sum(axis=-1, keepdims=True)).reshape(scores.shape)


def entropy_share(attention: np.ndarray) -> float:
    """How spread out a map (h, w) that sums to 1 is: 0 for one cell, 1 for all alike."""
    values = attention[attention > 0].astype(np.float64)
    return float(-(values * np.log(values)).sum() / max(math.log(attention.size), 1e-12))
