"""The example that predicts with ONNX Runtime, NumPy and Pillow alone."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import detrove

EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_numpy_pillow.py"

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_numpy_pillow", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_needs_nothing_else() -> None:
    imports = [
        node for node in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom) and node.module}
    packages = {name.partition(".")[0] for name in names}
    assert packages - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.slow
@pytest.mark.parametrize("postprocess", [True, False])
def test_it_sees_what_detrove_sees(example, exported, images: list[Image.Image], postprocess: bool) -> None:
    path = exported(format="onnx", postprocess=postprocess)
    detector, theirs = detrove.load(path), example.OnnxDetector(str(path))
    for picture in images:
        for threshold in (None, 0.0):
            wanted, found = detector.predict(picture, threshold), theirs.predict(picture, threshold)
            assert [name for name, _, _ in found] == wanted.names
            assert [score for _, score, _ in found] == pytest.approx(wanted.scores.tolist(), abs=1e-5)
            for (_, _, box), expected in zip(found, wanted.boxes.tolist(), strict=True):
                assert box == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("longer_shorter", [(333, None), (333, 200), (500, 333), (2, None)])
def test_it_resizes_as_detrove_does(example, longer_shorter) -> None:
    longer, shorter = longer_shorter
    preprocessing = detrove.Preprocessing(longer=longer, shorter=shorter)
    for height, width in [(480, 640), (640, 480), (100, 100), (1, 900), (427, 640), (333, 500)]:
        assert example.target_size(width, height, longer, shorter) == preprocessing.target_size(height, width)[::-1]
