"""`detrove.optimize` with torch's engine: what it hands out, what it refuses, and that it can be used like before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import detrove
from detrove.errors import InputError
from detrove.inference import Detector
from detrove.inference.engines import torch as torch_engine
from detrove.models import catalogue, detr
from detrove.nn.recording import recording
from detrove.structures import LabelMap, Preprocessing

TOY = replace(
    detr.Config(),
    num_classes=3,
    num_queries=6,
    backbone="resnet18",
    dim=32,
    num_heads=4,
    feedforward_dim=48,
    num_encoder_layers=1,
    num_decoder_layers=2,
)
PICTURES = [np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8) for index in range(3)]


@pytest.fixture
def loaded() -> Detector:
    torch.manual_seed(0)
    return Detector(catalogue.build(TOY), Preprocessing(longer=96), LabelMap.numbered(3), torch.full((3,), 0.1), "toy")


def test_an_optimised_detector_predicts_the_same(loaded: Detector) -> None:
    fast = detrove.optimize(loaded)
    assert fast.engine is not None
    assert (fast.engine.name, fast.engine.precision) == ("torch", "float32")
    assert fast.thresholds is loaded.thresholds
    for given, wanted in zip(fast.predict(PICTURES, threshold=0), loaded.predict(PICTURES, threshold=0), strict=True):
        torch.testing.assert_close(given.boxes, wanted.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(given.scores, wanted.scores, rtol=0, atol=1e-4)
        assert given.names == wanted.names


def test_the_detector_handed_in_stays_as_it_was(loaded: Detector) -> None:
    kinds = [type(module) for module in loaded.model.modules()]
    detrove.optimize(loaded)
    assert loaded.engine is None
    assert [type(module) for module in loaded.model.modules()] == kinds


def test_recording_is_refused_on_an_optimised_detector_alone(loaded: Detector) -> None:
    fast = detrove.optimize(loaded)
    with recording(loaded.model) as recorder:
        loaded.predict(PICTURES[0])
    assert len(recorder.dense) == 5
    with recording(fast.model), pytest.raises(InputError, match="record the detector that `load` gives"):
        fast.predict(PICTURES[0])


def test_bfloat16_where_the_cpu_has_it(loaded: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "cpu_computes_bfloat16", lambda: True)
    fast = detrove.optimize(loaded, precision="bfloat16")
    wanted = loaded.predict(PICTURES[0], threshold=0)
    given = fast.predict(PICTURES[0], threshold=0)
    torch.testing.assert_close(given.scores, wanted.scores, rtol=0, atol=0.05)
    assert not torch.equal(given.scores, wanted.scores)


def test_bfloat16_where_the_cpu_has_it_not(loaded: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "cpu_computes_bfloat16", lambda: False)
    with pytest.raises(InputError, match="no bfloat16 arithmetic"):
        detrove.optimize(loaded, precision="bfloat16")


def test_what_cannot_be_had(loaded: Detector) -> None:
    with pytest.raises(InputError, match="float16 is for CUDA"):
        detrove.optimize(loaded, precision="float16")
    with pytest.raises(InputError, match="unknown precision 'int3'"):
        detrove.optimize(loaded, precision="int3")
    with pytest.raises(InputError, match=r"unknown engine 'torhc'.*torch"):
        detrove.optimize(loaded, "torhc")


def test_no_compiler_is_told_in_one_line(loaded: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def fails(*_: object) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda model: fails)
    fast = detrove.optimize(loaded, compiled=True)
    with pytest.raises(InputError, match="leave `compiled` out"):
        fast.predict(PICTURES[0])
