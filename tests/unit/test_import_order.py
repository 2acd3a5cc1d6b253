"""Imports run one way, and heavy optional packages are imported only where they are needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import detrove

SOURCE = Path(detrove.__file__).parent

FLOORS = (
    {"lazily", "errors", "hub", "memory", "structures", "boxes", "pictures", "drawing", "reporting", "tiling"},
    {"nn", "losses", "data"},
    {"models"},
    {"checkpoints"},
    {"inference"},
    {"evaluation"},
    {"training", "export"},
    {"study"},
    {"serving"},
    {"cli"},
    {"__main__"},
)
"""From the ground up. A part may import the parts of lower floors."""

BLIND = {("models", "data"), ("checkpoints", "data")}
"""Lower, and yet not to be imported: a model knows nothing of data sets."""

OPTIONAL = {
    "av": {"inference"},
    "fastapi": {"serving"},
    "numba": {"nn"},
    "nncf": {"export"},
    "onnx": {"export"},
    "onnxruntime": {"export", "inference"},
    "onnxscript": {"export"},
    "openvino": {"export", "inference"},
    "prometheus_client": {"serving"},
    "pydantic": {"serving"},
    "simplejpeg": {"pictures"},
    "starlette": {"serving"},
    "supervision": {"structures"},
    "tensorboard": {"training"},
    "triton": {"nn"},
    "torch.utils.tensorboard": {"training"},
    "uvicorn": {"serving", "cli"},
}
"""Packages of the extras, and the parts that may import them."""

TESTS_ONLY = {"hypothesis", "pycocotools", "pytest", "transformers"}


def part_of(file: Path, source: Path) -> str:
    """The part that a file belongs to: its folder right under the package, or its own name."""
    return file.relative_to(source).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file: at its top, in functions, for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            assert node.module
            if node.module == "detrove":
                yield from (f"detrove.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor_of(part: str) -> int:
    return next(floor for floor, parts in enumerate(FLOORS) if part in parts)


def violations(source: Path) -> list[str]:
    """What breaks the order in the files under `source`, a line each."""
    found = []
    for file in sorted(source.rglob("*.py")):
        part = part_of(file, source)
        if part == "__init__":  # the public names, resolved lazily, come from every floor
            continue
        for module in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
            reason = objection(part, module)
            if reason:
                found.append(f"{file.relative_to(source).as_posix()} imports {module}: {reason}")
    return found


def objection(part: str, module: str) -> str | None:
    """Why a part may not import a module, or None."""
    package, _, rest = module.partition(".")
    if package != "detrove":
        if package in TESTS_ONLY:
            return "a package for tests"
        allowed = OPTIONAL.get(module, OPTIONAL.get(package))
        return None if allowed is None or part in allowed else f"only {', '.join(sorted(allowed))} may"
    other = rest.partition(".")[0]
    if other == part:
        return None
    if (part, other) in BLIND:
        return f"{part} must not know {other}"
    if floor_of(other) > floor_of(part):
        return f"{other} stands above {part}"
    if floor_of(other) == floor_of(part) > 0:
        return f"{other} and {part} stand side by side"
    return None


def test_imports_run_one_way() -> None:
    assert violations(SOURCE) == []


def test_every_part_has_a_floor() -> None:
    parts = {part_of(file, SOURCE) for file in SOURCE.rglob("*.py")} - {"__init__"}
    assert parts <= set().union(*FLOORS)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("nn/attention.py", "from detrove.models import detr", "models stands above nn"),
        ("losses/terms.py", "from detrove.nn.transformer import MLP", "nn and losses stand side by side"),
        ("data/coco.py", "def f():\n    from detrove import losses", "losses and data stand side by side"),
        ("models/detr.py", "if TYPE_CHECKING:\n    import detrove.data.coco", "models must not know data"),
        ("boxes.py", "import detrove.nn", "nn stands above boxes"),
        ("inference/detector.py", "from detrove.evaluation import evaluate", "evaluation stands above inference"),
        ("models/detr.py", "import onnx", "only export may"),
        ("inference/video.py", "import simplejpeg", "only pictures may"),
        ("training/logs.py", "import transformers", "a package for tests"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, message: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    [line] = violations(tmp_path)
    assert line.startswith(file)
    assert line.endswith(message)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("structures.py", "import supervision"),
        ("models/detr.py", "from detrove.losses import Criterion\nfrom detrove.models import deformable"),
        ("training/logs.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("cli/train.py", "from detrove.training import train\nimport torch"),
    ],
)
def test_what_is_allowed_is_not_found(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert violations(tmp_path) == []
