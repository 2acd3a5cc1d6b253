"""Putting named tensors into a model, and saying exactly what did not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrove.errors import InputError

NUM_KEYS_SHOWN = 8


@dataclass(frozen=True)
class LoadReport:
    """Which keys met: `matched` were loaded, `missing` keep the model's own values, `unexpected` found no place."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], ignore_heads: bool = False, source: str = "the weights"
) -> LoadReport:
    """Copy `tensors` into the parameters and buffers of the same names, in place.

    All or nothing: with any key missing, unexpected or of another shape an `InputError` lists both sides' keys and the
    model is left as it was. `ignore_heads` leaves out whatever belongs to the classes (`head_keys`), so that weights
    trained on other classes can be a start; the model's own heads then stand in `missing`, the file's in `unexpected`.
    `source` names the weights in the error.
    """
    own = model.state_dict(keep_vars=True)
    heads = head_keys([*own, *tensors]) if ignore_heads else frozenset()
    wanted = {key: value for key, value in own.items() if key not in heads}
    offered = {key: value for key, value in tensors.items() if key not in heads}
    matched = [key for key in wanted if key in offered]
    missing = _without_shared(wanted, matched)
    unexpected = [key for key in offered if key not in wanted]
    misshapen = [key for key in matched if wanted[key].shape != offered[key].shape]
    if missing or unexpected or misshapen:
        raise InputError(_mismatch(source, wanted, offered, missing, unexpected, misshapen))
    with torch.no_grad():
        for key in matched:
            wanted[key].copy_(offered[key])
    return LoadReport(
        tuple(matched),
        tuple(key for key in own if key in heads),
        tuple(key for key in tensors if key in heads),
    )


def head_keys(keys: Iterable[str]) -> frozenset[str]:
    """The keys that depend on the classes: those whose name holds the word "class", in every detector of the catalogue.

    >>> sorted(head_keys(["encoder_class_head.weight", "box_head.0.bias", "class_heads.1.bias"]))
    ['class_heads.1.bias', 'encoder_class_head.weight']
    """
    return frozenset(key for key in keys if "class" in key.replace(".", "_").split("_"))


def _without_shared(wanted: Mapping[str, Tensor], matched: Collection[str]) -> list[str]:
    """The keys that stay unfilled; a second name of a shared tensor is filled together with the first."""
    filled = {id(wanted[key]) for key in matched}
    taken = set(matched)
    return [key for key, value in wanted.items() if key not in taken and id(value) not in filled]


def _mismatch(
    source: str,
    wanted: Mapping[str, Tensor],
    offered: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> str:
    """One line that lists both sides' keys."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} keys of the model are missing in the weights ({_shorten(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} keys of the weights are unknown to the model ({_shorten(unexpected)})")
    if misshapen:
        shapes = [f"{key} {tuple(offered[key].shape)} for {tuple(wanted[key].shape)}" for key in misshapen]
        parts.append(f"{len(misshapen)} have another shape ({_shorten(shapes)})")
    return f"{source}: belongs to another model: {'; '.join(parts)}; {_remedy(missing, unexpected, misshapen)}"


def _remedy(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    if head_keys([*missing, *unexpected, *misshapen]) == {*missing, *unexpected, *misshapen}:
        return "only the class heads differ, so --ignore-heads starts from the rest"
    return "name the model that these weights were trained as"


def _shorten(keys: list[str]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(keys[:NUM_KEYS_SHOWN])
    left = len(keys) - NUM_KEYS_SHOWN
    return f"{shown}, and {left} more" if left > 0 else shown
