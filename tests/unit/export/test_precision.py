"""Graphs in float16: what is narrowed, and what that computes."""

from __future__ import annotations

import numpy as np
import pytest

from detrove.export import precision

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

WEIGHT = np.array([[1.0, 2.0], [3.0, 1 / 3]], dtype=np.float32)


def graph(nodes: list, weights: dict[str, np.ndarray]):
    """A model of one input `x` (2, 2) and one output `y`."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    made = helper.make_graph(
        nodes, "toy", value[:1], value[1:], [numpy_helper.from_array(each, name) for name, each in weights.items()]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answer(model, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def node(kind: str, inputs: list[str], output: str):
    return helper.make_node(kind, inputs, [output], name=output)


def test_products_are_narrow_and_the_rest_is_not() -> None:
    """A number beyond float16 goes through the sum untouched, and the product gets a rounded weight."""
    model = graph(
        [node("MatMul", ["x", "w"], "product"), node("Add", ["product", "large"], "y")],
        {"w": WEIGHT, "large": np.array([[100000.0, 0.0], [0.0, 0.0]], dtype=np.float32)},
    )
    half = precision.in_half(model)
    x = np.eye(2, dtype=np.float32)
    expected = WEIGHT.astype(np.float16).astype(np.float32)
    expected[0, 0] += 100000
    assert answer(half, x).tolist() == expected.tolist()
    assert answer(model, x)[1, 1] == np.float32(1 / 3) != answer(half, x)[1, 1]
    kinds = {each.name: each.data_type for each in half.graph.initializer}
    assert kinds == {"w.half": TensorProto.FLOAT16, "large": TensorProto.FLOAT}


def test_the_trunk_is_narrow_throughout_and_keeps_its_maps_name() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "product"),
        node("Relu", ["product"], "activated"),
        node("Mul", ["activated", "w"], "trunk.0"),
        node("Mul", ["trunk.0", "w"], "y"),
    ]
    half = precision.in_half(graph(nodes, {"w": WEIGHT}))
    x = np.array([[1.0, -2.0], [0.5, 3.0]], dtype=np.float32)
    w = WEIGHT.astype(np.float16)
    trunk = (np.maximum(x.astype(np.float16) @ w, 0).astype(np.float16) * w).astype(np.float16)
    np.testing.assert_allclose(answer(half, x), trunk.astype(np.float32) * WEIGHT, rtol=1e-3)
    steps = {each.name: list(each.input) for each in half.graph.node}
    assert steps["activated"] == ["product.half"]  # nothing between them widens
    assert steps["trunk.0"] == ["activated.half", "w.half"]
    assert steps["y"] == ["trunk.0", "w"]
    kinds = {each.name: each.data_type for each in half.graph.initializer}
    assert kinds == {"w.half": TensorProto.FLOAT16, "w": TensorProto.FLOAT}


def test_an_output_stays_float32() -> None:
    half = precision.in_half(graph([node("MatMul", ["x", "w"], "y")], {"w": WEIGHT}))
    assert answer(half, np.eye(2, dtype=np.float32)).dtype == np.float32


def test_the_model_given_stays_as_it_is() -> None:
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": WEIGHT})
    before = model.SerializeToString()
    precision.in_half(model)
    assert model.SerializeToString() == before


def test_a_missing_quantiser_is_named(monkeypatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(precision.InputError, match=r'int8 needs nncf: pip install "detrove\[export\]"'):
        precision.require_quantiser()
