"""Telling how far work over many pictures is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PLAIN_INTERVAL = 30.0
"""Seconds between plain lines."""


@contextmanager
def told(what: str, total: int, unit: str = "pictures") -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number done; what it tells goes to standard error."""
    if not sys.stderr.isatty():
        yield _plain_lines(what, total, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Pace(ProgressColumn):
        """How many a second."""

        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Pace(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total or None)
        yield lambda done: progress.update(task, completed=done)


def _plain_lines(what: str, total: int, unit: str) -> Callable[[int], None]:
    began = last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL and done:
            last = now
            pace = f"{done / (now - began):.3g} a second"
            if total < done:  # nobody knew how many there are
                print(f"{what}: {done} {unit}, {pace}", file=sys.stderr, flush=True)
                return
            left = (now - began) / done * (total - done)
            print(f"{what}: {done} of {total} {unit}, {pace}, {left:.0f} s left", file=sys.stderr, flush=True)

    return tell
