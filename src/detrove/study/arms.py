"""Trainings that are compared: every arm an ordinary run in a process of its own, one after the other, resumable.

An arm leaves two things under the comparison's folder: its run folder `arms/KEY/`, and beside it `arms/KEY.json` with
what it is and what it took. An arm whose file holds a measurement is finished and not run again; one that was cut short
is continued; one that failed is tried again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from detrove.checkpoints.files import write_atomically
from detrove.errors import InputError
from detrove.models import catalogue
from detrove.training import TrainingConfig
from detrove.training.held_out import choose_splits
from detrove.training.run_folder import RunFolder

ARMS = "arms"
MODULE = "detrove.study.arm_process"
INTERRUPTED = 130


@dataclass(frozen=True)
class Arm:
    """One training of a comparison, as plain values.

    `name` is what tables call it, the same for all its seeds; `model` a name of the catalogue; `settings` what is
    special about it, as of `--set`. It begins with the queries that the arm `queries_from` of the same seed has
    learned, where it names one.
    """

    name: str
    model: str
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    queries_from: str | None = None

    @property
    def key(self) -> str:
        """What its folder and file are called."""
        return key_of(self.name, self.seed)


def key_of(name: str, seed: int) -> str:
    """
    >>> key_of("(x, y, w, h), modulated", 1)
    'x-y-w-h-modulated-seed1'
    """
    return f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}-seed{seed}"


@dataclass(frozen=True)
class Conditions:
    """What all arms of a comparison share; the values are those of `detrove.train`. `data` is an absolute path.

    `seconds` is how long each finished arm is measured, twice (`inference.bench.measure`).
    """

    data: str
    format: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    size: int | None = None
    batch_size: int | None = None
    backbone_weights: str | None = "pretrained"
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 3.0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise InputError("a comparison needs one budget for all: give epochs or minutes, not both")

    def describe_budget(self) -> str:
        """ "12 epochs" or "10 minutes", each."""
        if self.epochs is not None:
            return f"{self.epochs} epoch{'s' if self.epochs != 1 else ''}"
        return f"{self.minutes:g} minutes"


@dataclass(frozen=True)
class ArmRecord:
    """An arm's file: what it is, what became of it, and where.

    `trained` and `measured` are None until the arm has come so far (their keys: `arm_process`); `error` is the line
    that its last attempt ended with.
    """

    path: Path
    arm: Arm
    conditions: Conditions
    trained: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    error: str | None = None

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.path.with_suffix("")

    @property
    def queries(self) -> Path:
        """What its queries did on the validation pictures: a `QueryStudy`."""
        return self.path.with_suffix(".queries.npz")

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.trained is not None and self.measured is not None

    @property
    def why_unfinished(self) -> str:
        """The line to tell of an arm that has not finished."""
        return self.error or "not run to its end yet"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of its metrics.jsonl."""
        return RunFolder(self.run).read_metrics()

    def write(self, **changes: Any) -> ArmRecord:
        """The record with these changes, also in its file."""
        record = replace(self, **changes)
        values = {key: value for key, value in asdict(record).items() if key != "path"}
        write_atomically(record.path, f"{json.dumps(values, indent=1, ensure_ascii=False)}\n".encode())
        return record

    @classmethod
    def read(cls, path: Path) -> ArmRecord:
        """The inverse of `write`; `InputError` where the file is none of ours."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            arm, conditions = Arm(**values.pop("arm")), Conditions(**values.pop("conditions"))
            return cls(path, arm, conditions, **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not what a comparison left ({error}); choose another --output") from None


def begin(arms: Sequence[Arm], conditions: Conditions, output: Path) -> list[ArmRecord]:
    """The arms' records under `output`, new or as an earlier call left them; nothing is trained yet.

    Raises `InputError` for whatever can be known to be wrong before the first arm is run: a model, setting or data set
    that is not there, a folder with other things in it, an arm that was begun otherwise.
    """
    check_arms(arms, conditions)
    folder = output / ARMS
    if output.exists() and not folder.is_dir() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already and holds no comparison; choose another --output")
    records = [_record(arm, conditions, folder) for arm in arms]
    for record in records:
        if not record.path.exists():
            record.write()
    return records


def _record(arm: Arm, conditions: Conditions, folder: Path) -> ArmRecord:
    path = folder / f"{arm.key}.json"
    asked = ArmRecord(path, arm, conditions)
    if not path.exists():
        return asked
    before = ArmRecord.read(path)
    changed = [
        f"{name} was {was}, now {now}"
        for kind in ("arm", "conditions")
        for (name, was), now in zip(
            _plain(getattr(before, kind)).items(), _plain(getattr(asked, kind)).values(), strict=True
        )
        if was != now and name != "seconds"
    ]
    if changed:
        raise InputError(
            f"{path}: this arm was begun otherwise: {'; '.join(changed)}; repeat the options, or choose another "
            "--output"
        )
    return before


def _plain(value: Any) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(asdict(value)))


def check_arms(arms: Sequence[Arm], conditions: Conditions) -> None:
    """Raise `InputError` where an arm cannot be trained, or two have the same name and seed."""
    import torch

    keys = [arm.key for arm in arms]
    twice = next((arm for arm in arms if keys.count(arm.key) > 1), None)
    if twice is not None:
        raise InputError(f"{twice.name}, seed {twice.seed}: named twice; name each model and each seed once")
    choose_splits(Path(conditions.data), conditions.format)
    for arm in {(arm.model, json.dumps(arm.settings)): arm for arm in arms}.values():
        preset = catalogue.preset(arm.model)
        config = TrainingConfig.from_preset(
            preset,
            settings={**conditions.settings, **arm.settings},
            size=conditions.size,
            batch_size=conditions.batch_size,
            data=conditions.data,
            output="",
            model=arm.model,
            epochs=conditions.epochs,
            minutes=conditions.minutes,
        )
        with torch.device("meta"):
            catalogue.create(arm.model, num_classes=1, backbone_weights=None, **config.model_options())


def run_arms(
    records: Sequence[ArmRecord], progress: bool = True, tell: Callable[[str], None] = print
) -> list[ArmRecord]:
    """Train and measure every arm that is not finished; `tell` hears which. Answers all records as they are then.

    An arm that fails, or whose process dies, does not end the others: its record says why. Ctrl-C ends the present arm
    with everything saved and leaves here as `KeyboardInterrupt`.
    """
    done: list[ArmRecord] = []
    for number, record in enumerate(records, start=1):
        name = f"arm {number} of {len(records)}: {record.arm.name}, seed {record.arm.seed}"
        if record.finished:
            tell(f"{name}: finished before")
            done.append(record)
            continue
        missing = _missing_donor(record.arm, done)
        if missing is not None:
            done.append(record.write(error=missing))
        else:
            tell(name)
            done.append(_run_arm(record, progress))
        if done[-1].error:
            tell(f"{name} failed: {done[-1].error}")
    return done


def _missing_donor(arm: Arm, done: Sequence[ArmRecord]) -> str | None:
    """Why an arm cannot begin: the arm whose queries it needs has none."""
    if arm.queries_from is None:
        return None
    donor = next(record for record in done if record.arm.key == key_of(arm.queries_from, arm.seed))
    return None if donor.finished else f"{donor.arm.name}, whose queries it begins with, has failed"


def _run_arm(record: ArmRecord, progress: bool) -> ArmRecord:
    status = run_process([sys.executable, "-m", MODULE, str(record.path), *(["--progress"] if progress else [])])
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    record = ArmRecord.read(record.path)
    if not record.finished and record.error is None:
        how = f"signal {-status} (9 is what a machine out of memory sends)" if status < 0 else f"status {status}"
        record = record.write(error=f"its process ended with {how}")
    return record


def run_process(command: Sequence[str]) -> int:
    """Run a command and answer its exit status; it hears of Ctrl-C, and of our own end, as the end of its input."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C on the terminal reaches us alone
    )
    assert process.stdin is not None
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.stdin.close()
        process.wait()
        raise
    finally:
        process.stdin.close()
