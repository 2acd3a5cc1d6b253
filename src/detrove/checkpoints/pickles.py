"""Foreign .pth, .pt and .bin files, read as tensors alone: nothing in them can run.

torch's weights-only reader builds tensors and plain containers and refuses everything else. One harmless class is
allowed beside them: `argparse.Namespace`, as which the official trainings keep their settings.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from detrove.errors import InputError

STATE_DICT_NAMES = ("model", "state_dict", "ema", "module")
"""Under which name a training keeps its weights: the official codes, Lightning and others, moving averages."""

DATA_PARALLEL_PREFIX = "module."
NOT_ALLOWED = re.compile(r"(?:GLOBAL|class) ([\w.]+)")


@dataclass(frozen=True)
class PickledWeights:
    """The tensors of a pickled file by its own names, on the CPU, and the training's `arguments` where it kept them."""

    tensors: dict[str, Tensor] = field(repr=False)
    arguments: dict[str, Any]


def read_pickle(path: Path) -> PickledWeights:
    """The state dict of a pickled file: bare, or under one of `STATE_DICT_NAMES`; without DataParallel's `module.`.

    Raises `InputError` with one line where the file needs more than tensors, is cut off or no pickle at all, or holds
    no state dict.
    """
    content = _load(path)
    tensors = _state_dict(content)
    if tensors is None:
        raise InputError(f"{path}: holds no weights, but {_describe(content)}; save the model's state_dict() instead")
    if all(key.startswith(DATA_PARALLEL_PREFIX) for key in tensors):
        tensors = {key.removeprefix(DATA_PARALLEL_PREFIX): tensor for key, tensor in tensors.items()}
    return PickledWeights(tensors, _arguments(content))


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it works, or it is refused below
            with path.open("rb") as file:  # from a name torch would guess at the content
                return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        wanted = NOT_ALLOWED.search(str(error))
        if wanted is None:
            raise InputError(_broken(path)) from None
        raise InputError(
            f"{path}: opening it needs {wanted[1]}, which is more than tensors and could run code, so it is not "
            "opened; where you trust it, write its state_dict to a .safetensors file (safetensors.torch.save_file) "
            "and read that"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises anything: RuntimeError, EOFError, KeyError, IndexError, ...
        if "TorchScript" in str(error):
            raise InputError(
                f"{path}: a TorchScript program, not a file of weights; save the model's state_dict() instead"
            ) from None
        raise InputError(_broken(path)) from None


def _broken(path: Path) -> str:
    return f"{path}: not a whole file of weights; it may be cut off or something else, so copy or download it again"


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The first mapping of names to tensors, looked for as deep as trainings hide it."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return dict(content)
    inside = (_state_dict(content[name]) for name in STATE_DICT_NAMES if name in content)
    return next((tensors for tensors in inside if tensors is not None), None)


def _arguments(content: Any) -> dict[str, Any]:
    """The training's settings, where the file keeps them as `args`."""
    arguments = content.get("args") if isinstance(content, Mapping) else None
    if isinstance(arguments, argparse.Namespace):
        return vars(arguments)
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def _describe(content: Any) -> str:
    """What a file holds instead of weights."""
    if isinstance(content, Mapping):
        return f"entries named {', '.join(map(str, list(content)[:6]))}" if content else "nothing"
    return f"a {type(content).__name__}"
