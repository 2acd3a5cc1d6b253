"""Send the numbers of a training elsewhere: any object with on_step, on_epoch or on_end will do.

    python examples/logger_callback.py DATA OUTPUT [MINUTES]

Here they become one CSV file that a spreadsheet opens while the training goes on. For another logger, call it in the
same three places; nothing has to be inherited or registered.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import detrove
from detrove.training.callbacks import EpochDone, RunDone, StepDone

EVERY = 10  # steps


class CsvLog:
    """Writes a row every few steps, and one with the AP where an epoch was validated."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "what", "value"])

    def on_step(self, event: StepDone) -> None:
        """Every few steps the loss."""
        if event.step % EVERY == 0:
            self._rows.writerow([event.step, "loss", event.losses["loss"]])
            self._file.flush()

    def on_epoch(self, event: EpochDone) -> bool:
        """The AP; a detector that is good enough ends the training, by answering True."""
        if event.metrics is None or event.metrics.ap is None:
            return False
        self._rows.writerow([event.line["step"], "AP", event.metrics.ap])
        self._file.flush()
        return event.metrics.ap > 0.9

    def on_end(self, event: RunDone) -> None:
        """What stood out."""
        print(f"{event.output}: the numbers are in {self._file.name}", *event.verdict, sep="\n")
        self._file.close()


def main(data: str, output: str, minutes: str = "10") -> None:
    """Train with the log beside the run folder."""
    log = CsvLog(Path(f"{output}.csv"))
    detrove.train(data, output=output, minutes=float(minutes), callbacks=[log])


if __name__ == "__main__":
    main(*sys.argv[1:])
