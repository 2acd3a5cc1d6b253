"""Reading a large JSON object entry by entry, so that a file of a million boxes never stands in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detrove.data.faults import AnnotationError, Fault

_SPACE = re.compile(r"[ \t\n\r]*")
_scan = json.JSONDecoder().raw_decode


def read_entries(file: Path, text: str, take: Mapping[str, Callable[[Any, int], None]]) -> Any:
    """The JSON value in the text of a file; lists that `take` names are handed over, entry by entry, with their lines.

    A list `"key": [...]` at the top goes to `take[key](entry, line)` and comes back empty. Lines count from 1; they
    are 0 in a file of one line, where they say nothing. Raises `AnnotationError`, with the line, where the text is no
    JSON; some entries may have been handed over by then.
    """
    try:
        return _walk(text, take)
    except (ValueError, IndexError, RecursionError):
        raise AnnotationError(_why_broken(file, text)) from None


def _why_broken(file: Path, text: str) -> Fault:
    remedy = "export the annotations again"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        message = f"broken JSON ({error.msg}, column {error.colno})"
        return Fault("broken file", file, message, remedy, line=error.lineno)
    except (ValueError, RecursionError) as error:
        return Fault("broken file", file, f"broken JSON ({error})", remedy)
    raise AssertionError(f"{file}: is JSON, and yet could not be read")


def _walk(text: str, take: Mapping[str, Callable[[Any, int], None]]) -> Any:
    position = _skip(text, 0)
    if text[position] != "{":
        return json.loads(text)
    found: dict[str, Any] = {}
    position = _skip(text, position + 1)
    more = text[position] != "}"
    while more:
        key, position = _scan(text, position)
        if not isinstance(key, str):
            raise ValueError("a key must be a text")
        position = _skip(text, _expect(text, _skip(text, position), ":"))
        if key in take and text[position] == "[":
            position = _hand_over(text, position, take[key])
            found[key] = []
        else:
            found[key], position = _scan(text, position)
        position = _skip(text, position)
        more = text[position] == ","
        position = _skip(text, position + 1) if more else position
    position = _skip(text, _expect(text, position, "}"))
    if position != len(text):
        raise ValueError("there is more behind the end")
    return found


def _hand_over(text: str, position: int, take: Callable[[Any, int], None]) -> int:
    """Hand over the entries of the list that begins at the position; gives the position behind it."""
    has_lines = text.find("\n", 0, -1) >= 0
    line, counted = 1, 0
    position = _skip(text, position + 1)
    more = text[position] != "]"
    while more:
        line += text.count("\n", counted, position)
        counted = position
        entry, position = _scan(text, position)
        take(entry, line if has_lines else 0)
        position = _skip(text, position)
        more = text[position] == ","
        position = _skip(text, position + 1) if more else position
    return _expect(text, position, "]")


def _skip(text: str, position: int) -> int:
    """The position of the next character that is no white space."""
    match = _SPACE.match(text, position)
    assert match
    return match.end()


def _expect(text: str, position: int, character: str) -> int:
    """The position behind the character; `ValueError` where another stands there."""
    if text[position] != character:
        raise ValueError(f"expected {character!r}")
    return position + 1
