"""Graphs in other precisions: float16 by casts around what bears it, int8 by NNCF.

What is narrowed follows from what bears it. The trunk, which takes most of the time, is computed in float16 whole; of
the transformer its convolutions and matrix products are, while coordinates, norms, softmax and post-processing stay
float32, as they do under `optimize`. In int8, trunk and encoder are quantised; decoder and heads, small and exact, stay
as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from detrove.errors import InputError
from detrove.export.stages import MEMORY, nodes_before, trunk_values

PRECISIONS = ("float32", "float16", "bfloat16", "int8")

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""What is computed in float16 outside the trunk."""

NARROW_IN_TRUNK = frozenset(
    [
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "MaxPool",
        "Mul",
        "Relu",
        "Sigmoid",
    ]
)
"""What is computed in float16 in the trunk besides."""

Calibration = Sequence[dict[str, np.ndarray]]
"""Batches of the user's pictures, as the file takes them."""


def in_half(model: Any) -> Any:
    """An ONNX model as another that computes what bears it in float16; values keep their names, and are float32 there.

    The value `x` of a step in float16 is `x.half`; `x` itself is made of it for those who read it in float32.
    """
    from onnx import TensorProto, helper, shape_inference

    half = _constants_folded(model)
    graph = half.graph
    floats = _float_values(shape_inference.infer_shapes(half).graph)
    trunk = nodes_before(graph, trunk_values(output for node in graph.node for output in node.output))
    narrow = [
        node.op_type in PRODUCTS or (node.name in trunk and node.op_type in NARROW_IN_TRUNK) for node in graph.node
    ]
    nodes, made_half = [], set()
    for node, is_narrow in zip(graph.node, narrow, strict=True):
        if is_narrow:
            for index, name in enumerate(node.input):
                if name in floats and name not in made_half:
                    made_half.add(name)
                    nodes.append(
                        helper.make_node("Cast", [name], [f"{name}.half"], f"{name}.to_half", to=TensorProto.FLOAT16)
                    )
                node.input[index] = f"{name}.half" if name in floats else name
        nodes.append(node)
        if is_narrow:
            for index, name in enumerate(node.output):
                if name in floats:
                    made_half.add(name)
                    node.output[index] = f"{name}.half"
                    nodes.append(
                        helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.to_float", to=TensorProto.FLOAT)
                    )
    del graph.node[:]
    graph.node.extend(nodes)
    _store_in_half(graph)
    return half


def _float_values(graph: Any) -> set[str]:
    """The names of all values in float32."""
    from onnx import TensorProto

    typed = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    typed |= {value.name: value.data_type for value in graph.initializer}
    return {name for name, kind in typed.items() if kind == TensorProto.FLOAT}


def _store_in_half(graph: Any) -> None:
    """Weights that are only read in float16 are stored so."""
    from onnx import TensorProto, numpy_helper

    readers = Counter(name for node in graph.node for name in node.input)
    casts = {node.input[0]: node for node in graph.node if node.op_type == "Cast" and node.output[0].endswith(".half")}
    for weight in list(graph.initializer):
        cast = casts.get(weight.name)
        if cast is None or weight.data_type != TensorProto.FLOAT:
            continue
        with np.errstate(over="ignore"):  # a weight beyond float16 becomes infinite, and the gate sees it
            values = numpy_helper.to_array(weight).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(values, cast.output[0]))
        graph.node.remove(cast)
        if readers[weight.name] == 1:
            graph.initializer.remove(weight)


def quantised_onnx(model: Any, calibration: Calibration) -> Any:
    """An ONNX model whose trunk and encoder multiply in int8, its ranges taken from the calibration's batches."""
    require_quantiser()
    model = _constants_folded(model)
    graph = model.graph
    values = [output for node in graph.node for output in node.output]
    bearing = nodes_before(graph, [*trunk_values(values), MEMORY])
    return _quantised(model, calibration, [node.name for node in graph.node if node.name not in bearing])


def quantised_openvino(model: Any, calibration: Calibration) -> Any:
    """As `quantised_onnx`, of an OpenVINO model."""
    require_quantiser()
    bearing = _operations_before(model)
    names = [operation.get_friendly_name() for operation in model.get_ordered_ops()]
    return _quantised(model, calibration, [name for name in names if name not in bearing])


def _quantised(model: Any, calibration: Calibration, exact: list[str]) -> Any:
    """The model in int8 but for the steps that stay `exact`; what NNCF tells of its progress is not the answer."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):
        return nncf.quantize(
            model,
            nncf.Dataset(calibration),
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=exact, validate=False),
        )


def require_quantiser() -> None:
    """Say what is missing before minutes are spent."""
    if importlib.util.find_spec("nncf") is None:
        raise InputError('int8 needs nncf: pip install "detrove[export]"')


def _constants_folded(model: Any) -> Any:
    """Another ONNX model with what does not hang on its inputs computed, so that its weights stand there as constants.

    Every step of it has a name.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="detrove-") as folder:
        folded = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folded)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion"],  # sums stay what they are, and in float32
        )
        model = onnx.load(folded)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"step.{index}"
    _fold_casts(model.graph)
    return model


def _fold_casts(graph: Any) -> None:
    """Compute the casts of constants that are left: NNCF stumbles over them."""
    from onnx import helper, numpy_helper

    constants = {value.name: value for value in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Cast" and node.input[0] in constants:
            values = numpy_helper.to_array(constants[node.input[0]])
            kind = helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(node, "to"))
            graph.initializer.append(numpy_helper.from_array(values.astype(kind), node.output[0]))
            graph.node.remove(node)


def _operations_before(model: Any) -> set[str]:
    """The friendly names of an OpenVINO model's operations that the trunk's maps and the memory are computed by."""
    named = {name: operation for operation in model.get_ordered_ops() for name in _value_names(operation)}
    waiting = [named[name] for name in (*trunk_values(named), MEMORY) if name in named]
    found: set[str] = set()
    while waiting:
        operation = waiting.pop()
        if operation.get_friendly_name() not in found:
            found.add(operation.get_friendly_name())
            waiting.extend(value.get_node() for value in operation.input_values())
    return found


def _value_names(operation: Any) -> list[str]:
    return [name for value in operation.outputs() for name in value.get_names()]
