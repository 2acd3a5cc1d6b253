"""What queries do over a data set, as part of a page, and as a page about one detector."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrove.checkpoints.files import write_atomically
from detrove.reporting import Cell, Page, Series, line_chart
from detrove.study.queries import QueryStudy, draw_usage

THIS = "this detector"
DRAWN = 6
"""Detectors whose queries are drawn, at most."""
FEW_SQUARES, SQUARES = 10, 20
"""Queries drawn of each of several detectors, and of a single one."""
CLOSE, FAR = 0.1, 0.25
"""Distances from home, in widths and heights of the picture, that are called near and far; 0.41 is anywhere."""
FEWEST_PICTURES = 10
"""From which on a distance from the mean place says something."""
LEAST_AXIS = 0.1
"""Duplicates for each object up to which the axis reaches at least: fewer are none to speak of."""

ABOUT_QUERIES = (
    "A query is a slot that may answer with one object. Training assigns every object to one query; what follows looks "
    "at who answers, layer by layer, over the validation pictures."
)
ABOUT_CHANGES = (
    "The share of objects that another query answers for than in the layer before. Low means that layers agree and "
    "only move boxes; high, that they still bargain about who answers, and teach each other different things."
)
ABOUT_BARGAINING = (
    "The share of objects whose query is another one than when the run was validated before, on a few fixed pictures. "
    "While it is high, the goal that each query learns moves from epoch to epoch; denoising was made against that."
)
ABOUT_DUPLICATES = (
    "Answers too many for each object that is found, where every picture shows as many answers as it has objects. The "
    "first layer often doubles; self-attention between queries should settle that in the layers after it."
)
ABOUT_FOUND = (
    "The share of objects that each layer finds, where every picture shows as many answers as it has objects. Where "
    "the curve is flat, later layers only move boxes."
)
ABOUT_USAGE = (
    "One square for each of the queries that answer for most objects (the number beside it). A dot is where one of its "
    "boxes stands, in every picture: blue for small boxes, orange for wide, green for tall ones; strong where it is "
    "sure. A tight cloud is a query with a place of its own; dots everywhere, one that goes where its object is."
)
NO_PLACES = (
    "Not drawn: {}. There the encoder proposes the queries' places, picture by picture; query 7 of one picture says "
    "nothing about query 7 of another."
)
ABOUT_NUMBERS = (
    "Few queries that answer for half of the objects: most slots are idle. The distance of a query's boxes from their "
    "mean place, in widths and heights of the picture: near 0 every query keeps to its place, at 0.41 it goes anywhere."
)


def query_page(study: QueryStudy, title: str, lead: str = "") -> Page:
    """The page about one detector's queries."""
    page = Page(title, lead or about_queries(study))
    page.paragraph(ABOUT_QUERIES)
    add_queries(page, {THIS: [study]})
    return page


def write_query_study(study: QueryStudy, folder: Path, title: str) -> dict[str, Any]:
    """Write report.html, study.json and the arrays (queries.npz) to a folder; answers what study.json holds."""
    numbers = {
        "queries": study.num_queries,
        "pictures": len(study.boxes),
        "objects": len(study.objects),
        "changed": study.changed(),
        "found": study.found_share(),
        "duplicates": study.duplicate_rates(),
        "uses": study.uses().tolist(),
        "home": [round(value, 4) for value in study.home().tolist()] if study.placed else None,
    }
    study.save(folder / "queries.npz")
    write_atomically(folder / "study.json", f"{json.dumps(numbers, indent=1)}\n".encode())
    write_atomically(folder / "report.html", query_page(study, title).to_html().encode())
    return numbers


def about_queries(study: QueryStudy) -> str:
    """How many do the work, and how sure it is which."""
    used = study.used_half()
    if not np.isfinite(used):
        return "There is no object in these pictures that a query could answer for."
    busy = round(used * study.num_queries)
    text = f"{busy} of {study.num_queries} queries answer for half of the objects"
    changed = [share for share in study.changed() if share is not None]
    if changed:
        text += f"; {changed[-1]:.0%} of the objects are answered for by another query in the last layer than before it"
    return f"{text}."


def add_queries(page: Page, studies: Mapping[str, Sequence[QueryStudy]], bargains: Sequence[Series] = ()) -> None:
    """Charts, numbers and squares of dots; `studies` has all seeds of each detector, the first one's is drawn.

    `bargains` are shares of objects that changed their query since the validation before, against epochs.
    """
    page.charts(_charts(studies, bargains))
    numbers = [[name, of_one[0].num_queries, *_numbers(of_one)] for name, of_one in studies.items()]
    page.table(
        ["", "queries", "share that answers for half of the objects", "distance from home, median"],
        numbers,
        ABOUT_NUMBERS,
    )
    placed = {name: of_one[0] for name, of_one in studies.items() if of_one[0].placed}
    if placed:
        page.paragraph(ABOUT_USAGE)
        squares = SQUARES if len(studies) == 1 else FEW_SQUARES
        shown = list(placed.items())[:DRAWN]
        page.pictures([(picture_of(draw_usage(one, squares)), _usage_caption(name, one)) for name, one in shown])
    elsewhere = [name for name in studies if name not in placed]
    if elsewhere:
        page.paragraph(NO_PLACES.format(", ".join(elsewhere)))


def _charts(studies: Mapping[str, Sequence[QueryStudy]], bargains: Sequence[Series]) -> list[tuple[str, str]]:
    layers, share = "decoder layer", "share of objects"
    charts = []
    if any(len(study.answers) > 1 for of_one in studies.values() for study in of_one):
        series = [_by_layer(name, [study.changed() for study in of_one], 2) for name, of_one in studies.items()]
        chart = line_chart(series, "Objects that change their query", layers, share, (0, 1))
        charts.append((chart, ABOUT_CHANGES + _at_last(series, "in the last layer", ".0%")))
    if bargains:
        chart = line_chart(bargains, "… since the validation before", "epochs", share, (0, 1))
        charts.append((chart, ABOUT_BARGAINING + _at_last(bargains, "at the end", ".0%")))
    series = [_by_layer(name, [study.found_share() for study in of_one], 1) for name, of_one in studies.items()]
    chart = line_chart(series, "Objects found", layers, share, (0, 1))
    charts.append((chart, ABOUT_FOUND + _at_last(series, "after the last layer", ".0%")))
    series = [_by_layer(name, [study.duplicate_rates() for study in of_one], 1) for name, of_one in studies.items()]
    most = max([LEAST_AXIS, *(rate * 1.05 for line in series for rate in line.y if rate is not None)])
    chart = line_chart(series, "Duplicates", layers, "for each object found", (0, most))
    charts.append((chart, ABOUT_DUPLICATES + _at_last(series, "after the last layer", ".2f")))
    return charts


def _at_last(series: Sequence[Series], when: str, form: str) -> str:
    """What the curves come to, as the end of a caption; nothing where there is nothing to tell."""
    ends = {line.name: format(line.y[-1], form) for line in series if line.y and line.y[-1] is not None}
    if not ends:
        return ""
    return f" Here, {when}: {', '.join(value if name == THIS else f'{name} {value}' for name, value in ends.items())}."


def _by_layer(name: str, seeds: Sequence[Sequence[float | None]], first: int) -> Series:
    """The mean of the seeds, layer by layer, counted from `first`."""
    columns = [[value for value in column if value is not None] for column in zip(*seeds, strict=True)]
    means = [statistics.mean(column) if column else None for column in columns]
    return Series(name, list(range(first, first + len(means))), means, markers=True)


def _numbers(studies: Sequence[QueryStudy]) -> list[Cell]:
    """The share that does half of the work, and the distance from home, where a query has one."""
    used = statistics.mean(study.used_half() for study in studies)
    enough = all(len(study.boxes) >= FEWEST_PICTURES for study in studies)
    home = statistics.mean(float(np.median(study.home())) for study in studies)
    return [used if np.isfinite(used) else None, home if studies[0].placed and enough else None]


def _usage_caption(name: str, study: QueryStudy) -> str:
    """What the squares of one detector say."""
    if len(study.boxes) < FEWEST_PICTURES:
        text = f"{len(study.boxes)} pictures are too few to say whether its queries keep to a place."
        return text if name == THIS else f"{name}. {text}"
    home = float(np.median(study.home()))
    kept = "keep to a place of their own" if home < CLOSE else "go far from home" if home > FAR else "roam a little"
    text = f"Its queries {kept}: the median one's boxes lie {home:.2f} from their mean place."
    return text if name == THIS else f"{name}. {text}"


def picture_of(figure: Any) -> Image.Image:
    """A matplotlib figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)
