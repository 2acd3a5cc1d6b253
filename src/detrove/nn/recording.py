"""What attention blocks and layers hand over when somebody wants to look.

Outside `with recording(model) as recorder:` nothing is computed, stored or slowed: a block asks `active_recorder()`,
gets None, and runs the fused kernel. Inside, dense attention hands over its Q, K, V and A, with content and position
apart where it knows them, deformable attention its value, sampling locations and weights, a layer what it was given,
and a decoder with anchors hands over those of every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Parts:
    """Q and K taken apart, per head M: what comes from content and what from position.

    `query_content`, `query_position` (B, M, Q, d'), `key_content`, `key_position` (B, M, T, d').

    Where they are added (`concatenated` is False), d' = d and Q is the sum of its two, so that a score has four terms:
    (c + p) · (c' + p'). A projection's bias counts as content where content and position share the projection. Where
    they are concatenated, d' = d / 2 and a score has two terms: c · c' + p · p'.
    """

    query_content: Tensor
    query_position: Tensor
    key_content: Tensor
    key_position: Tensor
    concatenated: bool = False


@dataclass
class DenseAttention:
    """One pass through a dense attention block, per head M.

    `query` (B, M, Q, d), `key` (B, M, T, d), `value` (B, M, T, d'), `attention` (B, M, Q, T): each row of `attention`
    sums to 1, without dropout. `parts` is None where the block runs outside of a layer.
    """

    name: str
    query: Tensor
    key: Tensor
    value: Tensor
    attention: Tensor
    parts: Parts | None = None


@dataclass
class SampledAttention:
    """One pass through a deformable attention block, per head M, level S and point P.

    `value` (B, T, M, d); `locations` (B, Q, M, S, P, 2) x and y in [0, 1] of the **padded** level; `weights`
    (B, Q, M, S, P), summing to 1 over levels and points; `reference_points` (B, Q, S, 2 or 4); `shapes` the levels'
    (height, width).
    """

    name: str
    value: Tensor
    locations: Tensor
    weights: Tensor
    reference_points: Tensor
    shapes: list[tuple[int, int]]


@dataclass
class LayerInput:
    """What a layer was given: `content` (B, N, D), N tokens in an encoder, queries in a decoder, and their `position`.

    `sine` (B, N, D) is what Conditional DETR's decoder looks for in the memory's positions, after any modulation by
    width and height; None elsewhere.
    """

    name: str
    content: Tensor
    position: Tensor
    sine: Tensor | None = None


@dataclass
class LayerAnchors:
    """Where the queries of a dense decoder's layer look from: `anchors` (B, Q, 2 or 4), x y (w h) in [0, 1].

    `sine` (B, Q, D) is the anchors' encoding scaled by content, before any modulation by width and height.
    """

    name: str
    anchors: Tensor
    sine: Tensor


@dataclass
class Recorder:
    """Collects what the blocks of one model hand over, in the order in which they run.

    `only` are the starts of dotted names ("encoder.0", "decoder"): other blocks are passed by. Empty: all blocks.
    """

    names: dict[int, str]
    only: tuple[str, ...] = ()
    dense: list[DenseAttention] = field(default_factory=list)
    sampled: list[SampledAttention] = field(default_factory=list)
    layers: list[LayerInput] = field(default_factory=list)
    anchors: list[LayerAnchors] = field(default_factory=list)
    _running: LayerInput | None = None

    def clear(self) -> None:
        """Forget what was handed over so far."""
        for kept in (self.dense, self.sampled, self.layers, self.anchors):
            kept.clear()

    def wants(self, block: nn.Module) -> bool:
        """Whether a block, or anything inside it, is to be recorded."""
        name = self.names.get(id(block), "")
        return not self.only or any(f"{name}.".startswith(f"{x}.") or x.startswith(f"{name}.") for x in self.only)

    def position_in(self, block: nn.Module) -> Tensor | None:
        """The position (B, N, D) that the layer which is running, and which `block` belongs to, was given."""
        name = self.names.get(id(block), "")
        return self._running.position if self._running and name.startswith(f"{self._running.name}.") else None

    def add_dense(
        self,
        block: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention: Tensor,
        parts: Parts | None = None,
    ) -> None:
        """Called by a dense attention block."""
        self.dense.append(DenseAttention(self.names.get(id(block), ""), query, key, value, attention, parts))

    def add_sampled(
        self,
        block: nn.Module,
        value: Tensor,
        locations: Tensor,
        weights: Tensor,
        reference_points: Tensor,
        shapes: list[tuple[int, int]],
    ) -> None:
        """Called by a deformable attention block."""
        name = self.names.get(id(block), "")
        self.sampled.append(SampledAttention(name, value, locations, weights, reference_points, shapes))

    def start_layer(self, layer: nn.Module, content: Tensor, position: Tensor, sine: Tensor | None) -> None:
        """Called by a layer before its blocks run."""
        self._running = LayerInput(self.names.get(id(layer), ""), content, position, sine)
        if self.wants(layer):
            self.layers.append(self._running)


_active: ContextVar[Recorder | None] = ContextVar("detrove_recorder", default=None)


def active_recorder() -> Recorder | None:
    """The recorder of the enclosing `recording` block, or None."""
    return _active.get()


def recorder_for(block: nn.Module) -> Recorder | None:
    """The recorder of the enclosing `recording` block if it wants this block, or None."""
    recorder = _active.get()
    return recorder if recorder is not None and recorder.wants(block) else None


def record_layer(layer: nn.Module, content: Tensor, position: Tensor, sine: Tensor | None = None) -> None:
    """Called by a layer before its blocks run, with what it was given: each (B, N, D)."""
    recorder = _active.get()
    if recorder is not None:
        recorder.start_layer(layer, content, position, sine)


def record_anchors(layer: nn.Module, anchors: Tensor, sine: Tensor) -> None:
    """Called by a decoder before a layer runs: its anchors (B, Q, 2 or 4) and their sine (B, Q, D), not modulated."""
    recorder = recorder_for(layer)
    if recorder is not None:
        recorder.anchors.append(LayerAnchors(recorder.names.get(id(layer), ""), anchors, sine))


@contextmanager
def recording(model: nn.Module, only: Sequence[str] = ()) -> Iterator[Recorder]:
    """Record every attention block of `model` that runs inside the block; names are the modules' dotted paths.

    With `only`, those whose names start so.
    """
    recorder = Recorder({id(module): name for name, module in model.named_modules()}, tuple(only))
    token = _active.set(recorder)
    try:
        yield recorder
    finally:
        _active.reset(token)
