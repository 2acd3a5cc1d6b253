"""Telling how a training goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PLAIN_INTERVAL = 30.0  # seconds after which a plain line is due even within an epoch
PLAIN_EPOCH_INTERVAL = 10.0  # seconds within which short epochs are not worth a line each


@dataclass(frozen=True)
class Status:
    """Where a training stands: `fraction` done in [0, 1], `seconds_left` (None while unknown), mean losses, best AP."""

    epoch: int
    fraction: float
    seconds_left: float | None
    losses: Mapping[str, float]
    ap: float | None

    def describe(self) -> str:
        """One line."""
        parts = [f"epoch {self.epoch}", *(f"{name} {value:.3f}" for name, value in self.losses.items())]
        if self.ap is not None:
            parts.append(f"best AP {self.ap:.3f}")
        parts.append("time left unknown" if self.seconds_left is None else f"{duration(self.seconds_left)} left")
        return " · ".join(parts)


class Display(Protocol):
    """What the trainer tells."""

    def message(self, text: str) -> None:
        """Something to be read."""
        ...

    def step(self, status: Status) -> None:
        """After a training step."""
        ...

    def epoch(self, status: Status, validation: Mapping[str, Any] | None) -> None:
        """After an epoch, with the validation numbers where it was validated."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


class SilentDisplay:
    """Tells nothing."""

    def message(self, text: str) -> None:
        """Ignored."""

    def step(self, status: Status) -> None:
        """Ignored."""

    def epoch(self, status: Status, validation: Mapping[str, Any] | None) -> None:
        """Ignored."""

    def close(self) -> None:
        """Nothing to do."""


class PlainDisplay:
    """Lines on standard error: about one an epoch, at least one each half minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def message(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)
        self._last = time.monotonic()

    def step(self, status: Status) -> None:
        """A line where none came for half a minute."""
        if time.monotonic() - self._last > PLAIN_INTERVAL:
            self.message(f"{status.fraction:4.0%}  {status.describe()}")

    def epoch(self, status: Status, validation: Mapping[str, Any] | None) -> None:
        """A line, unless epochs are so short that one came just now."""
        if validation is not None or time.monotonic() - self._last > PLAIN_EPOCH_INTERVAL:
            self.message(f"{status.fraction:4.0%}  {status.describe()}{_validated(validation)}")

    def close(self) -> None:
        """Nothing to do."""


class TerminalDisplay:
    """A progress bar at the bottom of the terminal, lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True, highlight=False),
        )
        self._task = self._progress.add_task("preparing", total=1.0)
        self._progress.start()

    def message(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def step(self, status: Status) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=status.fraction, description=status.describe())

    def epoch(self, status: Status, validation: Mapping[str, Any] | None) -> None:
        """Move the bar; a line where the epoch was validated."""
        self.step(status)
        if validation is not None:
            self.message(f"epoch {status.epoch}{_validated(validation)}")

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def make_display(progress: bool) -> Display:
    """The display that fits where standard error goes; silent without `progress`."""
    if not progress:
        return SilentDisplay()
    return TerminalDisplay() if sys.stderr.isatty() else PlainDisplay()


BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve as one line of blocks, from the lowest value to the highest; long ones as the means of equal parts.

    >>> sparkline([0.0, 1.0, 2.0, 7.0])
    '▁▂▃█'
    """
    parts = np.array_split(np.asarray(values, dtype=float), min(width, len(values))) if values else []
    means = [part.mean() for part in parts]
    low, high = min(means, default=0.0), max(means, default=0.0)
    steps = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * steps)] for mean in means)


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """How a training went, a line each for the loss and the validation AP, of the lines of metrics.jsonl."""
    told = []
    losses = [line["loss"] for line in lines]
    if len(losses) > 1:
        told.append(f"loss  {sparkline(losses)}  {losses[0]:.3f} to {losses[-1]:.3f}")
    validated = [line for line in lines if line.get("ap") is not None]
    if len(validated) > 1:
        aps = [line["ap"] for line in validated]
        best = max(validated, key=lambda line: line["ap"])
        told.append(
            f"AP    {sparkline(aps)}  {aps[0]:.3f} to {aps[-1]:.3f}, best {best['ap']:.3f} in epoch {best['epoch']}"
        )
    return told


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as people write them.

    >>> duration(75), duration(3720)
    ('1:15', '1:02:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _validated(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return ""
    numbers = ", ".join(
        f"{name} {'none' if validation[key] is None else format(validation[key], '.3f')}"
        for name, key in (("AP", "ap"), ("AP50", "ap50"))
    )
    return f" · validation: {numbers}"
