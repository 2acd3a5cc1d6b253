"""ONNX files: what is in them, how they are written, and adaptive pooling for sizes not known yet."""

import pytest
import torch
import torch.nn.functional as F

from detrove.errors import InputError
from detrove.export import onnx as export
from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine
from detrove.nn.sampling import sampling_way
from detrove.structures import ImageBatch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(("size_in", "size_out"), [((8, 12), (4, 6)), ((25, 17), (13, 9)), ((5, 3), (7, 1))])
def test_pooling_by_products_is_adaptive_pooling(size_in, size_out):
    x = torch.randn(2, 3, *size_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(export.adaptive_average(x, size_out), F.adaptive_avg_pool2d(x, size_out))


@pytest.mark.slow
def test_named_axes_and_nothing_but_standard_operators(file):
    content = onnx.load(file)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*content.graph.input, *content.graph.output]
    }
    assert axes == {
        "pixels": ["batch", 3, "height", "width"],
        "padding_mask": ["batch", "height", "width"],
        "logits": ["batch", 7, 4],
        "boxes": ["batch", 7, 4],
    }
    assert {(each.domain, each.version) for each in content.opset_import if each.domain == ""} == {("", export.OPSET)}
    assert {node.domain for node in content.graph.node} <= {""}


@pytest.mark.slow
def test_a_fixed_shape_and_the_model_is_left_as_it_was(detector, tmp_path):
    before, training = sampling_way("cpu"), detector.model.training
    path = export.export_onnx(detector.model, tmp_path / "toy.onnx", shape=(1, 64, 96))
    assert (sampling_way("cpu"), detector.model.training) == (before, training)
    assert list(tmp_path.iterdir()) == [path]
    content = onnx.load(path)
    assert [axis.dim_value for axis in content.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 96]
    images = ImageBatch.from_images([torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(3))])
    with torch.no_grad():
        wanted = detector.model.eval()(images)
    answer = OnnxRuntimeEngine(path)(images)
    torch.testing.assert_close(answer.logits, wanted.logits[-1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(answer.boxes, wanted.boxes[-1:], rtol=0, atol=1e-4)


def test_what_cannot_be_written_is_said_at_once(detector, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere: no such folder to write a\.onnx to"):
        export.export_onnx(detector.model, tmp_path / "nowhere" / "a.onnx")
    with pytest.raises(InputError, match=r"batch, height, width, each at least 1, got \(1, 0, 9\)"):
        export.export_onnx(detector.model, tmp_path / "a.onnx", shape=(1, 0, 9))
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r'needs onnxscript: pip install "detrove\[export\]"'):
        export.export_onnx(detector.model, tmp_path / "a.onnx")
