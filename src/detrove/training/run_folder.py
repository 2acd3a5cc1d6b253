"""What a run leaves behind, and how it is written so that a crash at any moment leaves the last good state.

Every file is written beside its place and renamed. The state to continue from is a folder of three files that belong
together: it is written as a whole beside `last/` and then put in its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from detrove.checkpoints.files import WriteError, write_atomically
from detrove.checkpoints.native import FORMAT_VERSION as WEIGHTS_VERSION
from detrove.errors import InputError
from detrove.structures import LabelMap
from detrove.training.config import TrainingConfig

VERSION = {"weights": WEIGHTS_VERSION, "state": 2}
"""Of what stands in `last/`: what weights mean, and what its facts are. A run of other ones is not continued."""


@dataclass(frozen=True)
class TrainingState:
    """Everything needed to continue: tensors by name, and plain `facts` (epoch, step, clock, best AP, mean losses).

    Random states need no room: every step draws from the run's seed and its own number.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run and the writing to them, which raises `InputError` where the disk is full or read-only.

    Of several processes only one is `writing`; the others may be told to write and do not.
    """

    path: Path
    writing: bool = True

    @property
    def config(self) -> Path:
        """The resolved options."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def best(self) -> Path:
        """The weights with the best validation AP, enough to predict."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """The folder to continue from."""
        return self.path / "last"

    @property
    def events(self) -> Path:
        """For TensorBoard."""
        return self.path / "events"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def is_begun(self) -> bool:
        """Whether there is anything but what a killed process left half written."""
        return self.path.exists() and any(not is_partial(entry) for entry in self.path.iterdir())

    def remove_partial(self) -> None:
        """Remove what a killed process left half written; `last/` and what it was before its renaming stay."""
        for entry in self.path.iterdir() if self.writing and self.path.is_dir() else ():
            if is_partial(entry):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def refuse_if_taken(self) -> None:
        """Raise `InputError` where something stands at the path already."""
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        if self.path.exists():
            raise InputError(
                f"{self.path}: exists already; choose another --output, or continue that run with --resume"
            )

    def write_config(self, config: TrainingConfig) -> None:
        """Write config.yaml."""
        self._write(self.config, config.to_yaml())

    def write_labels(self, label_map: LabelMap) -> None:
        """Write labels.json: one {"id", "name"} per class slot."""
        text = json.dumps(label_map.to_json(), indent=2, ensure_ascii=False)
        self._write(self.path / "labels.json", f"{text}\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where the file is not there yet."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew: it is small, and so never holds half a line."""
        self._write(self.metrics, "".join(f"{json.dumps(line)}\n" for line in lines))

    def _write(self, path: Path, text: str) -> None:
        if self.writing:
            write_atomically(path, text.encode())

    def save_last(self, state: TrainingState) -> None:
        """Put a state in the place of `last/`; the old one stays until the new one is whole."""
        if not self.writing:
            return
        beside, old = self.path / "last.partial", self.path / "last.old"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            _write_tensors(beside / "model.safetensors", state.model)
            _write_tensors(beside / "optimizer.safetensors", state.optimizer)
            if state.average is not None:
                _write_tensors(beside / "average.safetensors", state.average)
            write_atomically(beside / "state.json", json.dumps({"version": VERSION, **state.facts}, indent=2).encode())
            if self.last.exists():
                shutil.rmtree(old, ignore_errors=True)
                self.last.rename(old)
            beside.rename(self.last)
        except OSError as error:
            raise WriteError(f"{self.last}: cannot be written ({error.strerror})") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def saying_what_is_kept(self) -> Iterator[None]:
        """A file that cannot be written says what the run has already saved, and how to go on."""
        try:
            yield
        except WriteError as error:
            raise InputError(f"{error}; {self._kept()}") from None

    def _kept(self) -> str:
        if not self.last.exists():
            return "nothing of the run was saved yet"
        facts = json.loads((self.last / "state.json").read_text(encoding="utf-8"))
        return (
            f"what was saved last is whole (epoch {facts['epoch']}, step {facts['step']}): "
            "once there is room, continue with --resume"
        )

    def load_last(self) -> TrainingState | None:
        """The state to continue from; None where the run has none yet. A crash while renaming leaves it in last.old."""
        folder = next((place for place in (self.last, self.path / "last.old") if place.is_dir()), None)
        if folder is None:
            return None
        average = folder / "average.safetensors"
        try:
            facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if facts.pop("version", None) != VERSION:
                raise InputError(f"{folder}: of another version of detrove; start anew in another --output")
            return TrainingState(
                model=safetensors.torch.load_file(folder / "model.safetensors"),
                optimizer=safetensors.torch.load_file(folder / "optimizer.safetensors"),
                average=safetensors.torch.load_file(average) if average.exists() else None,
                facts=facts,
            )
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{folder}: cannot continue from it ({error}); start anew in another --output") from None


def is_partial(entry: Path) -> bool:
    """Whether a file or folder carries the name of one that is being written."""
    return entry.name.endswith(".partial")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As safetensors, which wants every tensor in memory of its own."""
    apart = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(apart))


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, … : the first that does not exist."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path
