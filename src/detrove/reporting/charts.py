"""Line and bar charts as SVG text that stands in an HTML page and takes on its colours, in light and in dark mode.

Drawn by matplotlib through its object interface: no global state, no window system.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CHART_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's colours that stand out on white as well as on near-black, the strongest contrasts first."""
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
HATCHES = (None, "//", "..", "xx")

_INK = "#123456"
"""Stands for the page's text colour until the SVG is written; drawn nowhere else."""


@dataclass(frozen=True)
class Series:
    """One line of a chart. Points with a y of None are left out; a single point, and any with `markers`, is a dot.

    `low` and `high`, as many as points, are the edges of a band around the line, where there is one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    markers: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """An SVG element of about 380×290 pixels, as wide as the space it gets. `logarithmic` is for the y axis."""
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Any) -> None:
        _plot(axes, series)
        axes.set_xlabel(x_label)
        if all(isinstance(x, int) for line in series for x in line.x):  # epochs and layers have no halves
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if logarithmic:
            axes.set_yscale("log")

    return _chart(title, y_label, y_limits, [line.name for line in series], draw)


def bar_chart(
    groups: Sequence[str],
    bars: Sequence[tuple[str, Sequence[float | None]]],
    title: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
) -> str:
    """As `line_chart`: in every group one bar of each name, side by side; None leaves a gap."""

    def draw(axes: Any) -> None:
        width = 0.8 / len(bars)
        for position, (name, heights) in enumerate(bars):
            turn, colour = divmod(position, len(CHART_COLOURS))
            places = [group - 0.4 + (position + 0.5) * width for group in range(len(groups))]
            axes.bar(
                places,
                [0.0 if height is None else height for height in heights],
                width=0.9 * width,
                color=CHART_COLOURS[colour],
                hatch=HATCHES[turn % len(HATCHES)],
                label=name,
            )
        axes.set_xticks(range(len(groups)), groups)

    return _chart(title, y_label, y_limits, [name for name, _ in bars], draw)


def _chart(
    title: str,
    y_label: str,
    y_limits: tuple[float, float] | None,
    names: Sequence[str],
    draw: Callable[[Any], None],
) -> str:
    """What every chart has, around what `draw` puts onto its axes; a legend where there are several `names`."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "detrove", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.4, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, color=_INK, loc="left", fontsize=11, fontweight="bold")
        axes.set_ylabel(y_label)
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        _restyle(axes)
        if len(names) > 1:
            columns = 3 if max(len(name) for name in names) <= 12 else 2
            figure.legend(loc="outside lower left", ncols=columns, frameon=False, labelcolor=_INK, fontsize=9)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue(), title)


def _plot(axes: Any, series: Sequence[Series]) -> None:
    """Lines differ in colour and, once the colours are used up, in style."""
    for position, line in enumerate(series):
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        turn, colour = divmod(position, len(CHART_COLOURS))
        style: dict[str, Any] = {
            "color": CHART_COLOURS[colour],
            "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
            "linewidth": 1.8,
        }
        if line.markers or len(points) == 1:
            style |= {"marker": "o", "markersize": 4}
        axes.plot([x for x, _ in points], [y for _, y in points], label=line.name, **style)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.2, linewidth=0)


def _restyle(axes: Any) -> None:
    """Quiet axes: a faint grid, no frame above and at the right, text in the page's colour."""
    axes.grid(color="#808080", alpha=0.3, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#808080")
    axes.tick_params(colors=_INK, which="both", labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _inline(svg: str, title: str) -> str:
    """A matplotlib SVG file as an element of a page: no prologue, no fixed size, the page's ink, ids of its own."""
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    # Equal ids in one page would let a chart be clipped by another's frame.
    prefix = f"c{zlib.crc32(element.encode()):08x}-"
    element = re.sub(r'\bid="', f'id="{prefix}', element)
    element = element.replace('href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
    element = element.replace(_INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1).strip()
