"""The encoder's sections of a study page: the QKVA grid, or where cells sample."""

from __future__ import annotations

import numpy as np

from detrove.study import figures
from detrove.study.picture import Study
from detrove.study.qkva_grid import QKVAGrid, attention_cost, head_numbers, qkva_grid
from detrove.study.report_sections import Report, add_head_table, add_level_table, place_words
from detrove.study.sampling_points import cell_of_level, level_numbers, sampled_points


def add_dense_encoder(report: Report, study: Study, name: str) -> None:
    """The QKVA grid of one encoder block, its heads' numbers, and what they cost."""
    grid = qkva_grid(study.seen, name)
    cell = grid.cell_at(*study.place)
    several = grid.num_heads > 1
    numbers = head_numbers(grid)
    key = name.replace(".self_attention", "").replace(".", "_")
    report.page.section(
        f"The QKVA grid: {place_words(name)}",
        f"Self-attention of an encoder over {grid.shape[0]}×{grid.shape[1]} cells with {grid.num_heads} "
        f"head{'s' if several else ''}: all four tensors laid out as the picture.",
    )
    _add_projections(report, grid, key)
    asked = study.head is not None and study.head < grid.num_heads
    heads: list[int | None] = [None]
    if several:
        heads.append(study.head if asked else int(np.argmin(numbers.entropy)))
    chosen = "" if not several else f" and head {heads[1]}" + ("" if asked else ", the sharpest")
    own = grid.looks(cell).reshape(-1)[cell]
    report.figures(
        (
            f"{key}_looks",
            figures.looks_figure(study.picture, figures.head_maps(grid, cell), _cell_centre(grid, cell)),
            "Where the cell under the cross looks, each map from its lowest to its highest cell, with its spread. "
            "Look for heads that stay nearby, heads that find the same kind of object elsewhere, and heads that look "
            f"at one fixed place. Here {own:.0%} of the attention stays on the cell itself.",
        ),
        (
            f"{key}_grid_of_grids",
            figures.grid_of_grids_figure(grid, heads),
            f"A as a grid of grids (mean of heads{chosen}): in place of every cell of a raster, the map of where that "
            "cell looks, the cell itself in sky blue. Look for tiles that are all the same: then where a cell looks "
            "does not depend on the cell, and attention is an average. Tiles that differ from object to object tell "
            "them apart.",
        ),
    )
    add_head_table(report, key, numbers, "from the cell that looks")
    if several:
        pairs = numbers.overlap[~np.eye(grid.num_heads, dtype=bool)]
        report.figures(
            (
                f"{key}_overlap",
                figures.overlap_figure(numbers),
                "Overlap of heads: the share of two heads' attention that falls on the same cells, averaged over all "
                f"cells. Look for pairs close to 1: one of the two could go. Here two heads share {pairs.mean():.0%} "
                f"on average, the most alike {pairs.max():.0%}.",
            )
        )
    _add_costs(report, study, grid, key)


def _add_projections(report: Report, grid: QKVAGrid, key: str) -> None:
    captions = {
        "query": "Q, what each cell asks for",
        "key": "K, what each cell answers to",
        "value": "V, what each cell hands over",
    }
    drawn = []
    for which, text in captions.items():
        caption = (
            f"{text}. Colour: the three leading principal components of the head's vectors (lightness, blue to "
            "yellow, green to red); cells of like colour have like vectors, and the number is the share of the "
            "variance that the colours show. Below: the vectors' length."
        )
        if which == "query":
            caption += (
                " Look for the picture's objects in the colours: where they stand out, the head tells them apart; "
            )
            caption += "smooth ramps instead show position."
        if which == "key":
            caption += " A cell of great length attracts or repels strongly."
        drawn.append((f"{key}_{which}", figures.projections_figure(grid, which), caption))
    report.figures(*drawn)


def _cell_centre(grid: QKVAGrid, cell: int) -> tuple[float, float]:
    height, width = grid.shape
    return (cell % width + 0.5) / width, (cell // width + 0.5) / height


def _add_costs(report: Report, study: Study, grid: QKVAGrid, key: str) -> None:
    """What as many heads, one and eight cost at this size."""
    tokens, dim = grid.shape[0] * grid.shape[1], study.config.dim
    counts = sorted({1, 8, grid.num_heads})
    costs = [attention_cost(tokens, dim, count) for count in counts]
    rows = [
        [
            f"{cost.num_heads} head{'s' if cost.num_heads > 1 else ''}"
            + (" (this one)" if cost.num_heads == grid.num_heads else ""),
            f"{cost.map_bytes / 1e6:.2f} MB",
            f"{cost.multiply_adds / 1e6:.1f} M",
        ]
        for cost in costs
    ]
    report.page.table(
        ["", "memory of A", "multiply-adds"],
        rows,
        f"What attention costs in its explicit form among {tokens} cells at width {dim}: M maps of {tokens}² numbers "
        "of 4 bytes; the two products are the same whatever the number of heads, 2 · (h·w)² · D. The fused kernels "
        "that detectors run with never write A down: they save its memory, not the products.",
    )
    report.numbers[key] |= {
        "tokens": tokens,
        "costs": [{"heads": c.num_heads, "map_bytes": c.map_bytes, "multiply_adds": c.multiply_adds} for c in costs],
    }


def add_sampled_encoder(report: Report, study: Study, name: str) -> None:
    """Where cells sample in a deformable encoder."""
    entry = study.seen.sampled[name]
    drawn = []
    for level in dict.fromkeys((0, len(entry.shapes) - 1)):
        cell = cell_of_level(entry.shapes, level, *study.place)
        height, width = entry.shapes[level]
        drawn.append(
            (
                f"encoder_sampling_level_{level}",
                figures.points_figure(study.picture, sampled_points(entry, cell), by_head=False),
                f"Where the cell under the cross samples from, as a cell of the map of {height}×{width}. Look for how "
                "far it reaches, and on which levels it trusts others more than its own.",
            )
        )
    report.page.section(
        f"The encoder: {place_words(name)}",
        "This encoder is deformable: its cells have no map over all others, so instead of the QKVA grid its sampled "
        "points are shown. Their number is fixed, so its cost grows with the cells and not with their square.",
    )
    report.figures(*drawn)
    add_level_table(report, "encoder_sampling", level_numbers(entry), "all cells of all levels")
