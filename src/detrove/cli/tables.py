"""Tables of plain text, for terminals and pipes alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, two spaces apart; columns of numbers stand to the right.

    >>> print(format_table(["picture", "cells"], [["a.jpg", 12], ["long name.jpg", 3]]))
    picture        cells
    a.jpg             12
    long name.jpg      3
    """
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(_width(row[column]) for row in cells) for column in range(len(header))]
    to_the_right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            _pad(text, width, right) for text, width, right in zip(row, widths, to_the_right, strict=True)
        ).rstrip()
        for row in cells
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _text(value: Any) -> str:
    """Fractions with three places; a dash where there is no number."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _width(text: str) -> int:
    """Columns on a terminal: characters of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
