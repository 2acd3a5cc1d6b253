"""TensorBoard events, where it is installed: a callback like any other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detrove.training.callbacks import EpochDone, RunDone


class Events:
    """Writes the numbers of every epoch for TensorBoard; does nothing where that is not installed (`detrove[logs]`).

    A disk that is full ends the events, with a warning, not the training: what counts is written elsewhere too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        except ImportError:
            pass
        except OSError as error:
            self._give_up(error)

    def on_epoch(self, event: EpochDone) -> None:
        """A line of metrics.jsonl, by its step."""
        if self._writer is None:
            return
        try:
            for name, value in scalars(event.line):
                self._writer.add_scalar(name, value, event.line["step"])
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def on_end(self, event: RunDone) -> None:  # noqa: ARG002
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()

    def _give_up(self, error: OSError) -> None:
        warnings.warn(f"{self._folder}: no more events for TensorBoard ({error.strerror or error})", stacklevel=2)
        self._writer = None


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line under TensorBoard's names: "validation/", "watch/", and "training/" for the rest."""
    for name, value in line.items():
        if isinstance(value, int | float):
            yield f"{'validation' if name.startswith(('ap', 'ar_')) else 'training'}/{name}", value
    for name, value in line.get("watch", {}).items():
        if isinstance(value, int | float):
            yield f"watch/{name}", value
