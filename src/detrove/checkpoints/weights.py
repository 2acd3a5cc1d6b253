"""Putting named tensors into a model, and saying exactly what did not fit.

Weights trained on other classes are fitted to a model first: `fit_heads` gives every class head the rows of the classes
that both know by name, and `load_weights` then takes the result whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.models import catalogue
from detrove.structures import LabelMap

NUM_SHOWN = 8


@dataclass(frozen=True)
class LoadReport:
    """Which keys met: `matched` were loaded, `missing` keep the model's own values, `unexpected` found no place."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class HeadReport:
    """Names of classes: `kept` came from the weights, `new` start as the model's own, the model lacks `left`."""

    kept: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def describe(self, source: str) -> str:
        """One line for people; `source` names the weights.

        >>> HeadReport(("car", "person"), ("crate", "die", "star"), ("bus",)).describe("coco.safetensors")
        'classes kept from coco.safetensors: car, person (2 of 5); new: crate, die, star; left out: bus'
        """
        count = f"{len(self.kept)} of {len(self.kept) + len(self.new)}"
        parts = [f"classes kept from {source}: {shorten(self.kept)} ({count})"]
        if self.new:
            parts.append(f"new: {shorten(self.new)}")
        if self.left:
            parts.append(f"left out: {shorten(self.left)}")
        return "; ".join(parts)


def fit_heads(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    from_labels: LabelMap,
    to_labels: LabelMap,
    unnamed: Collection[str] = (),
    source: str = "the weights",
) -> tuple[dict[str, Tensor], HeadReport]:
    """`tensors` with their class heads fitted to the classes of another model; nothing given is changed.

    `own` is that model's `state_dict`, fresh. `from_labels` say what the rows of the weights' class heads stand for,
    `to_labels` what the model's shall stand for. A row follows its class by **name** (as evaluation joins classes; of
    several classes of one name the one with the same category id, else the first); the other rows stay the model's own.
    The row after the classes, "no object" of a softmax head, is kept. Rows of the heads `unnamed` stand for no class
    and stay where they are (`objectness_keys`).

    Whatever is no class head (`head_keys`), and a head of another width than the model's, is passed on as it is, for
    `load_weights` to judge; a head under several names stays one tensor. Raises `InputError`, in which `source` names
    the weights, where the two share no name, and where a head's rows are not what `from_labels` say.
    """
    slots = _slots_by_name(from_labels, to_labels)
    if all(slot is None for slot in slots):
        raise InputError(_no_shared_name(source, from_labels, to_labels))
    by_name = {row: slot for row, slot in enumerate(slots) if slot is not None}
    fitted = dict(tensors)
    done: dict[tuple[int, int], Tensor] = {}
    for key in sorted(head_keys(key for key in tensors if key in own)):
        offered, fresh = tensors[key], own[key]
        if offered.shape[1:] != fresh.shape[1:]:
            continue
        num_others = len(fresh) - len(to_labels)  # 1 with "no object", else 0
        if len(offered) != len(from_labels) + num_others:
            raise InputError(
                f"{source}: names {len(from_labels)} classes, but {key} has {len(offered)} rows; "
                "start the class heads anew with --ignore-heads"
            )
        rows = by_name | {len(to_labels) + row: len(from_labels) + row for row in range(num_others)}
        if key in unnamed:
            rows = {row: row for row in range(min(len(fresh), len(offered)))}
        one = (id(offered), fresh.data_ptr())
        if one not in done:
            done[one] = _with_rows(fresh, offered, rows)
        fitted[key] = done[one]
    return fitted, _head_report(from_labels, to_labels, slots)


def objectness_keys(model: nn.Module) -> frozenset[str]:
    """The keys of the class head that is taught only whether there is an object, whatever its class is called.

    That is the encoder's of a two-stage Deformable DETR, whose first row is the score; in other detectors none.
    """
    if catalogue.criterion_for(model).encoder_classes != "objectness":
        return frozenset()
    keys = [key for key in model.state_dict() if key.startswith("class_heads.")]
    last = max(int(key.split(".")[1]) for key in keys)
    return frozenset(key for key in keys if key.startswith(f"class_heads.{last}."))


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


def _slots_by_name(from_labels: LabelMap, to_labels: LabelMap) -> list[int | None]:
    """For each slot of `to_labels` the slot of `from_labels` that carries the same name, or None."""
    slots_of: dict[str, list[int]] = {}
    for slot, entry in enumerate(from_labels.entries):
        if entry is not None:
            slots_of.setdefault(entry.name, []).append(slot)
    joined: list[int | None] = []
    for entry in to_labels.entries:
        same = [] if entry is None else slots_of.get(entry.name, [])
        own_id = from_labels.slot_of_id(entry.id) if entry else None
        joined.append(own_id if own_id in same else next(iter(same), None))
    return joined


def _with_rows(fresh: Tensor, offered: Tensor, rows: Mapping[int, int]) -> Tensor:
    """`fresh` with the rows that are the keys replaced by the rows of `offered` that are their values."""
    fitted = fresh.detach().clone()
    fitted[list(rows)] = offered[list(rows.values())].to(fitted)
    return fitted


def _head_report(from_labels: LabelMap, to_labels: LabelMap, slots: Sequence[int | None]) -> HeadReport:
    named = [(entry.name, slot) for entry, slot in zip(to_labels.entries, slots, strict=True) if entry is not None]
    taken = {slot for slot in slots if slot is not None}
    return HeadReport(
        kept=tuple(name for name, slot in named if slot is not None),
        new=tuple(name for name, slot in named if slot is None),
        left=tuple(entry.name for slot, entry in enumerate(from_labels.entries) if entry and slot not in taken),
    )


def _no_shared_name(source: str, from_labels: LabelMap, to_labels: LabelMap) -> str:
    ours, theirs = (shorten([name for name in labels.names if name]) or "none" for labels in (to_labels, from_labels))
    return (
        f"{source}: its classes ({theirs}) and the classes to learn ({ours}) share no name, so nothing of its class "
        "heads can be kept: start these anew with --ignore-heads, or name the classes alike"
    )


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
        parts.append(f"{len(missing)} keys of the model are missing in the weights ({shorten(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} keys of the weights are unknown to the model ({shorten(unexpected)})")
    if misshapen:
        shapes = [f"{key} {tuple(offered[key].shape)} for {tuple(wanted[key].shape)}" for key in misshapen]
        parts.append(f"{len(misshapen)} have another shape ({shorten(shapes)})")
    return f"{source}: belongs to another model: {'; '.join(parts)}; {_remedy(missing, unexpected, misshapen)}"


def _remedy(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    if head_keys([*missing, *unexpected, *misshapen]) == {*missing, *unexpected, *misshapen}:
        return "only the class heads differ, so --ignore-heads starts from the rest"
    return "name the model that these weights were trained as"


def shorten(keys: Sequence[str], num_shown: int = NUM_SHOWN) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(keys[:num_shown])
    left = len(keys) - num_shown
    return f"{shown}, and {left} more" if left > 0 else shown
