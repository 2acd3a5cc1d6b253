"""The encoder's sections of a study page: the QKVA grid, or where cells sample."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from detrove.reporting import Number
from detrove.study import figures
from detrove.study.picture import Study
from detrove.study.qkva_grid import (
    HeadNumbers,
    QKVAGrid,
    attention_cost,
    head_numbers,
    qkva_grid,
    sameness,
)
from detrove.study.report_sections import Report, add_head_table, add_level_table, place_words, projections
from detrove.study.sampling_points import cell_of_level, level_numbers, sampled_points


def add_dense_encoder(report: Report, study: Study, name: str) -> None:
    """The QKVA grid of one encoder block, its heads' numbers, and what they cost."""
    grid = qkva_grid(study.seen, name)
    several = grid.num_heads > 1
    numbers = head_numbers(grid)
    key = name.replace(".self_attention", "").replace(".", "_")
    report.page.section(
        f"The QKVA grid: {place_words(name)}",
        f"Self-attention of an encoder over {grid.shape[0]}×{grid.shape[1]} cells with {grid.num_heads} "
        f"head{'s' if several else ''}: all four tensors laid out as the picture.",
    )
    drawn = [*projections(grid, key), _looks(study, grid, key), _grid_of_grids(study, grid, numbers, key)]
    if several:
        pairs = numbers.overlap[~np.eye(grid.num_heads, dtype=bool)]
        drawn.append(
            (
                f"{key}_overlap",
                figures.overlap_figure(numbers),
                "Overlap of heads: the share of two heads' attention that falls on the same cells, averaged over all "
                f"cells. Look for pairs close to 1: one of the two could go. Here two heads share {pairs.mean():.0%} "
                f"on average, the most alike {pairs.max():.0%}.",
            )
        )
    report.figures(*drawn)
    add_head_table(report, key, numbers, "from the cell that looks")
    _add_costs(report, study, grid, key)
    report.numbers[key]["sameness"] = round(sameness(grid), 4)


def _looks(study: Study, grid: QKVAGrid, key: str) -> tuple[str, Figure, str]:
    """Where the cell under the cross looks, head by head."""
    cell = grid.cell_at(*study.place)
    own = grid.looks(cell).reshape(-1)[cell]
    return (
        f"{key}_looks",
        figures.looks_figure(study.picture, figures.head_maps(grid, cell), _cell_centre(grid, cell)),
        "Where the cell under the cross looks, each map from its lowest to its highest cell, with its spread (1 where "
        "all cells are alike). Look for heads that stay nearby, heads that find the same kind of object elsewhere, and "
        f"heads that look at one fixed place. Here {own:.0%} of the attention stays on the cell itself; all alike "
        f"would be {1 / (grid.shape[0] * grid.shape[1]):.1%}.",
    )


def _grid_of_grids(study: Study, grid: QKVAGrid, numbers: HeadNumbers, key: str) -> tuple[str, Figure, str]:
    """A, for the mean of the heads and for one of them."""
    heads: list[int | None] = [None]
    whose = ""
    if grid.num_heads > 1:
        asked = study.head is not None and study.head < grid.num_heads
        heads.append(study.head if asked else int(np.argmin(numbers.entropy)))
        whose = f" (mean of heads, and head {heads[1]}{'' if asked else ', the sharpest'})"
    shared = [f"{'' if head is None else f'in head {head} '}{sameness(grid, head):.0%}" for head in heads]
    return (
        f"{key}_grid_of_grids",
        figures.grid_of_grids_figure(grid, heads),
        f"A as a grid of grids{whose}: in place of every cell of a raster, the map of where that cell looks, the cell "
        "itself in sky blue. Look for tiles that are all the same: then where a cell looks does not depend on the "
        "cell, and attention is an average. Tiles that differ from object to object tell them apart. The part of "
        f"its attention that a cell shares with the average cell is here {', '.join(shared)}.",
    )


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
            Number(f"{cost.map_bytes / 1e6:.2f} MB", cost.map_bytes),
            Number(f"{cost.multiply_adds / 1e6:.1f} M", cost.multiply_adds),
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
        numbers = level_numbers(entry, [cell])
        own, reach = numbers[level].weight, sum(one.weight * one.offset for one in numbers)
        drawn.append(
            (
                f"encoder_sampling_level_{level}",
                figures.points_figure(study.picture, sampled_points(entry, cell), by_head=False),
                f"Where the cell under the cross samples from, as a cell of the map of {height}×{width}: colour and "
                "marker are the level, area is the weight. Look for how far it reaches, and whether it trusts other "
                f"levels more than its own. Here {own:.0%} of its attention stays on its own level, and its points lie "
                f"{reach:.2f} longer sides of the picture away.",
            )
        )
    report.page.section(
        f"Sampling: {place_words(name)}",
        "This encoder is deformable: its cells have no map over all others, so instead of the QKVA grid its sampled "
        "points are shown. Their number is fixed, so its cost grows with the cells and not with their square.",
    )
    report.figures(*drawn)
    add_level_table(report, "encoder_sampling", level_numbers(entry), "all cells of all levels")
