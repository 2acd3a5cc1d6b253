"""Other projects' names for the same tensors, as data: a table of key patterns that reads in both directions.

A `Rule` pairs two key templates. `{word}` in them stands for one part of a key between dots, `{rest...}` for everything
that follows; both templates must use the same ones. Tensors that we keep as one and others as several (the joint
in-projection of attention) name the `part` of ours that theirs is, in rows.

>>> rules = [Rule("enc.layers.{i}.q.{p}", "encoder.{i}.in_proj_{p}", part=(0, 3)), Rule("head.{p}", "class_head.{p}")]
>>> Rule("a.{i}.{rest...}", "b.{i}.{rest...}").ours_of("a.3.conv.weight")
'b.3.conv.weight'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """Their key template, ours, and with `part` = (index, count) which equal share of our rows theirs is."""

    theirs: str
    ours: str
    part: tuple[int, int] | None = None

    def ours_of(self, key: str) -> str | None:
        """Our key of one of theirs, or None where the rule does not speak of it."""
        match = self._their_pattern.fullmatch(key)
        return None if match is None else _fill(self.ours, match)

    def theirs_of(self, key: str) -> str | None:
        """Their key of one of ours, or None where the rule does not speak of it."""
        match = self._our_pattern.fullmatch(key)
        return None if match is None else _fill(self.theirs, match)

    @cached_property
    def _their_pattern(self) -> re.Pattern[str]:
        return _pattern(self.theirs)

    @cached_property
    def _our_pattern(self) -> re.Pattern[str]:
        return _pattern(self.ours)


@dataclass(frozen=True)
class Translation:
    """Tensors by the new names, and the old keys that the table left out on purpose or did not know."""

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]


def to_ours(tensors: Mapping[str, Tensor], rules: Sequence[Rule], dropped: Iterable[str] = ()) -> Translation:
    """Their tensors by our names. `dropped` are key templates without a counterpart.

    Raises ValueError where two of their keys claim the same rows of ours, or a part of ours is absent.
    """
    leave_out = [_pattern(template) for template in dropped]
    parts: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    left_out, unknown = [], []
    for key, tensor in tensors.items():
        if any(pattern.fullmatch(key) for pattern in leave_out):
            left_out.append(key)
            continue
        rule, name = _first(rules, key)
        if rule is None:
            unknown.append(key)
            continue
        index, count = rule.part or (0, 1)
        if index in parts.setdefault(name, {}):
            raise ValueError(f"two keys claim {name}; the second is {key}")
        parts[name][index] = tensor
        counts[name] = count
    incomplete = [name for name, found in parts.items() if len(found) < counts[name]]
    if incomplete:
        raise ValueError(f"only a part of {', '.join(incomplete)} is there")
    joined = {name: _join(found, counts[name]) for name, found in parts.items()}
    return Translation(joined, tuple(left_out), tuple(unknown))


def to_theirs(tensors: Mapping[str, Tensor], rules: Sequence[Rule]) -> Translation:
    """Our tensors by their names, split where they keep parts; every rule that speaks of a key is followed."""
    found: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        matching = [(rule, name) for rule in rules if (name := rule.theirs_of(key)) is not None]
        if not matching:
            unknown.append(key)
        for rule, name in matching:
            found[name] = tensor if rule.part is None else tensor.chunk(rule.part[1])[rule.part[0]].contiguous()
    return Translation(found, (), tuple(unknown))


def _first(rules: Sequence[Rule], key: str) -> tuple[Rule | None, str]:
    for rule in rules:
        name = rule.ours_of(key)
        if name is not None:
            return rule, name
    return None, ""


def _join(parts: dict[int, Tensor], count: int) -> Tensor:
    return parts[0] if count == 1 else torch.cat([parts[index] for index in range(count)])


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern with a named group for each placeholder."""
    pieces = re.split(r"\{(\w+)(\.\.\.)?\}", template)
    pattern = ""
    for index in range(0, len(pieces), 3):
        pattern += re.escape(pieces[index])
        if index + 1 < len(pieces):
            pattern += f"(?P<{pieces[index + 1]}>{'.+' if pieces[index + 2] else '[^.]+'})"
    return re.compile(pattern)


def _fill(template: str, match: re.Match[str]) -> str:
    return re.sub(r"\{(\w+)(?:\.\.\.)?\}", lambda place: match[place[1]], template)
