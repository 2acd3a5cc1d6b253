"""A self-contained HTML page: no network; readable on a telephone, in print, and in dark mode.

It has no script, but where a table can be sorted by its reader.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from detrove.reporting.sorting import SORTING, permission
from detrove.reporting.stylesheet import STYLESHEET


@dataclass(frozen=True)
class Bar:
    """A table cell that shows its number as text and as a bar; `share` in [0, 1] is the bar's length."""

    text: str
    share: float


@dataclass(frozen=True)
class Number:
    """A table cell that tells its number in words of its own, "1.2 M"; a table is sorted by its `value`."""

    text: str
    value: float


Cell = str | int | float | None | Bar | Number
"""What a table cell may hold: floats get three decimals, None is a dash ("nothing to measure")."""

JPEG_QUALITY = 85
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")
"""A command line's option, where one stands in a sentence."""


class Page:
    """A page that is built from top to bottom and then written as one string.

    All text is escaped: it is plain text, not HTML.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{html.escape(title)}</h1>"]
        self._sortable = False
        if lead:
            self._parts.append(f'<p class="lead">{_prose(lead)}</p>')

    def section(self, heading: str, text: str = "") -> None:
        """A new heading, and what the section is about."""
        self._parts.append(f"<h2>{html.escape(heading)}</h2>")
        if text:
            self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """Running text."""
        self._parts.append(f"<p>{_prose(text)}</p>")

    def bullets(self, texts: Sequence[str]) -> None:
        """A list of sentences; nothing where there are none."""
        if texts:
            items = "".join(f"<li>{_prose(text)}</li>" for text in texts)
            self._parts.append(f"<ul>{items}</ul>")

    def numbers(self, values: Mapping[str, Cell]) -> None:
        """A few numbers to be seen at once, each under its name."""
        tiles = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{_cell_text(value)}</dd></div>" for name, value in values.items()
        )
        self._parts.append(f'<dl class="numbers">{tiles}</dl>')

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "", sortable: bool = False
    ) -> None:
        """A table; the first column names the rows, columns of words stand flush left. Wide ones scroll sideways.

        A click on a head of a `sortable` one sorts it by that column.
        """
        self._sortable |= sortable
        columns = list(zip(*rows, strict=True)) or [()] * len(header)
        names = [html.escape(name) for name in header]
        if sortable:
            names = [f'<button type="button">{name}</button>' for name in names]
        head = "".join(
            f'<th scope="col"{_alignment(column)}>{name}</th>' for name, column in zip(names, columns, strict=True)
        )
        body = "".join(f"<tr>{_row(row, sortable)}</tr>" for row in rows)
        kind = ' class="sortable"' if sortable else ""
        self._parts.append(
            f'<figure><div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{_caption(caption)}</figure>"
        )

    def matrix(
        self, row_names: Sequence[str], column_names: Sequence[str], counts: np.ndarray, corner: str, caption: str
    ) -> None:
        """A matrix of counts (rows, columns), each cell shaded by its share of its row. `corner` says what is what."""
        head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in column_names)
        body = []
        for name, row in zip(row_names, counts.tolist(), strict=True):
            total = max(sum(row), 1)
            cells = "".join(f'<td style="--share:{count / total:.3f}">{count or ""}</td>' for count in row)
            body.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
        self._parts.append(
            f'<figure><div class="scroll"><table class="matrix"><thead><tr><th>{html.escape(corner)}</th>{head}</tr>'
            f"</thead><tbody>{''.join(body)}</tbody></table></div>{_caption(caption)}</figure>"
        )

    def charts(self, charts: Sequence[tuple[str, str]]) -> None:
        """Charts of `line_chart`, each with its caption, side by side where there is room."""
        figures = "".join(f"<figure>{svg}{_caption(caption)}</figure>" for svg, caption in charts)
        self._parts.append(f'<div class="charts">{figures}</div>')

    def pictures(self, pictures: Sequence[tuple[Image.Image, str]]) -> None:
        """Pictures, each with its caption, side by side where there is room."""
        figures = "".join(
            f'<figure><img src="{_data_address(picture)}" width="{picture.width}" height="{picture.height}" '
            f'alt="{html.escape(caption)}">{_caption(caption)}</figure>'
            for picture, caption in pictures
        )
        self._parts.append(f'<div class="pictures">{figures}</div>')

    def legend(self, entries: Sequence[tuple[tuple[int, int, int], bool, str]]) -> None:
        """What the boxes in pictures mean: colour, whether dashed, and the meaning."""
        items = "".join(
            f'<li><span class="{"dashed" if dashed else "solid"}" style="--c:rgb{colour}"></span>'
            f"{html.escape(meaning)}</li>"
            for colour, dashed, meaning in entries
        )
        self._parts.append(f'<ul class="legend">{items}</ul>')

    def to_html(self) -> str:
        """The whole page."""
        script = f"<script>{SORTING}</script>" if self._sortable else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            # Holds the page to its word: a browser will load nothing and run nothing.
            '<meta http-equiv="Content-Security-Policy" '
            f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'"
            f'{permission() if self._sortable else ""}">'
            f"<title>{html.escape(self._title)}</title><style>{STYLESHEET}</style></head>\n<body><main>\n"
            + "\n".join(self._parts)
            + f"\n</main>{script}</body></html>\n"
        )


def _row(row: Sequence[Cell], sortable: bool) -> str:
    first, *others = row
    return f'<th scope="row"{_sorted_by(first, sortable)}>{_cell_text(first)}</th>' + "".join(
        _cell(value, _sorted_by(value, sortable)) for value in others
    )


def _cell(value: Cell, sorted_by: str) -> str:
    if isinstance(value, Bar):
        share = f"{min(max(value.share, 0), 1):.3f}"
        return f'<td class="bar" style="--share:{share}"{sorted_by}>{html.escape(value.text)}</td>'
    return f"<td{_alignment([value])}{sorted_by}>{_cell_text(value)}</td>"


def _sorted_by(value: Cell, sortable: bool) -> str:
    """What the script sorts a cell by; nothing where there is nothing to measure."""
    if not sortable or value is None:
        return ""
    key = value.share if isinstance(value, Bar) else value.value if isinstance(value, Number) else value
    return f' data-value="{html.escape(str(key))}"'


def _alignment(values: Sequence[Cell]) -> str:
    return ' class="text"' if values and all(isinstance(value, str) for value in values) else ""


def _cell_text(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, Bar | Number):
        return html.escape(value.text)
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(value)


def _prose(text: str) -> str:
    """Escaped text in which no line ends within an option as `--head`."""
    return OPTION.sub(r'<span class="option">\g<0></span>', html.escape(text))


def _caption(text: str) -> str:
    return f"<figcaption>{_prose(text)}</figcaption>" if text else ""


def _data_address(picture: Image.Image) -> str:
    """The picture as a JPEG inside an address."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
