"""The study of one picture as one self-contained page, with its figures as PNG files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrove.drawing import BLUE, ORANGE, Mark, draw_marks, to_rectangle
from detrove.reporting import Bar
from detrove.study import figures
from detrove.study.picture import Study
from detrove.study.report_decoder import (
    add_anchor_position,
    add_dense_cross,
    add_path,
    add_sampled_cross,
    add_self_attention,
    add_terms,
)
from detrove.study.report_encoder import add_dense_encoder, add_sampled_encoder
from detrove.study.report_sections import PICTURE_LONGER, Report

TEMPERATURES = (2.0, 20.0, 200.0, 10000.0)
"""Of the sine encodings that a page compares: DAB-DETR's 20, DETR's 10000, and one on either side of the first."""


def write_study(
    study: Study,
    folder: str | Path,
    title: str = "",
    temperatures: Sequence[float] = TEMPERATURES,
    facts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `report.html`, its figures as PNG files and `study.json` to `folder`; answers what the JSON holds.

    `title` names the picture and the detector. `temperatures` are those of the sine encodings that are compared where
    queries have anchors. `facts` are told at the end of the page.
    """
    report = Report(title or f"What {_name(study)} sees, and why", _lead(study))
    _add_answers(report, study)
    add_path(report, study)
    sampled = study.cross in study.seen.sampled
    if sampled:
        add_sampled_cross(report, study)
    else:
        add_dense_cross(report, study)
        add_terms(report, study)
    if study.seen.decoder_anchors() and not sampled:
        add_anchor_position(report, study, temperatures)
    add_self_attention(report, study)
    for name in study.encoders:
        (add_sampled_encoder if name in study.seen.sampled else add_dense_encoder)(report, study, name)
    _add_missing(report, study)
    if facts:
        report.page.section("About this page")
        report.page.table(["", ""], list(facts.items()))
    report.write(Path(folder))
    return report.numbers


def _name(study: Study) -> str:
    return study.detector.name or type(study.detector.model).__name__


def _lead(study: Study) -> str:
    answer = study.answers([study.query])[0]
    return (
        f"Query {study.query} says {answer['name']} with a score of {answer['score']:.2f}. This page follows it "
        "through the decoder, and the cell under the cross through the encoder. Every number and map is what the "
        "detector computed with."
    )


def _add_answers(report: Report, study: Study) -> None:
    """The picture with the boxes of the surest queries, and what they say."""
    queries = study.shown_queries()
    answers = study.answers(queries)
    picture = study.picture
    marks = [Mark(to_rectangle(a["box"]), BLUE, str(a["query"])) for a in answers[:0:-1]]
    first = answers[0]
    marks.append(Mark(to_rectangle(first["box"]), ORANGE, f"{first['query']} {first['name']} {first['score']:.2f}"))
    drawn = figures.draw_outline(draw_marks(picture, marks, PICTURE_LONGER), study.path.boxes[-1], ORANGE)
    scale = drawn.width / picture.width
    drawn = figures.draw_cross(drawn, study.pixel[0] * scale, study.pixel[1] * scale)
    report.page.section("What it found", "Queries are numbered from 0; each answers for at most one object.")
    report.figures(
        (
            "picture",
            drawn,
            f"Orange: query {study.query}, which this page follows. Blue: the surest of the others. The cross at "
            f"{study.pixel[0]:.0f}, {study.pixel[1]:.0f} is the cell that the encoder's figures follow. Choose others "
            "with --query and --pixel.",
        )
    )
    rows = [[str(a["query"]), a["name"], Bar(f"{a['score']:.2f}", a["score"])] for a in answers]
    report.page.table(["query", "class", "score"], rows, "What the shown queries answer after the last layer.")
    report.numbers |= {
        "detector": _name(study),
        "picture": {"width": picture.width, "height": picture.height},
        "query": study.query,
        "pixel": [round(value, 1) for value in study.pixel],
        "answers": answers,
    }


def _add_missing(report: Report, study: Study) -> None:
    """What of a study this detector has nothing of, and what was shown instead."""
    missing = []
    sampled = study.cross in study.seen.sampled
    if sampled:
        missing.append(
            "Content and position cannot be told apart in deformable cross-attention: points are computed from their "
            "sum, and there are no scores of cells. The sampled points are shown instead."
        )
    if all(name in study.seen.sampled for name in study.encoders):
        missing.append("No QKVA grid: a deformable encoder has no Q, K and A over all cells.")
    if not study.seen.decoder_anchors():
        missing.append("No anchors: queries are learned vectors that no place in the picture is attached to.")
    elif not getattr(study.config, "modulate", False):
        missing.append("No modulation by width and height: that is DAB-DETR's.")
    if missing:
        report.page.section("What does not apply to this detector")
        report.page.bullets(missing)
