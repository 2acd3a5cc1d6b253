"""What `detrove bench` measures, by its parts: clocks and hooks by hand, counts against the catalogue's own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.export import optimize
from detrove.inference import Detector
from detrove.inference.bench import machine, measure, stages
from detrove.inference.bench.measure import _Rounds
from detrove.models import catalogue
from detrove.models.facts import count_multiply_adds
from detrove.structures import ImageBatch, LabelMap, Preprocessing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDES", {"cpu": (8, 16)})


def toy(name: str) -> Detector:
    torch.manual_seed(0)
    model = catalogue.create(name, num_classes=2)
    return Detector(model, Preprocessing(longer=64), LabelMap.numbered(2), name=name)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return path


def test_laps_of_a_stage_add_up_and_leave_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(now))
    timeline = stages.Timeline(CPU)
    timeline.start()
    for stage in ("encoder", "decoder", "encoder"):
        timeline.lap(stage)
    assert timeline.seconds == {"encoder": 6.0, "decoder": 3.0}


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("name", [name for name in catalogue.preset_names() if name.endswith("-nano")])
def test_every_kind_of_detector_is_told_apart(name: str, optimised: bool, photo: Path) -> None:
    detector = toy(name)
    rounds = _Rounds(optimize(detector) if optimised else detector, [photo], CPU)
    rounds.warm_up()
    start = time.perf_counter()
    seconds = rounds.run()
    whole = time.perf_counter() - start
    assert list(seconds) == ["decode", "preprocess", "trunk", "encoder", "decoder", "postprocess"]
    assert all(taken > 0 for taken in seconds.values())
    assert sum(seconds.values()) <= whole


def test_time_is_told_to_the_part_that_took_it(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = toy("stacked-nano")
    slow = {"trunk": detector.model.backbone, "encoder": detector.model.stacks[1].encoder[0]}
    slow["decoder"] = detector.model.stacks[0].decoder[-1]
    rounds = _Rounds(detector, [photo], CPU)
    rounds.warm_up()
    for stage, module in slow.items():
        forward = module.forward
        with monkeypatch.context() as patch:
            patch.setattr(module, "forward", lambda *x, forward=forward, **y: time.sleep(0.3) or forward(*x, **y))
            seconds = rounds.run()
        assert max(seconds, key=seconds.__getitem__) == stage


def test_hooks_do_not_stay(photo: Path) -> None:
    detector = toy("detr-nano")
    _Rounds(detector, [photo], CPU).run()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detector.model.modules())


def test_a_round_finds_what_predict_finds(photo: Path) -> None:
    detector = toy("dab-nano")
    rounds = _Rounds(detector, [photo, photo], CPU)
    rounds.run()
    for found, expected in zip(rounds.found, detector.predict([photo, photo], threshold=0.0), strict=True):
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)


class Opaque:
    """An engine without modules, or with a compiled one."""

    name, precision = "opaque", "float32"

    def __init__(self, model: torch.nn.Module, compiled: bool) -> None:
        self.ask = model.eval()
        self.compiled = compiled
        self.model = self.ask if compiled else None

    def __call__(self, images: ImageBatch):
        with torch.inference_mode():
            return self.ask(images)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_engine_that_hides_its_parts_is_one_stage(photo: Path, compiled: bool) -> None:
    detector = toy("detr-nano")
    detector.engine = Opaque(detector.model, compiled)
    rounds = _Rounds(detector, [photo], CPU)
    rounds.warm_up()
    assert list(rounds.run()) == ["decode", "preprocess", "model", "postprocess"]


def test_a_model_whose_parts_are_not_called_is_one_stage(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "decoder_layers", lambda model: [])
    rounds = _Rounds(toy("detr-nano"), [photo], CPU)
    rounds.warm_up()
    assert list(rounds.run()) == ["decode", "preprocess", "model", "postprocess"]


def test_figures_fit_each_other(photo: Path) -> None:
    detector = toy("detr-nano")
    told: list[float] = []
    found = measure(detector, photo, batch=2, seconds=0.1, tell=told.append)
    assert (found.height, found.width, found.batch) == (48, 64, 2)
    assert found.rounds >= 7
    assert 0 < found.latency <= found.latency_p95
    assert found.parameters == sum(parameter.numel() for parameter in detector.model.parameters())
    with torch.device("meta"):
        shapes_only = catalogue.build(detector.model.config).eval()
    assert found.multiply_adds == count_multiply_adds(shapes_only, 48, 64)[1]
    computing = sum(found.stages[part] for part in stages.PARTS)
    assert found.speed == pytest.approx(2 * found.multiply_adds / computing)
    assert found.share_of_peak > 0
    assert found.throughput > 0
    assert told == sorted(told)
    assert told[-1] == 1


def test_the_peak_counts_multiply_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))  # every product takes one second
    assert machine.matrix_product_peak(torch.float32, CPU, seconds=4.0) == 16**3
    assert next(ticks) == 2 * 2 * machine.LEAST_PRODUCTS


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells and resets a process's peak")
def test_peak_memory_is_of_the_time_since() -> None:
    torch.ones(64, 2**20).sum()  # 256 MiB, freed before
    memory = machine.PeakMemory(CPU)
    if not memory.can_reset:
        pytest.skip("not allowed to reset the peak here")
    before = machine.resident_memory()
    held = torch.ones(32, 2**20)
    held.sum()
    peak, kind = memory.read()
    assert before is not None
    assert peak is not None
    assert 0.9 * 2**27 < peak - before < 1.5 * 2**27
    assert "while predicting" in kind


def test_where_the_peak_cannot_be_reset_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CLEAR", Path("/nowhere/clear_refs"))
    peak, kind = machine.PeakMemory(CPU).read()
    assert peak is not None
    assert peak > 2**24
    assert "loading included" in kind
    monkeypatch.setattr(machine.sys, "platform", "win32")
    assert machine.PeakMemory(CPU).read() == (None, "not measured on Windows")
