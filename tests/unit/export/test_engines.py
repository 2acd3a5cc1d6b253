"""The engines of ONNX Runtime and OpenVINO behind a detector."""

import shutil
import sys

import pytest
import torch
from PIL import Image

import detrove
from detrove.errors import InputError
from detrove.export import engines
from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine
from detrove.inference.engines.openvino import OpenVinoEngine
from detrove.nn.recording import recording
from detrove.structures import Predictions

pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def _written_once(request, monkeypatch):
    """An export takes seconds: all tests here share one file, copied to where it is wanted."""
    monkeypatch.setattr(engines, "export_onnx", lambda _, path: shutil.copy(request.getfixturevalue("file"), path))


PACKAGES = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}


@pytest.mark.slow
@pytest.mark.parametrize("engine", PACKAGES)
def test_an_optimised_detector_predicts_the_same(detector, engine):
    pytest.importorskip(engine)
    fast = detrove.optimize(detector, engine=engine)
    assert (fast.engine.name, fast.engine.precision) == (engine, "float32")
    generator = torch.Generator().manual_seed(5)
    pictures = [
        Image.fromarray(torch.randint(256, (*size, 3), dtype=torch.uint8, generator=generator).numpy())
        for size in [(80, 96), (50, 70), (96, 40)]
    ]
    for one, other in zip(detector.predict(pictures, 0.0), fast.predict(pictures, 0.0), strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-2)
    with recording(detector.model), pytest.raises(InputError, match="hands over no attention"):
        fast.predict(pictures)


@pytest.mark.slow
@pytest.mark.parametrize("engine", PACKAGES)
def test_answers_are_not_overwritten_by_the_next(detector, engine):
    pytest.importorskip(engine)
    made = engines.exported_engine(detector, engine)
    images = engines.trial_images()
    first = made(images)
    kept = first.logits.clone()
    images.pixels.neg_()
    assert not torch.equal(made(images).logits, kept)
    assert torch.equal(first.logits, kept)


@pytest.mark.parametrize("engine", PACKAGES)
def test_a_missing_package_is_named_with_its_remedy(engine, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(InputError, match=f"the engine {engine} needs its package: pip install {engine}"):
        PACKAGES[engine](tmp_path / "none.onnx")


def test_an_engine_that_answers_otherwise_is_refused_with_numbers(detector, monkeypatch):
    class Liar:
        name, precision = "onnxruntime", "float32"

        def __call__(self, images):
            with torch.no_grad():
                truth = detector.model.eval()(images)
            return Predictions(truth.logits[-1:] + 0.5, truth.boxes[-1:])

    monkeypatch.setattr(engines, "export_onnx", lambda *_: None)
    monkeypatch.setattr(engines, "_open", lambda *_: Liar())
    with pytest.raises(InputError, match=r"onnxruntime does not answer as the model does: logits 0\.5 apart"):
        engines.exported_engine(detector, "onnxruntime")


def test_precisions_that_an_engine_lacks_are_refused(detector, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="onnxruntime computes in float32, not in bfloat16"):
        engines.exported_engine(detector, "onnxruntime", "bfloat16")
    with pytest.raises(InputError, match="computes in float32 or bfloat16, not in float16"):
        engines.exported_engine(detector, "openvino", "float16")
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(InputError, match="this CPU does not compute in bfloat16"):
        OpenVinoEngine(tmp_path / "none.onnx", "bfloat16")


@pytest.mark.slow
def test_bfloat16_where_the_cpu_has_it(detector):
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bfloat16")
    made = engines.exported_engine(detector, "openvino", "bfloat16")
    assert made.precision == "bfloat16"
    answer = made(engines.trial_images())
    assert answer.logits.dtype == answer.boxes.dtype == torch.float32
