"""The decoder's sections of a study page: one query, from where it starts to where it looks and whom it heeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from detrove.boxes import iou_xyxy
from detrove.drawing import BLUE, ORANGE, Mark, draw_marks, to_rectangle
from detrove.nn.conditional_attention import ConditionalCrossAttention
from detrove.reporting import Bar
from detrove.study import figures
from detrove.study.layers import queries_by_score
from detrove.study.picture import Study
from detrove.study.position_similarity import (
    MIXED,
    POSITION,
    entropy_share,
    half_width,
    modulation,
    score_terms,
    sine_similarity,
)
from detrove.study.qkva_grid import QKVAGrid, head_numbers, qkva_grid
from detrove.study.record import place_of
from detrove.study.report_sections import (
    PICTURE_LONGER,
    Report,
    add_head_table,
    add_level_table,
    cells_of,
    place_words,
    projections,
)
from detrove.study.sampling_points import heads_in_box, level_numbers, sampled_points

QUERIES_SHOWN = 20
"""Rows and columns of the matrix of self-attention: more cannot be told apart on a telephone."""


def add_path(report: Report, study: Study) -> None:
    """The query's box after every layer."""
    path = study.path
    names = study.detector.label_map.names
    last = len(path.overlaps) - 1
    settled = next((i for i in range(last) if (path.overlaps[i:] >= 0.9).all()), last)
    if not path.anchors:
        start = "A query of this detector has no anchor: every layer computes its box anew from the query's content."
    elif len(path.anchors[-1]) == 2:
        start = "The orange cross is the reference point that the box is an offset from, the same before every layer."
    elif len(path.anchors[0]) == 2:
        start = "The first layer looks from a point (orange cross), the others from the box before (orange)."
    else:
        start = "Orange is the anchor that the layer looks from, sky blue what it makes of it."
    means = f"Here the box is settled after layer {settled}: from there on it overlaps the last one by 0.9 or more."
    report.page.section("Layer by layer", "The same query after every layer of the decoder.")
    report.figures(
        (
            "layers",
            figures.path_figure(study.picture, path),
            f"Look for where the box jumps and where it only settles. {start} Above each panel stands the score. "
            f"{means}",
        )
    )
    rows = [
        [f"layer {i}", names[int(path.labels[i])], Bar(f"{path.scores[i]:.2f}", float(path.scores[i])), float(overlap)]
        for i, overlap in enumerate(path.overlaps)
    ]
    report.page.table(["", "class", "score", "overlap with the last box"], rows)
    report.numbers["layers"] = [
        {
            "box_cxcywh": [round(float(value), 4) for value in path.boxes[i]],
            "score": float(path.scores[i]),
            "name": names[int(path.labels[i])],
            "overlap_with_last": float(path.overlaps[i]),
            "anchor": [round(float(value), 4) for value in path.anchors[i]] if path.anchors else None,
        }
        for i in range(len(path.boxes))
    ]


def _query_place(study: Study) -> np.ndarray:
    """The box that the studied layer answers for the query: cxcywh in [0, 1]."""
    return study.path.boxes[_decoder_layer(study)]


def _decoder_layer(study: Study) -> int:
    return study.seen.names("decoder", "cross").index(study.cross)


def add_dense_cross(report: Report, study: Study) -> None:
    """Where the query looks, head by head."""
    grid = qkva_grid(study.seen, study.cross)
    maps = figures.head_maps(grid, study.query)
    box = _query_place(study)
    numbers = head_numbers(_of_query(grid, study.query), box[None, :2])
    inside = [share_in_box(values, box) for _, values in maps]
    best = int(np.argmax(inside[1:])) if grid.num_heads > 1 else 0
    report.page.section(
        "Where the query looks", f"Cross-attention, {place_words(study.cross)}: {grid.shape[0]}×{grid.shape[1]} cells."
    )
    report.figures(
        (
            "cross_attention",
            figures.looks_figure(study.picture, maps, box),
            "Bright is where the query reads the picture from, each map from its lowest to its highest cell; the "
            "number is its spread, 1 where all cells are alike. The box is what this layer answers. Look for heads "
            f"that watch an edge of the object, and for heads that watch elsewhere. Here {inside[0]:.0%} of all "
            "attention falls inside the box"
            + (f", {inside[1:][best]:.0%} of head {best}'s." if grid.num_heads > 1 else "."),
        ),
        *projections(grid, "cross_attention", ("key", "value")),
    )
    add_head_table(report, "cross_attention", numbers, f"from the middle of query {study.query}'s box")


def _of_query(grid: QKVAGrid, query: int) -> QKVAGrid:
    """The grid of that query alone."""
    alone = slice(query, query + 1)
    return replace(grid, query=grid.query[:, alone], attention=grid.attention[:, alone])


def share_in_box(looks: np.ndarray, box: np.ndarray) -> float:
    """The share of a map (h, w) inside a box cxcywh; cells at its edge count by the part that it covers."""
    height, width = looks.shape
    return float(_covered(height, box[1], box[3]) @ looks @ _covered(width, box[0], box[2]))


def _covered(count: int, centre: float, size: float) -> np.ndarray:
    """How much of each of `count` equal parts of [0, 1] lies within `size` around `centre`."""
    edges = np.clip(np.arange(count + 1) / count, centre - size / 2, centre + size / 2)
    return np.diff(edges) * count


def add_terms(report: Report, study: Study) -> None:
    """Content and position apart."""
    entry = study.seen.dense[study.cross]
    terms = score_terms(entry, [study.query])
    shares = terms.shares(study.head)
    added = len(terms.terms) == 4
    how = (
        "Content and position are added before they are compared, so a score has four terms: c·c, c·p, p·c and p·p "
        "(the query's part first)."
        if added
        else "Content and position stand side by side, so a score has two terms: c·c and p·p."
    )
    most = max(shares, key=lambda name: shares[name])
    caption = (
        "Coloured maps: orange raises a cell's score, blue lowers it, all on one scale; the number is the term's "
        "share in how scores differ between cells. Heat maps, with their spread: where the query would look by "
        "content alone, by position alone, and where it does look. Look for whether position finds the place and "
        f"content the object. Here {most} decides most: {shares[most]:.0%}."
    )
    if added:
        mixed = sum(shares[name] for name in MIXED)
        caption += f" The mixed terms, which Conditional DETR does away with, hold {mixed:z.0%}."
    if place_of(study.cross).layer == 0 and not added:
        caption += " In the first layer content is still empty, so there position is added to it as well."
    report.page.section("Content and position apart", f"{how} {_heads_words(study)}")
    drawn = [
        (
            "content_and_position",
            figures.terms_figure(
                study.picture, terms, study.seen.shape_of(study.cross), _query_place(study), study.head
            ),
            caption,
        )
    ]
    alone = terms.alone(POSITION)[:, 0].unflatten(-1, study.seen.shape_of(study.cross)).float().numpy(force=True)
    if len(alone) > 1:
        inside = [share_in_box(values, _query_place(study)) for values in alone]
        drawn.append(
            (
                "position_alone",
                figures.looks_figure(
                    study.picture, [(f"head {i}", values) for i, values in enumerate(alone)], _query_place(study)
                ),
                "Where every head would look by position alone. Look for heads that stand on one side or corner of "
                "the object: with them, content only has to tell what is there. Spread over the whole picture, "
                f"position says nothing. Here between {min(inside):.0%} and {max(inside):.0%} of it falls inside the "
                "box.",
            )
        )
    report.figures(*drawn)
    report.numbers["terms"] = {name: round(value, 4) for name, value in shares.items()}


def _heads_words(study: Study) -> str:
    return "Mean of all heads; --head shows one." if study.head is None else f"Head {study.head}."


def add_anchor_position(report: Report, study: Study, temperatures: Sequence[float]) -> None:
    """What an anchor's size and the encoding's temperature do to the position map."""
    anchor = study.path.anchors[_decoder_layer(study)]
    shape = study.seen.shape_of(study.cross)
    dim = study.config.dim
    own = getattr(study.config, "temperature", None)
    centre, fine = (float(anchor[0]), float(anchor[1])), (shape[0] * 4, shape[1] * 4)
    widths = {t: half_width(sine_similarity(centre, fine, dim, t)) for t in temperatures}
    caption = (
        "How like the anchor's sine encoding that of every place is, with nothing learned: what the position part "
        "starts from. Look for how the spot narrows as the temperature falls. More than half as like as the anchor's "
        "middle is "
        + ", ".join(f"{share:.0%} of the picture at T = {t:g}" for t, share in widths.items())
        + f". This detector encodes the picture's cells at T = {own:g}."
    )
    drawn: list[tuple[str, Figure | Image.Image, str]] = [
        ("temperature", figures.temperature_figure(study.picture, anchor, shape, dim, temperatures), caption)
    ]
    block = study.detector.model.get_submodule(study.cross)
    if getattr(study.config, "modulate", False) and isinstance(block, ConditionalCrossAttention):
        found = modulation(study.detector.model, study.seen, study.cross, study.query)
        wide, high = found.size_ratio
        before, after = (entropy_share(figures.map_of_heads(x, study.head)) for x in (found.before, found.after))
        drawn.insert(
            0,
            (
                "modulation",
                figures.modulation_figure(study.picture, found, study.head),
                "Where position alone looks, before and after the anchor's width and height change it; the box is "
                f"the anchor. Look for a map that takes on the object's shape. Wanted by own size is {wide:.2f} in "
                f"width and {high:.2f} in height: above 1 looks more closely along that side, below 1 more broadly. "
                f"The map's spread goes from {before:.2f} to {after:.2f}.",
            ),
        )
        report.numbers["modulation"] = {"size_ratio": [round(wide, 4), round(high, 4)], "spread": [before, after]}
    report.page.section(
        "The anchor's position",
        "The query's position is computed from its anchor by sines. Their temperature and, in DAB-DETR, the anchor's "
        "size say how broad the map is.",
    )
    report.figures(*drawn)
    report.numbers["temperature_half_width"] = {f"{t:g}": round(share, 4) for t, share in widths.items()}


def add_sampled_cross(report: Report, study: Study) -> None:
    """Where the query samples, level by level and head by head."""
    entry = study.seen.sampled[study.cross]
    points = sampled_points(entry, study.query)
    levels = level_numbers(entry)
    own = level_numbers(entry, [study.query])
    most = max(range(len(own)), key=lambda level: own[level].weight)
    heads = points.weights.shape[0]
    box = "box" if len(points.reference) == 4 else "point"
    inside = own[most].in_box
    caption = (
        f"All {points.weights.size} points of the query: colour and marker are the level, area is the weight, the "
        f"reference {box} is sky blue. Look for whether points reach the edges of the object, and which level they "
        f"trust. Here {own[most].weight:.0%} of the attention goes to the level of {cells_of(own[most])} cells"
        + ("" if inside is None else f", {inside:.0%} of that inside the reference box")
        + "."
    )
    report.page.section(
        "Where the query looks",
        f"Cross-attention, {place_words(study.cross)}, is deformable: instead of a map over all cells, every head "
        f"samples {points.weights.shape[2]} points on each of {points.weights.shape[1]} levels.",
    )
    chosen = [study.head] if study.head is not None else []
    of_heads = heads_in_box(points, _query_place(study))
    report.figures(
        ("sampling_by_level", figures.points_figure(study.picture, points, by_head=False), caption),
        (
            "sampling_by_head",
            figures.points_figure(study.picture, points, by_head=True, heads=chosen),
            "The same points head by head, on the part of the picture that they reach. At the start of training the "
            f"heads point in {heads} directions; look for those that still do, and for those that gather on one part "
            "of the object. Here these shares of their attention fall inside the box that the layer answers: "
            f"{_by_head(of_heads, chosen)}.",
        ),
    )
    add_level_table(report, "sampling", levels, "all queries of this layer")


def _among_queries(study: Study, attention: np.ndarray) -> tuple[str, Figure, str]:
    """A (Q, Q) among the surest queries."""
    shown = queries_by_score(study.seen, study.config.scores)[:QUERIES_SHOWN]
    heeded = attention[:, shown].sum(axis=1).mean()
    return (
        "self_attention",
        figures.queries_figure(attention[np.ix_(shown, shown)], shown),
        f"A among the {len(shown)} surest queries, the surest first: each row looks, each column is looked at. Look "
        "for columns that are bright from top to bottom (queries that all the others heed), for pairs, and for a "
        f"diagonal (queries that look at themselves). Here they are heeded with {heeded:.0%} of all queries' "
        f"attention; all alike would be {len(shown) / len(attention):.0%}. To themselves queries give "
        f"{np.diag(attention).mean():.1%}.",
    )


def _by_head(shares: np.ndarray, heads: Sequence[int]) -> str:
    """ "head 0 81%, head 1 64%", of those named, or of all."""
    return ", ".join(f"head {head} {shares[head]:.0%}" for head in heads or range(len(shares)))


def add_self_attention(report: Report, study: Study) -> None:
    """Which other queries the query looks at."""
    attention = study.seen.dense[study.decoder_self].attention[0].float()
    attention = (attention.mean(dim=0) if study.head is None else attention[study.head]).numpy(force=True)
    looks = attention[study.query]
    itself = float(looks[study.query])
    others = [int(q) for q in np.argsort(-looks) if q != study.query][:6]
    boxes = study.last_boxes()
    marks = [Mark(to_rectangle(boxes[q].tolist()), BLUE, f"{q} {looks[q]:.1%}") for q in reversed(others)]
    marks.append(Mark(to_rectangle(boxes[study.query].tolist()), ORANGE, f"{study.query} {itself:.1%}"))
    drawn = figures.draw_outline(draw_marks(study.picture, marks, PICTURE_LONGER), study.path.boxes[-1], ORANGE)
    even = 1 / len(looks)
    overlap = [_overlap(boxes[study.query].tolist(), boxes[q].tolist()) for q in others]
    rivals = sum(value > 0.5 for value in overlap)
    report.page.section(
        "Whom the query listens to",
        f"Self-attention among the {len(looks)} queries, {place_words(study.decoder_self)}. {_heads_words(study)}",
    )
    report.figures(
        (
            "queries",
            drawn,
            f"Orange: query {study.query} and how much it looks at itself. Blue: the queries that it looks at most, "
            f"with their share; all alike would be {even:.1%} each. Boxes are those of the last layer. Look for "
            "rivals on the same object: by self-attention queries agree on who answers, which is why no suppression "
            f"is needed afterwards. Here {rivals} of the {len(others)} overlap its box by more than half.",
        ),
        _among_queries(study, attention),
    )
    report.numbers["self_attention"] = {
        "itself": round(itself, 4),
        "most": [{"query": q, "attention": round(float(looks[q]), 4)} for q in others],
    }


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return float(iou_xyxy(torch.tensor(a), torch.tensor(b)).nan_to_num())
