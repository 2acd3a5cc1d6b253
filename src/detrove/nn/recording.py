"""What attention blocks hand over when somebody wants to look.

Outside `with recording(model) as recorder:` nothing is computed, stored or slowed: a block asks `active_recorder()`,
gets None, and runs the fused kernel. Inside, dense attention hands over its Q, K, V and A, deformable attention its
value, sampling locations and weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class DenseAttention:
    """One pass through a dense attention block, per head M.

    `query` (B, M, Q, d), `key` (B, M, T, d), `value` (B, M, T, d'), `attention` (B, M, Q, T): each row of `attention`
    sums to 1, without dropout.
    """

    name: str
    query: Tensor
    key: Tensor
    value: Tensor
    attention: Tensor


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
class Recorder:
    """Collects what the blocks of one model hand over, in the order in which they run."""

    names: dict[int, str]
    dense: list[DenseAttention] = field(default_factory=list)
    sampled: list[SampledAttention] = field(default_factory=list)

    def add_dense(self, block: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention: Tensor) -> None:
        """Called by a dense attention block."""
        self.dense.append(DenseAttention(self.names.get(id(block), ""), query, key, value, attention))

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


_active: ContextVar[Recorder | None] = ContextVar("detrove_recorder", default=None)


def active_recorder() -> Recorder | None:
    """The recorder of the enclosing `recording` block, or None."""
    return _active.get()


@contextmanager
def recording(model: nn.Module) -> Iterator[Recorder]:
    """Record every attention block of `model` that runs inside the block; names are the modules' dotted paths."""
    recorder = Recorder({id(module): name for name, module in model.named_modules()})
    token = _active.set(recorder)
    try:
        yield recorder
    finally:
        _active.reset(token)
