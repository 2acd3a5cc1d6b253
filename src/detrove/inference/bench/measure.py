"""`measure`: latency, throughput, memory and arithmetic of a detector, on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detrove.inference.bench.machine import PeakMemory, matrix_product_peak
from detrove.inference.bench.stages import PARTS, STAGES, Timeline, watch_model
from detrove.inference.detector import Detector
from detrove.inference.postprocess import postprocess
from detrove.inference.sources import read_source
from detrove.models import catalogue
from detrove.models.facts import count_multiply_adds
from detrove.structures import Detections, ImageBatch, Predictions

WARM_UP_ROUNDS = 2
LEAST_ROUNDS = 7
LEAST_BATCHES = 3


@dataclass(frozen=True)
class Bench:
    """What was measured. Times are seconds of one batch.

    `stages` are medians, in order. Every moment of a round belongs to one, so they add up to `latency` but for the
    medians. `latency` is the median of whole rounds, from the files to the detections, one batch after the other;
    `latency_p95` the nearest-rank 95th percentile. `throughput` is in pictures a second, as `predict` answers a list.
    `memory` is in bytes and `memory_kind` says of what. `multiply_adds` are those of one picture in the model as its
    file tells it, whatever an engine leaves out. `speed` and `matrix_product_peak` are multiply-adds a second, of the
    model's own time and of the machine.
    """

    height: int
    width: int
    batch: int
    rounds: int
    stages: dict[str, float]
    latency: float
    latency_p95: float
    throughput: float
    memory: int | None
    memory_kind: str
    parameters: int
    multiply_adds: int
    speed: float
    matrix_product_peak: float

    @property
    def share_of_peak(self) -> float:
        """What the model reaches of the machine's own matrix products."""
        return self.speed / self.matrix_product_peak


def measure(
    detector: Detector,
    picture: str | Path,
    batch: int = 1,
    seconds: float = 10.0,
    tell: Callable[[float], object] = float,  # tells nobody
) -> Bench:
    """How fast the detector answers a batch of `batch` times the picture, whole, not in tiles.

    Rounds are repeated for about `seconds`, seven at least, after two that are not counted; then the same time is given
    to `predict` with a list. `tell` hears what share of it is done. The machine's peak is taken before and after.
    """
    device = next(detector.model.parameters()).device
    dtype = _dtype(detector)
    peak_seconds = min(1.0, seconds / 10)
    peak = matrix_product_peak(dtype, device, peak_seconds)
    height, width = detector.preprocessing.target_size(*_size(picture))
    rounds = _Rounds(detector, [picture] * batch, device)
    rounds.warm_up()
    memory = PeakMemory(device)
    timings = _repeat(rounds, seconds, lambda share: tell(share / 2))
    latencies = sorted(sum(timing.values()) for timing in timings)
    latency = statistics.median(latencies)
    throughput = _throughput(detector, picture, batch, seconds / latency)
    memory_bytes, memory_kind = memory.read()
    tell(1.0)
    peak = max(peak, matrix_product_peak(dtype, device, peak_seconds))
    stages = {stage: statistics.median(timing[stage] for timing in timings) for stage in STAGES if stage in timings[0]}
    parameters, multiply_adds = _parameters_and_multiply_adds(detector.model, height, width)
    return Bench(
        height=height,
        width=width,
        batch=batch,
        rounds=len(timings),
        stages=stages,
        latency=latency,
        latency_p95=latencies[math.ceil(0.95 * len(latencies)) - 1],
        throughput=throughput,
        memory=memory_bytes,
        memory_kind=memory_kind,
        parameters=parameters,
        multiply_adds=multiply_adds,
        speed=batch * multiply_adds / sum(stages[part] for part in (*PARTS, "model") if part in stages),
        matrix_product_peak=peak,
    )


class _Rounds:
    """From files to detections as `predict` goes, with a clock between the stages."""

    def __init__(self, detector: Detector, sources: Sequence[str | Path], device: torch.device) -> None:
        self.detector, self.sources = detector, sources
        self.timeline = Timeline(device)
        self.answer: Callable[[ImageBatch], Predictions] = detector.engine or _answer_of(detector.model)
        self.watched = detector.model if detector.engine is None else _module_of(detector.engine)
        self.found: list[Detections] = []

    def warm_up(self) -> None:
        """Two rounds; a model whose parts cannot be told apart is not watched from then on."""
        for _ in range(WARM_UP_ROUNDS):
            if "model" in self.run():
                self.watched = None

    def run(self) -> dict[str, float]:
        """One round: the seconds of each stage, in which every moment belongs to one."""
        detector, timeline = self.detector, self.timeline
        with watch_model(self.watched, timeline) as rest:
            timeline.start()
            pictures = [read_source(source) for source in self.sources]
            timeline.lap("decode")
            images = ImageBatch.from_images([detector.preprocessing(picture) for picture in pictures])
            timeline.lap("preprocess")
            predictions = self.answer(images)
            timeline.lap(rest())
            config: Any = detector.model.config
            sizes = [(picture.height, picture.width) for picture in pictures]
            self.found = postprocess(predictions, sizes, detector.label_map, config.scores, config.num_detections)
            timeline.lap("postprocess")
        return timeline.seconds


def _answer_of(model: nn.Module) -> Callable[[ImageBatch], Predictions]:
    """The model as `predict` asks it: in evaluation mode, on its device and in its type, without gradients."""
    model.eval()
    parameter = next(model.parameters())

    @torch.inference_mode()
    def answer(images: ImageBatch) -> Predictions:
        return model(images.to(device=parameter.device, dtype=parameter.dtype))

    return answer


def _module_of(engine: Any) -> nn.Module | None:
    """An engine's model, where it computes with one part after the other; a compiled one has no parts."""
    model = getattr(engine, "model", None)
    return model if isinstance(model, nn.Module) and not getattr(engine, "compiled", False) else None


def _dtype(detector: Detector) -> torch.dtype:
    """Of the matrix products that the detector is measured by; those in int8 are told beside float32's."""
    if detector.engine is not None:
        return getattr(torch, detector.engine.precision.replace("int8", "float32"))
    return next(detector.model.parameters()).dtype


def _size(picture: str | Path) -> tuple[int, int]:
    decoded = read_source(picture)
    return decoded.height, decoded.width


def _repeat(rounds: _Rounds, seconds: float, tell: Callable[[float], object]) -> list[dict[str, float]]:
    """The stages of every round."""
    timings: list[dict[str, float]] = []
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or len(timings) < LEAST_ROUNDS:
        timings.append(rounds.run())
        tell(min(spent / seconds, len(timings) / LEAST_ROUNDS, 1.0))
    return timings


def _throughput(detector: Detector, picture: str | Path, batch: int, batches: float) -> float:
    """Pictures a second, as `predict` answers a list of them."""
    pictures = [picture] * (batch * max(LEAST_BATCHES, round(batches)))
    start = time.perf_counter()
    detector.predict(pictures, batch_size=batch, tiles=0)
    return len(pictures) / (time.perf_counter() - start)


def _parameters_and_multiply_adds(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """For one picture of this size, counted on a model of the same config that has shapes and no numbers."""
    with torch.device("meta"):
        shapes_only = catalogue.build(model.config).eval()
    parameters = sum(parameter.numel() for parameter in shapes_only.parameters())
    return parameters, count_multiply_adds(shapes_only, height, width)[1]
