"""Figures of a study, as matplotlib figures: heat maps on the picture, vectors as colours, sampled points.

All are as wide as half a page or a telephone, so that their letters can be read on both. Drawn through matplotlib's
object interface: no global state, no window system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from detrove.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Colour,
    Rectangle,
    draw_cross,
    draw_heat_map,
    draw_signed_map,
)
from detrove.study.layers import QueryPath
from detrove.study.position_similarity import (
    CONTENT,
    POSITION,
    Modulation,
    ScoreTerms,
    entropy_share,
    sine_similarity,
    softmax_map,
)
from detrove.study.qkva_grid import HeadNumbers, QKVAGrid, principal_colours
from detrove.study.sampling_points import SampledPoints

WIDTH = 5.2
"""Inches: at 200 dots each as many pixels as a page shows side by side on a wide screen."""
DPI = 200
GAP, TITLE = 0.07, 0.23
PANEL_LONGER = 420
"""Pixels of the picture under a map."""
LEVEL_COLOURS: tuple[Colour, ...] = (ORANGE, SKY, GREEN, PURPLE, VERMILION, BLUE)
LEVEL_MARKERS = ("o", "s", "^", "D", "v", "P")
LONGEST = 8
"""Times as high as wide, or as wide as high, that such a figure is at most, if a single tile is not."""
RASTER = 40
"""Tiles of a grid of grids, at most: more are too small to read."""


@dataclass(frozen=True)
class Panel:
    """One small picture of a figure under its title; `draw` puts more onto it, in pixels of the picture."""

    title: str
    image: Image.Image | np.ndarray
    draw: Callable[[Any], None] | None = None


def panel_figure(panels: Sequence[Panel], columns: int) -> Figure:
    """Panels of equal size side by side, row by row; arrays (h, w, 3) are shown cell by cell."""
    images = [np.asarray(panel.image) for panel in panels]
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = (WIDTH - GAP * (columns - 1)) / columns
    height = width * aspect
    total = rows * (height + TITLE + GAP)
    figure = Figure(figsize=(WIDTH, total), dpi=DPI)
    FigureCanvasAgg(figure)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        bottom = total - (row + 1) * (height + TITLE + GAP) + GAP
        axes = figure.add_axes((column * (width + GAP) / WIDTH, bottom / total, width / WIDTH, height / total))
        axes.imshow(images[index], interpolation="nearest" if isinstance(panel.image, np.ndarray) else None)
        axes.set_title(panel.title, fontsize=9.5 if columns < 4 else 8.5, pad=3, color="#1b1f24")
        axes.set_axis_off()
        if panel.draw is not None:
            panel.draw(axes)
    return figure


def as_picture(figure: Figure) -> Image.Image:
    """A figure as an RGB picture."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return Image.open(file).convert("RGB")


def small(picture: Image.Image, longer: int = PANEL_LONGER) -> Image.Image:
    """The picture as it lies under a map."""
    scale = longer / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def pixel_box(box: Sequence[float] | np.ndarray, size: tuple[int, int]) -> Rectangle:
    """cxcywh in [0, 1] to corners in pixels of a picture of (width, height)."""
    x, y, w, h = (float(value) for value in box)
    return (x - w / 2) * size[0], (y - h / 2) * size[1], (x + w / 2) * size[0], (y + h / 2) * size[1]


def with_place(picture: Image.Image, place: Sequence[float] | np.ndarray | None) -> Image.Image:
    """The picture with a box (4,) or a cross (2,) at a place in [0, 1] drawn on it, or as it is."""
    if place is None:
        return picture
    if len(place) == 2:
        return draw_cross(picture, float(place[0]) * picture.width, float(place[1]) * picture.height)
    return draw_outline(picture, place, SKY)


def draw_outline(picture: Image.Image, box: Sequence[float] | np.ndarray, colour: Colour) -> Image.Image:
    """A copy of a small picture with a box cxcywh in [0, 1], its line broad enough to be seen in a small panel."""
    canvas = picture.convert("RGB")
    drawing, corners = ImageDraw.Draw(canvas), np.array(pixel_box(box, picture.size))
    for extra, ink, width in ((1, BLACK, 6), (0, colour, 4)):
        x1, y1, x2, y2 = corners + extra * np.array([-1, -1, 1, 1])
        drawing.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=ink, width=width)
    return canvas


def above_least(values: np.ndarray) -> np.ndarray:
    """A map from its lowest cell upwards, so that a broad one shows where it is higher."""
    return values - values.min()


def projections_figure(grid: QKVAGrid, which: str) -> Figure:
    """Q, K or V ("query", "key", "value") as images: a colour per cell per head, and below it the vectors' length."""
    maps: np.ndarray = getattr(grid, which)
    found = principal_colours(maps)
    lengths = np.linalg.norm(maps, axis=-1)
    inferno = colormaps["inferno"]
    panels: list[Panel] = []
    per_row = min(4, grid.num_heads)
    for start in range(0, grid.num_heads, per_row):
        heads = range(start, min(start + per_row, grid.num_heads))
        share = found.explained.sum(axis=1)
        panels += [Panel(f"head {head}: {share[head]:.0%}", found.colours[head]) for head in heads]
        for head in heads:
            low, high = lengths[head].min(), lengths[head].max()
            relative = (lengths[head] - low) / max(float(high - low), 1e-12)
            panels.append(Panel(f"{low:.1f} to {high:.1f}", inferno(relative)[..., :3]))
    return panel_figure(panels, max(per_row, 2))


def looks_figure(
    picture: Image.Image, maps: Sequence[tuple[str, np.ndarray]], place: Sequence[float] | np.ndarray | None = None
) -> Figure:
    """Attention maps (h, w) under their titles and spread, with the place in [0, 1] that looks.

    Each map runs from its lowest to its highest cell; the number is its `entropy_share`, 1 where all cells are alike.
    """
    ground = small(picture)
    panels = [
        Panel(f"{title}: {entropy_share(values):.2f}", with_place(draw_heat_map(ground, above_least(values)), place))
        for title, values in maps
    ]
    return panel_figure(panels, 3)


def head_maps(grid: QKVAGrid, index: int) -> list[tuple[str, np.ndarray]]:
    """Where one query looks: every head, and their mean."""
    if grid.num_heads == 1:
        return [("one head", grid.looks(index, 0))]
    heads = [(f"head {head}", grid.looks(index, head)) for head in range(grid.num_heads)]
    return [("mean", grid.looks(index)), *heads]


def raster_of(shape: tuple[int, int], most: int = RASTER) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of cells, evenly spread, that make at most so many tiles of the map's aspect.

    About as many rows as columns, so that the whole has the map's aspect too; of a strip fewer along it.
    """
    height, width = shape
    columns = min(width, max(1, int(most**0.5)))
    rows = min(height, most // columns, max(1, LONGEST * columns * width // height))
    columns = min(width, most // rows, max(1, LONGEST * rows * height // width))
    return (
        np.floor((np.arange(rows) + 0.5) * height / rows).astype(int),
        np.floor((np.arange(columns) + 0.5) * width / columns).astype(int),
    )


def grid_of_grids(grid: QKVAGrid, head: int | None = None) -> np.ndarray:
    """A as a grid of grids (H, W, 3): in place of a coarse raster of cells, the map of where each looks.

    Every tile runs from its lowest to its highest cell; the cell that looks is sky blue.
    """
    width = grid.shape[1]
    rows, columns = raster_of(grid.shape)
    zoom = max(1, 1040 // max(len(columns) * width, len(rows) * grid.shape[0]))
    tiles = []
    for row in rows:
        line = []
        for column in columns:
            looks = grid.looks(int(row * width + column), head)
            tile = colormaps["inferno"](above_least(looks) / max(float(np.ptp(looks)), 1e-12))[..., :3]
            tile[row, column] = np.array(SKY) / 255
            line.append(np.pad(np.kron(tile, np.ones((zoom, zoom, 1))), ((2, 2), (2, 2), (0, 0)), constant_values=1))
        tiles.append(np.concatenate(line, axis=1))
    return np.concatenate(tiles)


def grid_of_grids_figure(grid: QKVAGrid, heads: Sequence[int | None]) -> Figure:
    """One grid of grids under the other, for these heads; None is their mean."""
    mean = "mean of heads" if grid.num_heads > 1 else "one head"
    titles = [mean if head is None else f"head {head}" for head in heads]
    return panel_figure([Panel(title, grid_of_grids(grid, head)) for title, head in zip(titles, heads, strict=True)], 1)


def overlap_figure(numbers: HeadNumbers) -> Figure:
    """The overlap of every two heads as a matrix with its numbers."""
    count = len(numbers.overlap)
    figure = Figure(figsize=(WIDTH, WIDTH * 0.86), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(numbers.overlap, vmin=0, vmax=1, cmap="cividis")
    axes.set_xticks(range(count))
    axes.set_yticks(range(count))
    axes.set_xlabel("head")
    axes.set_ylabel("head")
    for row in range(count):
        for column in range(count):
            value = float(numbers.overlap[row, column])
            axes.text(
                column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=9,
                color="white" if value < 0.5 else "black",
            )  # fmt: skip
    return figure


def queries_figure(attention: np.ndarray, names: Sequence[int]) -> Figure:
    """Attention (n, n) among queries of these numbers as a matrix, from nothing to its highest cell."""
    figure = Figure(figsize=(WIDTH, WIDTH * 0.86), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(attention, vmin=0, cmap="cividis")
    axes.set_xticks(range(len(names)), [str(name) for name in names], rotation=90, fontsize=8.5)
    axes.set_yticks(range(len(names)), [str(name) for name in names], fontsize=8.5)
    axes.set_xlabel("is looked at")
    axes.set_ylabel("looks")
    figure.colorbar(image, ax=axes, format=lambda value, _: f"{value:.1%}")
    return figure


def terms_figure(
    picture: Image.Image, terms: ScoreTerms, shape: tuple[int, int], place: Any, head: int | None = None
) -> Figure:
    """What one query's scores are made of, on one scale, and below where content and position alone would look.

    `terms` are those of one query (M, 1, T); means of all heads, or one head's.
    """
    ground = small(picture)

    def of_heads(values: Any) -> np.ndarray:
        chosen = values[:, 0] if head is None else values[head : head + 1, 0]
        return chosen.mean(dim=0).float().reshape(shape).numpy(force=True)

    maps = {name: of_heads(term - term.mean(dim=-1, keepdim=True)) for name, term in terms.terms.items()}
    total = of_heads(terms.total - terms.total.mean(dim=-1, keepdim=True))
    limit = max(float(np.abs(values).max()) for values in (*maps.values(), total))
    shares = terms.shares(head)
    panels = [
        Panel(f"{_short_term(name)}: {shares[name]:z.0%}", with_place(draw_signed_map(ground, values, limit), place))
        for name, values in maps.items()
    ]
    alone = [
        ("content alone", of_heads(terms.alone(CONTENT))),
        ("position alone", of_heads(terms.alone(POSITION))),
        ("as it looks", of_heads(terms.alone(*terms.terms))),
    ]
    panels.append(Panel("their sum", with_place(draw_signed_map(ground, total, limit), place)))
    heat = [
        Panel(f"{title}: {entropy_share(values):.2f}", with_place(draw_heat_map(ground, above_least(values)), place))
        for title, values in alone
    ]
    if len(terms.terms) == 2:
        return panel_figure([*panels, *heat], 3)
    return panel_figure([*panels, heat[2], *heat[:2]], 2)


def _short_term(name: str) -> str:
    """ "c·p" for "content · position": the query's part first."""
    return "·".join(part[0] for part in name.split(" · "))


def map_of_heads(scores: np.ndarray, head: int | None) -> np.ndarray:
    """Where scores (M, h, w) alone would look: (h, w), of one head, or the mean of all."""
    maps = softmax_map(scores)
    return maps.mean(axis=0) if head is None else maps[head]


def modulation_figure(picture: Image.Image, found: Modulation, head: int | None = None) -> Figure:
    """The position map of one query before and after its anchor's width and height, with the anchor."""
    ground = small(picture)

    panels = [
        Panel(title, with_place(draw_heat_map(ground, above_least(map_of_heads(scores, head))), found.anchor))
        for title, scores in (("position, before", found.before), ("after width and height", found.after))
    ]
    return panel_figure(panels, 2)


def temperature_figure(
    picture: Image.Image, place: np.ndarray, shape: tuple[int, int], dim: int, temperatures: Sequence[float]
) -> Figure:
    """How like the place's sine encoding that of every cell is, at several temperatures, on one scale up to 1."""
    ground, panels = small(picture), []
    fine = (shape[0] * 4, shape[1] * 4)
    for temperature in temperatures:
        similarity = sine_similarity((float(place[0]), float(place[1])), fine, dim, temperature)
        panels.append(Panel(f"T = {temperature:g}", with_place(draw_heat_map(ground, similarity.clip(0)), place)))
    return panel_figure(panels, min(len(panels), 3) if len(panels) != 4 else 2)


def points_figure(picture: Image.Image, points: SampledPoints, by_head: bool, heads: Sequence[int] = ()) -> Figure:
    """The points of one query on the picture, a panel per level, or per head (those named, or all of them).

    Colour and marker are the level, area is the weight; the reference is a cross or a box. Heads are shown on the part
    of the picture that they sample.
    """
    if by_head:
        picture, points = around_points(picture, points)
    ground = with_place(small(picture).convert("L").convert("RGB"), points.reference)
    num_heads, num_levels = points.weights.shape[:2]
    panels = []
    if by_head:
        for head in heads or range(num_heads):
            panels.append(Panel(f"head {head}", ground, _scatter(points, [head], range(num_levels), ground.size)))
        return panel_figure(panels, 3)
    panels.append(Panel("all levels", ground, _scatter(points, range(num_heads), range(num_levels), ground.size)))
    for level, (height, width) in enumerate(points.shapes):
        share = points.weights[:, level].sum() / points.weights.sum()
        title = f"{height}×{width} cells: {share:.0%}"
        panels.append(Panel(title, ground, _scatter(points, range(num_heads), [level], ground.size)))
    return panel_figure(panels, 2)


LEAST_WINDOW, WHOLE = 0.2, 0.75
"""Of the picture's sides: no part smaller than this is shown, and above this, all of it."""


def around_points(picture: Image.Image, points: SampledPoints) -> tuple[Image.Image, SampledPoints]:
    """The part of the picture, of its aspect, that holds a query's points and reference; or all of it.

    The points of the answer are in shares of that part.
    """
    centre, half = points.reference[:2], points.reference[2:] / 2
    heeded = points.locations[points.weights > 0.01]
    reach = np.abs(np.concatenate((heeded - centre, half[None] if len(half) else np.zeros((1, 2))))).max()
    share = max(LEAST_WINDOW, 2.2 * float(reach))
    if share > WHOLE:
        return picture, points
    start = (centre - share / 2).clip(0, 1 - share)
    (left, top), (right, bottom) = start * picture.size, (start + share) * picture.size
    part = picture.resize(picture.size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    reference = np.concatenate(((centre - start) / share, points.reference[2:] / share))
    return part, replace(points, locations=(points.locations - start) / share, reference=reference)


def _scatter(
    points: SampledPoints, heads: Sequence[int], levels: Sequence[int], size: tuple[int, int]
) -> Callable[[Any], None]:
    """Draws these heads' points at these levels; what lies outside the picture stays out of sight."""

    def draw(axes: Any) -> None:
        for level in levels:
            where = points.locations[list(heads), level].reshape(-1, 2) * size
            weights = points.weights[list(heads), level].reshape(-1)
            colour = np.array(LEVEL_COLOURS[level % len(LEVEL_COLOURS)]) / 255
            axes.scatter(
                where[:, 0], where[:, 1], s=9 + 160 * weights, color=[colour], edgecolors="black", linewidths=0.4,
                marker=LEVEL_MARKERS[level % len(LEVEL_MARKERS)], alpha=0.9,
            )  # fmt: skip
        axes.set_xlim(-0.5, size[0] - 0.5)
        axes.set_ylim(size[1] - 0.5, -0.5)

    return draw


def path_figure(picture: Image.Image, path: QueryPath) -> Figure:
    """One query's box after every layer: what the layer looked from is orange, what it answered sky blue."""
    ground, panels = small(picture), []
    for layer, box in enumerate(path.boxes):
        shown = ground
        if path.anchors and len(path.anchors[layer]) == 4:
            shown = draw_outline(shown, path.anchors[layer], ORANGE)
        elif path.anchors:
            shown = draw_cross(shown, *(path.anchors[layer] * ground.size), colour=ORANGE)
        shown = draw_outline(shown, box, SKY)
        panels.append(Panel(f"layer {layer}: {path.scores[layer]:.2f}", shown))
    return panel_figure(panels, 3)
