"""TensorBoard events, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """Writes the numbers of every epoch for TensorBoard; does nothing where that is not installed (`detrove[logs]`)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder))

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, by its step: validation numbers under "validation/", the rest under "training/"."""
        if self._writer is None:
            return
        for name, value in line.items():
            if isinstance(value, int | float):
                group = "validation" if name.startswith(("ap", "ar_")) else "training"
                self._writer.add_scalar(f"{group}/{name}", value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
