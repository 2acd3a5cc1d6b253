"""`compare`: several detectors on the same data under one budget, each an ordinary run; one table, one page."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detrove.checkpoints.files import write_atomically
from detrove.errors import InputError
from detrove.evaluation import METRIC_NAMES
from detrove.reporting import Page
from detrove.study.arms import Arm, ArmRecord, Conditions, begin, run_arms

REPORT, NUMBERS = "report.html", "comparison.json"
SHOWN = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")
COURSE = ("epoch", "step", "minutes", "pictures", "learning_rate", "loss", *METRIC_NAMES, "watch")
"""What is told of every epoch: the runs' own files have more."""


@dataclass(frozen=True)
class Summary:
    """All finished seeds of one arm; `histories` are the lines of their metrics.jsonl."""

    name: str
    records: tuple[ArmRecord, ...]
    histories: tuple[list[dict[str, Any]], ...]

    @property
    def arm(self) -> Arm:
        """What it trains, its first seed's."""
        return self.records[0].arm

    @property
    def best(self) -> list[dict[str, Any]]:
        """Of each seed, the twelve COCO numbers of the weights that the run kept."""
        return [record.trained["best"] for record in self.records if record.trained]

    def values(self, metric: str) -> list[float]:
        """A metric of every seed; empty where there is nothing to measure."""
        return [line[metric] for line in self.best if line[metric] is not None]

    def mean(self, metric: str) -> float | None:
        """The mean of `values`."""
        values = self.values(metric)
        return statistics.mean(values) if values else None

    @property
    def ap(self) -> float:
        """The mean AP; 0 where no validation picture has a box."""
        return self.mean("ap") or 0.0

    @property
    def minutes(self) -> float:
        """Training time, mean of the seeds; validation and saving are left out."""
        return statistics.mean(history[-1]["minutes"] for history in self.histories)

    @property
    def epochs(self) -> float:
        """Epochs trained, a cut one included; mean of the seeds."""
        return statistics.mean(history[-1]["epoch"] for history in self.histories)

    @property
    def memory(self) -> int | None:
        """The most bytes that a training process held; the largest of the seeds."""
        known = [record.trained["memory"] for record in self.records if record.trained and record.trained["memory"]]
        return max(known, default=None)

    def measured(self, name: str) -> float:
        """What was measured of the trained detectors (`arm_process`), the median of the seeds."""
        return statistics.median(record.measured[name] for record in self.records if record.measured)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where: `output` holds report.html, comparison.json and the runs.

    `records` are the arms as asked for, seed by seed.
    """

    output: Path
    records: tuple[ArmRecord, ...]

    @property
    def conditions(self) -> Conditions:
        """What all arms share."""
        return self.records[0].conditions

    @property
    def failed(self) -> list[ArmRecord]:
        """Those that did not finish."""
        return [record for record in self.records if not record.finished]

    @cached_property
    def summaries(self) -> list[Summary]:
        """One for each arm with a finished seed, in the order asked for."""
        names = dict.fromkeys(record.arm.name for record in self.records if record.finished)
        return [self._summary(name) for name in names]

    def _summary(self, name: str) -> Summary:
        records = tuple(record for record in self.records if record.finished and record.arm.name == name)
        return Summary(name, records, tuple(record.history for record in records))

    def ranked(self) -> list[Summary]:
        """The summaries by their AP, the best first."""
        return sorted(self.summaries, key=lambda summary: -summary.ap)

    def to_json(self) -> dict[str, Any]:
        """Plain values: the conditions, every arm with its seeds and their course, and what failed."""
        conditions = {**vars(self.conditions), "data": Path(self.conditions.data).name}
        return {
            "conditions": conditions,
            "arms": [_arm_to_json(summary) for summary in self.summaries],
            "failed": [
                {"name": record.arm.name, "seed": record.arm.seed, "error": record.why_unfinished}
                for record in self.failed
            ],
        }

    def refuse_failures(self) -> None:
        """Raise `InputError` where an arm did not finish."""
        if self.failed:
            told = "; ".join(
                f"{record.arm.name}, seed {record.arm.seed}: {record.why_unfinished}" for record in self.failed
            )
            raise InputError(
                f"{len(self.failed)} of {len(self.records)} arms failed: {told}; mend that and run the same command "
                "again: what is finished is kept"
            )


def _arm_to_json(summary: Summary) -> dict[str, Any]:
    seeds = [
        {
            "seed": record.arm.seed,
            "run": f"{record.path.parent.name}/{record.run.name}",
            "minutes": history[-1]["minutes"],
            "epochs": history[-1]["epoch"],
            **(record.trained or {}),
            **(record.measured or {}),
            "course": [{name: line[name] for name in COURSE if name in line} for line in history],
        }
        for record, history in zip(summary.records, summary.histories, strict=True)
    ]
    return {
        "name": summary.name,
        "model": summary.arm.model,
        "settings": summary.arm.settings,
        "mean": {name: summary.mean(name) for name in METRIC_NAMES},
        "seeds": seeds,
    }


def compare(
    data: str | Path,
    models: Sequence[str],
    output: str | Path,
    epochs: int | None = None,
    minutes: float | None = None,
    seeds: Sequence[int] = (0,),
    size: int | None = None,
    batch_size: int | None = None,
    backbone_weights: str | Path | None = "pretrained",
    format: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 3.0,
    progress: bool = True,
) -> Comparison:
    """Train several detectors of the catalogue on the same data under one budget and tell which learned what.

    Every arm (a model and a seed) is `detrove.train` with these options, each in a process of its own, one after the
    other, in `output`/arms: what a run takes of memory is its own, and one that fails does not end the others. The
    budget is `epochs` or `minutes` for each arm; schedule, rate and everything else are each model's recipe unless
    `settings` say otherwise. Then each is measured for about twice `seconds`: AP as the run validated it, latency on
    the first validation picture, what its queries do. Use the machine for nothing else meanwhile.

    `output` gets report.html and comparison.json. Call it again with the same options to go on where it stopped: what
    is finished stays, what was cut short is continued; models and seeds may be added. Raises `InputError` for what is
    wrong with the input before the first arm is trained where it can be known; arms that fail later are in
    `Comparison.failed`.
    """
    models, seeds = list(models), list(seeds)
    if not models or not seeds:
        raise InputError("nothing to compare: name at least one model and one seed")
    conditions = conditions_of(
        data, format, epochs, minutes, size, batch_size, backbone_weights, dict(settings or {}), seconds
    )
    # Seed by seed, so that a comparison that is cut short has compared all detectors.
    arms = [Arm(model, model, seed) for seed in seeds for model in models]
    from detrove.study.compare_page import comparison_page

    return run_comparison(arms, conditions, Path(output), progress, comparison_page)


def conditions_of(
    data: str | Path,
    format: str | None,
    epochs: int | None,
    minutes: float | None,
    size: int | None,
    batch_size: int | None,
    backbone_weights: str | Path | None,
    settings: dict[str, Any],
    seconds: float,
) -> Conditions:
    """The options of a command as what all arms share; paths are made absolute, so that a folder can be left."""
    data = Path(data)
    if not data.exists():
        raise InputError(f"{data}: no such data set")
    if backbone_weights is not None and Path(backbone_weights).is_file():
        backbone_weights = Path(backbone_weights).resolve()
    weights = None if backbone_weights in (None, "none") else str(backbone_weights)
    return Conditions(
        str(data.resolve()), format, epochs, minutes, size, batch_size, weights, settings, seconds=seconds
    )


def run_comparison(
    arms: Sequence[Arm],
    conditions: Conditions,
    output: Path,
    progress: bool,
    make_page: Callable[[Comparison], Page],
) -> Comparison:
    """Run what is not finished yet and write report.html and comparison.json, also where Ctrl-C ends it."""
    tell: Callable[[str], None] = _tell if progress else _hush
    records = begin(arms, conditions, output)
    try:
        records = run_arms(records, progress, tell)
    finally:
        comparison = Comparison(output, tuple(ArmRecord.read(record.path) for record in records))
        if comparison.summaries:
            numbers = json.dumps(comparison.to_json(), indent=1, ensure_ascii=False)
            write_atomically(output / NUMBERS, f"{numbers}\n".encode())
            write_atomically(output / REPORT, make_page(comparison).to_html().encode())
    return comparison


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _hush(text: str) -> None: ...
