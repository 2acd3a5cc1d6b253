"""Reading a large JSON object entry by entry, so that a file of a million boxes never stands in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from detrove.data.faults import AnnotationError, Fault
from detrove.data.files import read_text

CHUNK = 1 << 22
"""Characters in memory at once, unless a single entry has more."""

_SPACE = re.compile(r"[ \t\n\r]*")
_BEHIND_VALUES = " \t\n\r,:]}"
_decode = json.JSONDecoder().raw_decode


def read_entries(file: Path, take: Mapping[str, Callable[[Any, int], None]], chunk: int = CHUNK) -> Any:
    """The JSON value in a file; lists that `take` names are handed over, entry by entry, with their lines.

    A list `"key": [...]` at the top goes to `take[key](entry, line)` and comes back empty. Lines count from 1; they
    are 0 in a file of one line, where they say nothing. Raises `AnnotationError`, with the line, where the file is
    missing, empty or no JSON; some entries may have been handed over by then.
    """
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return _read_top(_Window(stream, chunk), take)
    except (OSError, ValueError, RecursionError):
        raise AnnotationError(_why_broken(file, read_text(file))) from None


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


class _Window:
    """The part of a JSON text that is being read, and the rest of it in the file."""

    def __init__(self, stream: TextIO, chunk: int) -> None:
        self._stream = stream
        self._chunk = chunk
        self._text = stream.read(chunk)
        self._ended = not self._text
        self._position = self._counted = 0
        self._line = 1
        self._has_lines = self._text.find("\n", 0, -1) >= 0

    @property
    def line(self) -> int:
        """The line of the next character, from 1; 0 in a file of one line."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line if self._has_lines else 0

    def next(self) -> str:
        """The next character that is no white space, which stays the next; "" at the end."""
        while True:
            character = self._text[self._position : self._position + 1]
            if character > " " or (self._ended and not character):
                return character
            match = _SPACE.match(self._text, self._position)
            assert match
            if match.end() == self._position and character:
                return character  # a control character, which has no place here
            self._position = match.end()
            if self._position == len(self._text) and not self._ended:
                self._read_on()

    def passes(self, character: str) -> bool:
        """Whether the next character is this one, which then is passed."""
        if self.next() != character:
            return False
        self._position += 1
        return True

    def step_over(self, character: str) -> None:
        """Pass the next character; `ValueError` where it is another."""
        if not self.passes(character):
            raise ValueError(f"expected {character!r}")

    def value(self) -> Any:
        """The value that begins here; `ValueError` where none does."""
        self.next()
        while True:
            try:
                value, end = _decode(self._text, self._position)
            except ValueError:
                if self._ended:
                    raise
            else:
                # A number may go on behind the window: 1 in "1", "1." and "1e".
                if self._ended or (end < len(self._text) and self._text[end] in _BEHIND_VALUES):
                    self._position = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """Forget what has been read, and read at least as much as is left: a long value is tried few times."""
        _ = self.line
        left = self._text[self._position :]
        more = self._stream.read(max(self._chunk, len(left)))
        self._ended = not more
        self._text, self._position, self._counted = left + more, 0, 0


def _read_top(window: _Window, take: Mapping[str, Callable[[Any, int], None]]) -> Any:
    found = _read_object(window, take) if window.next() == "{" else window.value()
    if window.next():
        raise ValueError("there is more behind the end")
    return found


def _read_object(window: _Window, take: Mapping[str, Callable[[Any, int], None]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    window.step_over("{")
    more = window.next() != "}"
    while more:
        if window.next() != '"':
            raise ValueError("a key must be a text")
        key = window.value()
        window.step_over(":")
        if key in take and window.next() == "[":
            _hand_over(window, take[key])
            found[key] = []
        else:
            found[key] = window.value()
        more = window.passes(",")
    window.step_over("}")
    return found


def _hand_over(window: _Window, take: Callable[[Any, int], None]) -> None:
    """Hand over the entries of the list that begins here."""
    window.step_over("[")
    more = window.next() != "]"
    while more:
        window.next()
        line = window.line
        take(window.value(), line)
        more = window.passes(",")
    window.step_over("]")
