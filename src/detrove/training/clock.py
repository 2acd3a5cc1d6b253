"""The training clock: what a budget of minutes is measured by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SUSPICIOUS_GAP = 60.0  # seconds; a shorter gap is never taken for sleep
SUSPICIOUS_FACTOR = 20.0  # times the longest step so far


class TrainingClock:
    """Counts training time: from its making to the last step, with `paused()` stretches (validation, saving) left out.

    A laptop that slept must not have spent its budget: a gap between two steps that exceeds both a minute and twenty
    times the longest step so far counts as one ordinary step only.

    `budget` is in seconds, None for no limit; `used` is what an earlier part of the same run has spent; `now` gives
    seconds and may be replaced in tests. `state` and `restore` carry it from one part of a run to the next.
    """

    def __init__(
        self, budget: float | None = None, used: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget
        self.used = used
        self.paused_seconds = 0.0
        self._now = now
        self._last = now()
        self._steps = 0
        self._step_seconds = 0.0
        self._longest = 0.0

    def prepared(self) -> None:
        """Mark the end of the preparation: all of it counts."""
        now = self._now()
        self.used += now - self._last
        self._last = now

    def step(self) -> None:
        """Mark the end of a training step, loading its pictures included."""
        now = self._now()
        elapsed = now - self._last
        if self._steps and elapsed > max(SUSPICIOUS_GAP, SUSPICIOUS_FACTOR * self._longest):
            elapsed = self.seconds_per_step
        self._last = now
        self.used += elapsed
        self._steps += 1
        self._step_seconds += elapsed
        self._longest = max(self._longest, elapsed)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the training time; it adds to `paused_seconds`."""
        started = self._now()
        try:
            yield
        finally:
            spent = self._now() - started
            self.paused_seconds += spent
            self._last += spent

    def state(self) -> dict[str, float]:
        """What `restore` needs: plain numbers."""
        return {
            "used": self.used,
            "steps": self._steps,
            "step_seconds": self._step_seconds,
            "longest": self._longest,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from the clock of an earlier part of the run: its time is added, its steps are known."""
        self.used += state["used"]
        self._steps, self._step_seconds = int(state["steps"]), state["step_seconds"]
        self._longest = state["longest"]

    @property
    def seconds_per_step(self) -> float:
        """The mean step so far; 0 before the first."""
        return self._step_seconds / self._steps if self._steps else 0.0

    @property
    def fraction(self) -> float:
        """The part of the budget that is spent, in [0, 1]; 0 without a budget."""
        return min(1.0, self.used / self.budget) if self.budget else 0.0

    def allows_another_step(self) -> bool:
        """Whether one more step of mean length still fits the budget; the first step of a run always does."""
        if self.budget is None or self.used == 0 or self._steps == 0:
            return True
        return self.used + self.seconds_per_step <= self.budget
