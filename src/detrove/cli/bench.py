"""`detrove bench`: how fast a detector is on this machine, and where its time goes."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.progress import told
from detrove.cli.tables import format_table
from detrove.errors import InputError

if TYPE_CHECKING:
    from detrove.inference import Detector
    from detrove.inference.bench import Bench

GENERATED = 480, 640
"""Height and width of the picture that is measured with where none is named."""


def bench(
    weights: str,
    /,
    *,
    size: int | None = None,
    batch: int = 1,
    threads: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    seconds: float = 10.0,
    image: Path | None = None,
    model: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure latency, throughput and memory, here and now.

    Tells the share of every stage. Use the machine for nothing else meanwhile; what else runs is measured with it.

    Parameters
    ----------
    weights
        A name of `detrove models` (with random weights, which are as fast as learned ones), a run folder, or weights of
        any kind that predict takes.
    size
        The longer side in pixels at which the detector sees the picture. By default as it was trained.
    batch
        Pictures computed at once.
    threads
        Threads of the CPU. By default as many as torch takes.
    engine
        What computes in the model's place: torch, …, as in detrove.optimize. By default the model as it is.
    precision
        What the engine computes in: float32, ….
    seconds
        How long to measure rounds one by one, at least seven of them; throughput then takes as long again.
    image
        The picture to look at. By default one of 640×480 pixels is made.
    model
        The catalogue's name of the detector, where its file alone cannot tell.
    as_json
        Print JSON; times are in seconds.
    """
    _check(size, batch, threads, engine, precision, seconds)
    import torch

    from detrove.inference.bench import measure, resident_memory
    from detrove.pictures import read_picture

    if image is not None:
        read_picture(image)  # a bad one is told of before anything is built and measured
    if threads is not None:
        torch.set_num_threads(threads)
    before = resident_memory()
    detector, is_random = _detector(weights, model, size)
    if engine is not None:
        from detrove.export import optimize

        detector = optimize(detector, engine, precision or "float32")
    with _picture(image) as picture, told("measuring", 100, "per cent") as tell:
        found = measure(detector, picture, batch, seconds, lambda share: tell(round(100 * share)))
    setting = _setting(detector, weights, is_random, image)
    if as_json:
        print(json.dumps({**setting, **_as_json(found, before)}, indent=1, ensure_ascii=False))
    else:
        print(_report(setting, found, before))


def _check(
    size: int | None, batch: int, threads: int | None, engine: str | None, precision: str | None, seconds: float
) -> None:
    for option, value in (("size", size), ("batch", batch), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"--{option} must be at least 1, got {value}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"--seconds must be more than 0, got {seconds:g}")
    if precision is not None and engine is None:
        raise InputError("--precision is an engine's: name an --engine, such as torch")


def _detector(weights: str, model: str | None, size: int | None) -> tuple[Detector, bool]:
    """The detector, and whether its weights are random."""
    from detrove.inference import Detector, load
    from detrove.models import catalogue
    from detrove.structures import LabelMap

    is_random = weights in catalogue.preset_names() and not Path(weights).exists()
    if is_random:
        preset = catalogue.preset(weights)
        built = catalogue.build(preset.config)  # its trunk's norms fixed, as in published weights
        detector = Detector(built, preset.preprocessing, LabelMap.numbered(preset.config.num_classes), name=weights)
    else:
        detector = load(weights, model)
    if size is not None:
        detector.preprocessing = dataclasses.replace(detector.preprocessing, longer=size, shorter=None)
    return detector, is_random


@contextmanager
def _picture(image: Path | None) -> Iterator[Path]:
    """The file of the picture named, or of one that is made, and gone afterwards."""
    if image is not None:
        yield image
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        _write_generated(path)
        yield path


def _write_generated(path: Path) -> None:
    """Smooth colours with a little grain, always the same: a JPEG about as large as a photograph's."""
    import numpy as np
    from PIL import Image

    height, width = GENERATED
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-12, 13, (height, width, 1), dtype=np.int16)
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def _setting(detector: Detector, weights: str, is_random: bool, image: Path | None) -> dict[str, Any]:
    """Under what conditions the figures were taken."""
    import torch

    from detrove.inference.bench import processor
    from detrove.nn.sampling import sampling_way

    parameter = next(detector.model.parameters())
    device = parameter.device
    return {
        "model": detector.name or type(detector.model).__name__,
        "weights": "random" if is_random else weights,
        "picture": "generated" if image is None else str(image),
        "engine": None if detector.engine is None else detector.engine.name,
        "precision": str(parameter.dtype).removeprefix("torch.")
        if detector.engine is None
        else detector.engine.precision,
        "sampling": sampling_way(device),
        "processor": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _as_json(found: Bench, before: int | None) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "share_of_peak": found.share_of_peak, "memory_before_loading": before}


def _report(setting: dict[str, Any], found: Bench, before: int | None) -> str:
    """The figures for people, no line longer than 100 columns."""
    is_random = setting["weights"] == "random"
    weights = "random weights: the speed is real, detections would not be" if is_random else setting["weights"]
    picture = "a generated picture" if setting["picture"] == "generated" else setting["picture"]
    computed = "the model as loaded" if setting["engine"] is None else f"engine {setting['engine']}"
    threads = f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}"
    lines = [
        f"{setting['model']} ({weights})",
        f"{picture}, seen at {found.width}×{found.height}, batch {found.batch}",
        f"{computed}, {setting['precision']}, torch {setting['torch']}",
        f"{setting['processor']}, {threads}",
        "",
        _stage_table(found),
        "",
        *_figures(found, setting["precision"], before),
    ]
    return "\n".join(lines)


def _stage_table(found: Bench) -> str:
    whole = sum(found.stages.values())
    rows = [
        [stage, _milliseconds(taken), f"{100 * taken / whole:.1f}%".rjust(6)] for stage, taken in found.stages.items()
    ]
    rows.append(["whole", _milliseconds(found.latency), ""])
    return format_table(["stage", "median".rjust(11), " share"], rows)


def _figures(found: Bench, precision: str, before: int | None) -> list[str]:
    latency, p95 = (_milliseconds(seconds).strip() for seconds in (found.latency, found.latency_p95))
    memory = "-" if found.memory is None else _mebibytes(found.memory)
    loading = "" if before is None or found.memory is None else f" ({_mebibytes(before)} before loading)"
    speed, peak = (f"{rate / 1e9:.3g} G" for rate in (found.speed, found.matrix_product_peak))
    lines = {
        "latency": f"median {latency}, 95% within {p95}, {found.rounds} rounds",
        "throughput": f"{found.throughput:.3g} pictures/s, as predict answers a list",
        "peak memory": f"{memory} {found.memory_kind}{loading}",
        "parameters": f"{found.parameters / 1e6:.1f} M",
        "multiply-adds": f"{found.multiply_adds / 1e9:.1f} G a picture",
        "speed": f"{speed} multiply-adds/s in the model: {100 * found.share_of_peak:.0f}% of the {peak} that",
        "": f"products of matrices reach here ({precision}, measured just now)",
    }
    return [f"{name:15}{value}" for name, value in lines.items()]


def _milliseconds(seconds: float) -> str:
    places = 1 if seconds < 1 else 0
    return f"{seconds * 1e3:.{places}f} ms".rjust(11)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
