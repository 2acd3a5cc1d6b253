"""What a training tells to whoever listens: three events, and objects with a method for those that they care for.

A callback is any object that has one or more of `on_step`, `on_epoch` and `on_end`; it inherits from nothing. It is
given to `detrove.train(callbacks=[...])` and called in the main process, between steps. What it raises ends the
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from detrove.errors import InputError
from detrove.evaluation import Metrics


@dataclass(frozen=True)
class StepDone:
    """After a step of the optimiser: `step` and `epoch` count from 1, `fraction` of the training is done, in [0, 1].

    `losses` are those of this step: "loss", the weighted sum, and each term of the last decoder layer, unweighted.
    """

    step: int
    epoch: int
    fraction: float
    learning_rate: float
    losses: Mapping[str, float]


@dataclass(frozen=True)
class EpochDone:
    """After an epoch: its `line` of metrics.jsonl, and the `metrics` where it was validated, else None."""

    line: Mapping[str, Any]
    metrics: Metrics | None


@dataclass(frozen=True)
class RunDone:
    """After the training: the run folder, the best validation (None: never validated) and what stood out, in words."""

    output: Path
    metrics: Metrics | None
    verdict: Sequence[str]


@runtime_checkable
class HearsSteps(Protocol):
    """Is told of every step."""

    def on_step(self, event: StepDone) -> None:
        """After a step; it is waited for, so let it be quick."""
        ...


@runtime_checkable
class HearsEpochs(Protocol):
    """Is told of every epoch."""

    def on_epoch(self, event: EpochDone) -> bool | None:
        """After an epoch; answering True ends the training, with everything saved and validated."""
        ...


@runtime_checkable
class HearsEnd(Protocol):
    """Is told of the end."""

    def on_end(self, event: RunDone) -> None:
        """After the last line is written."""
        ...


Callback = HearsSteps | HearsEpochs | HearsEnd


class Callbacks:
    """Several callbacks as one. Raises `InputError` for an object that hears of nothing."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._all = list(callbacks)
        for callback in self._all:
            if not isinstance(callback, Callback):
                raise InputError(
                    f"callbacks: {type(callback).__name__} has none of the methods on_step, on_epoch and on_end; "
                    "give an object that has"
                )

    def on_step(self, event: StepDone) -> None:
        """Tell those that hear of steps."""
        for callback in self._all:
            if isinstance(callback, HearsSteps):
                callback.on_step(event)

    def on_epoch(self, event: EpochDone) -> bool:
        """Tell those that hear of epochs; whether one of them wants to end the training. All are told."""
        answers = [callback.on_epoch(event) for callback in self._all if isinstance(callback, HearsEpochs)]
        return any(answers)

    def on_end(self, event: RunDone) -> None:
        """Tell those that hear of the end."""
        for callback in self._all:
            if isinstance(callback, HearsEnd):
                callback.on_end(event)


def validations_without_gain(lines: Iterable[Mapping[str, Any]]) -> int:
    """How many validations came after the first one with the best AP, in the lines of metrics.jsonl.

    Early stop counts in what is written down, so a continued run stops where one that was never interrupted does.

    >>> validations_without_gain([{"ap": 0.1}, {"loss": 3.0}, {"ap": 0.3}, {"ap": 0.3}, {"ap": 0.2}])
    2
    """
    measured = [line["ap"] or 0.0 for line in lines if "ap" in line]
    return len(measured) - 1 - measured.index(max(measured)) if measured else 0
