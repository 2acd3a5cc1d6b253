"""The family's arguments as experiments: small arms under one budget, on anybody's data, one table, one page.

Arms are plain data: what they share and what each has of its own, both as of `--set`. An experiment is `compare` with
such arms and a figure or two of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrove.drawing import draw_heat_map
from detrove.errors import InputError, nearest
from detrove.inference import Detector, load
from detrove.reporting import Cell, Number, Page
from detrove.study.arms import Arm
from detrove.study.compare_page import comparison_page, first_at, mebibytes
from detrove.study.compare_page import curve as course_of
from detrove.study.comparison import Comparison, Summary, conditions_of, run_comparison
from detrove.study.figures import above_least, small
from detrove.study.layers import queries_by_score
from detrove.study.position_similarity import POSITION, score_terms
from detrove.study.qkva_grid import attention_cost, measured_attention_cost
from detrove.study.query_page import picture_of
from detrove.study.record import record
from detrove.training import TrainingConfig
from detrove.training.held_out import open_splits
from detrove.training.run_folder import RunFolder


@dataclass(frozen=True)
class Experiment:
    """A question and the arms that answer it.

    `settings` are shared by all arms (the user's go before them), `arms` are those of one seed. `add_figures` adds what
    this experiment alone shows to the page.
    """

    title: str
    question: str
    arms: tuple[Arm, ...]
    add_figures: Callable[[Page, Comparison], None]
    settings: dict[str, Any] = field(default_factory=dict)


def experiment(
    name: str,
    data: str | Path,
    output: str | Path,
    epochs: int | None = None,
    minutes: float | None = None,
    seeds: Sequence[int] = (0,),
    size: int | None = None,
    batch_size: int | None = None,
    backbone_weights: str | Path | None = "pretrained",
    format: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 3.0,
    progress: bool = True,
) -> Comparison:
    """Run one of `EXPERIMENTS` on a data set: its arms under one budget, as `compare` does it, resumable in `output`.

    `settings` go before those that the arms share, not before what makes an arm what it is. Raises `InputError` as
    `compare` does, and for an unknown name.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}: {nearest(name, EXPERIMENTS)}")
    if not seeds:
        raise InputError("nothing to run: name at least one seed")
    chosen = EXPERIMENTS[name]
    shared = {**chosen.settings, **(settings or {})}
    conditions = conditions_of(data, format, epochs, minutes, size, batch_size, backbone_weights, shared, seconds)
    arms = [replace(arm, seed=seed) for seed in seeds for arm in chosen.arms]
    title = f"{chosen.title} {Path(data).resolve().name}"

    def make_page(found: Comparison) -> Page:
        return comparison_page(found, title, chosen.question, lambda page: chosen.add_figures(page, found))

    return run_comparison(arms, conditions, Path(output), progress, make_page)


# ---- are queries hard to learn? --------------------------------------------------------------------------------------

LEARNED, WELL_LEARNED, RANDOM = "learned from the start", "well learned, kept fixed", "random, kept fixed"
KEPT_FIXED: dict[str, Any] = {"slow_parameters": ["query_positions"], "slow_factor": 0.0}
"""A rate of zero: neither a step nor weight decay changes a parameter then."""


def _add_fixed_queries(page: Page, comparison: Comparison) -> None:
    named = {summary.name: summary for summary in comparison.summaries}
    if LEARNED not in named:
        return
    page.section("What the queries are worth", about_fixed_queries(named))
    level = max(y for y in course_of(named[LEARNED], "epoch").y if y is not None)
    header = ["", "epoch", "AP", "difference"]
    rows: list[list[Cell]] = []
    for name, summary in named.items():
        at = first_at(course_of(summary, "epoch"), level)
        difference = summary.ap - named[LEARNED].ap
        rows.append([name, None if at is None else Number(f"{at:g}", at), summary.ap, f"{difference:+.3f}"])
    page.table(
        header,
        rows,
        "All arms of a seed begin with the same weights, but for the queries, and see the same pictures in the same "
        "order. The well-learned queries are those that the first arm ended with. Epoch: when an arm first reached the "
        f"first arm's best AP ({level:.3f}). A dash: never.",
    )


def about_fixed_queries(named: Mapping[str, Summary]) -> str:
    """What the arms say about the hypothesis that queries are hard to learn."""
    look = (
        "If learning the queries were what takes long, an arm that is given good ones should run ahead of the one that "
        "has to find them."
    )
    if WELL_LEARNED not in named or named[LEARNED].ap < 0.01:
        return f"{look} Nothing can be said yet: train longer."
    gain, spread = named[WELL_LEARNED].ap - named[LEARNED].ap, _spread(named[LEARNED])
    if spread is None:
        text = f"{look} Here it ends {gain:+.3f} AP from it; with one seed nobody can tell that from luck."
    elif abs(gain) <= spread:
        text = f"{look} Here it does not: it ends {gain:+.3f} AP from it, within the {spread:.3f} between seeds."
    else:
        kind = "does: the queries are a part of the delay" if gain > 0 else "even falls behind"
        text = f"{look} Here it {kind} ({gain:+.3f} AP, more than the {spread:.3f} between seeds)."
    if RANDOM in named:
        cost = named[RANDOM].ap - named[LEARNED].ap
        text += f" Queries that never learn anything cost {-cost:.3f} AP." if cost < 0 else " Random ones do as well."
    return text


def _spread(summary: Summary) -> float | None:
    """From the least to the most AP of the seeds; None with a single one."""
    values = summary.values("ap")
    return max(values) - min(values) if len(values) > 1 else None


# ---- what should a query's position be? ------------------------------------------------------------------------------

QUERIES_SHOWN = 5
RELU: dict[str, Any] = {"model.activation": "relu"}
"""As the others have it: DAB-DETR's own PReLU is no part of the argument."""

ABOUT_CENTRES = (
    "Where the five surest queries would look in the first validation picture with an object, if only positions "
    "counted: the last layer's attention from the query's position to those of the cells, mean of the heads. A learned "
    "vector may light up several places at once, or none; a sine of an anchor has one centre; with width and height it "
    "can be broad or narrow along each side."
)


def _add_centres(page: Page, comparison: Comparison) -> None:
    page.section("Where positions look", ABOUT_CENTRES)
    rows: list[list[Cell]] = []
    pictures = []
    for summary in comparison.summaries:
        run = summary.records[0].run
        picture = _first_picture_with_objects(run)
        maps = position_maps(load(run), picture)
        centres, breadth = count_centres(maps), (maps > middle_of(maps)).float().mean(dim=(1, 2)).tolist()
        rows.append([summary.name, statistics.mean(centres), statistics.mean(breadth)])
        pictures.append((picture_of(draw_maps(maps, picture)), f"{summary.name}: {_counted(centres)}."))
    page.table(
        ["", "centres", "breadth"],
        rows,
        "Mean of the queries shown. Centres: separate peaks of at least half the height of the highest one above the "
        "mean. Breadth: the share of cells above that. On a coarse map, as small pictures give, several centres may be "
        "one: look at the maps.",
    )
    page.pictures(pictures)


def position_maps(detector: Detector, picture: Image.Image, num_queries: int = QUERIES_SHOWN) -> Tensor:
    """(n, h, w): where a detector's surest queries would look in a picture by position alone, each summing to 1.

    Of the last decoder layer's dense attention, mean of the heads.
    """
    with torch.no_grad(), record(detector) as seen:
        detector.detect([picture])
    name = seen.names("decoder", "cross")[-1]
    config: Any = detector.model.config
    queries = queries_by_score(seen, config.scores)[:num_queries]
    attention = score_terms(seen.dense[name], queries).alone(POSITION).mean(dim=0)
    return attention.unflatten(-1, seen.shape_of(name)).cpu()


def _first_picture_with_objects(run: Path) -> Image.Image:
    """Of the pictures that a run was validated on."""
    validation = open_splits(TrainingConfig.from_yaml(RunFolder(run).config))[1]
    return validation[next((i for i, one in enumerate(validation.records) if len(one.labels)), 0)].image


def count_centres(maps: Tensor) -> list[int]:
    """How many separate peaks each of the maps (n, h, w) has: cells above all eight around them and above the middle
    between the map's mean and its highest value.
    """
    around = torch.nn.functional.max_pool2d(maps[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
    peaks = (maps == around) & (maps > middle_of(maps))
    return peaks.sum(dim=(1, 2)).tolist()


def middle_of(maps: Tensor) -> Tensor:
    """(n, 1, 1): half the height of the highest cell of each map (n, h, w) above its mean."""
    return (maps.amax(dim=(1, 2), keepdim=True) + maps.mean(dim=(1, 2), keepdim=True)) / 2


def _counted(centres: Sequence[int]) -> str:
    """ "1, 1, 3, 2, 1 centres"."""
    return f"{', '.join(str(count) for count in centres)} centre{'' if list(centres) == [1] else 's'}"


def draw_maps(maps: Tensor, picture: Image.Image | None = None) -> Any:
    """Maps (n, h, w) side by side as a matplotlib figure, each from its lowest to its own highest value.

    On the picture that they lie on, or without one as cells.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    aspect = maps.shape[1] / maps.shape[2] if picture is None else picture.height / picture.width
    figure = Figure(figsize=(1.6 * len(maps), 1.6 * aspect + 0.1), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for axes, values in zip(np.asarray(figure.subplots(1, len(maps), squeeze=False))[0], maps.numpy(), strict=True):
        if picture is None:
            axes.imshow(values, cmap="cividis")
        else:
            axes.imshow(draw_heat_map(small(picture), above_least(values)))
        axes.set(xticks=[], yticks=[])
    return figure


# ---- what do several heads add in an encoder? ------------------------------------------------------------------------


def _add_head_costs(page: Page, comparison: Comparison) -> None:
    page.section(
        "What the heads cost",
        "Attention among the cells of the map, one layer of the encoder. Written out (the explicit form) every head "
        "has a map of its own, cells times cells; fused kernels never write it down. The products are the same however "
        "many heads share the width.",
    )
    rows: list[list[Cell]] = []
    for summary in comparison.summaries:
        tokens, dim, heads = _encoder_sizes(summary)
        formula, measured = attention_cost(tokens, dim, heads), measured_attention_cost(tokens, dim, heads)
        rows.append(
            [
                summary.name,
                tokens,
                Number(mebibytes_in_part(formula.map_bytes), formula.map_bytes),
                Number(mebibytes_in_part(measured.map_bytes), measured.map_bytes),
                Number(f"{formula.multiply_adds / 1e6:.1f} M", formula.multiply_adds),
                Number(f"{measured.multiply_adds / 1e6:.1f} M", measured.multiply_adds),
                summary.ap,
            ]
        )
    page.table(
        ["", "cells", "maps, formula", "maps, measured", "products, formula", "products, counted", "AP"],
        rows,
        "For one picture as the detector sees it. Maps: bytes of A, heads · cells² · 4. Products: 2 · cells² · width "
        "multiply-adds. Look at whether AP pays for the maps.",
    )


def _encoder_sizes(summary: Summary) -> tuple[int, int, int]:
    """Cells, width and heads of an arm's encoder, on the picture that it was measured with."""
    config: Any = load(summary.records[0].run).model.config
    measured = summary.records[0].measured or {}
    stride = config.strides[0]
    cells = math.ceil(measured["height"] / stride) * math.ceil(measured["width"] / stride)
    return cells, config.dim, config.num_encoder_heads[0]


def mebibytes_in_part(count: float) -> str:
    """ "0.25 MiB" of what is small, "12 MiB" of what is not."""
    return f"{count / 2**20:.2f} MiB" if count < 10 * 2**20 else mebibytes(count)


def _one_stack(heads: int) -> dict[str, Any]:
    """A Stacked DETR of a single stack on stride 16 is DETR with a head count of the encoder's own."""
    return {
        "model.strides": [16],
        "model.num_encoder_layers": [2],
        "model.num_encoder_heads": [heads],
        "model.num_decoder_layers": [3],
        "model.num_decoder_heads": [8],
    }


EXPERIMENTS = {
    "fixed-queries": Experiment(
        title="Are queries hard to learn? On",
        question="DAB-DETR's first hypothesis (Liu et al. 2022, §3): DETR learns slowly because its queries do. Keep "
        "well-learned ones fixed from the first step and let all the rest learn anew.",
        arms=(
            Arm(LEARNED, "detr-nano"),
            Arm(WELL_LEARNED, "detr-nano", settings=KEPT_FIXED, queries_from=LEARNED),
            Arm(RANDOM, "detr-nano", settings=KEPT_FIXED),
        ),
        add_figures=_add_fixed_queries,
    ),
    "anchors": Experiment(
        title="What should a query's position be? On",
        question="DAB-DETR's second hypothesis (Liu et al. 2022, §3 and §4): a learned vector is a poor position; the "
        "sine of an anchor, with width and height, is a good one. Neighbours in the list differ in little: the second "
        "arm reads a point from the vector and tells content and position apart (and takes the focal loss), the third "
        "learns the point itself and moves it in every layer, the fourth adds width and height, the fifth lets them "
        "modulate the attention, and nothing else.",
        arms=(
            Arm("learned vectors", "detr-nano"),
            Arm("vectors, a point read off", "conditional-nano"),
            Arm("anchors x, y", "dab-nano", settings=RELU | {"model.num_coordinates": 2, "model.modulate": False}),
            Arm("anchors x, y, w, h", "dab-nano", settings=RELU | {"model.modulate": False}),
            Arm("anchors x, y, w, h, modulated", "dab-nano", settings=RELU),
        ),
        add_figures=_add_centres,
        settings={"model.dropout": 0.0, "model.temperature": 20.0},
    ),
    "heads": Experiment(
        title="What do several heads add in an encoder? On",
        question="Stacked DETR's observation (2022): over pixels, several heads add little. Both arms are equally wide "
        "and have the same number of parameters; the encoder's attention is one map, or eight. The decoder keeps its "
        "eight heads. The map is that of stride 16, as in the paper's second stack.",
        arms=(
            Arm("one head", "stacked-nano", settings=_one_stack(1)),
            Arm("eight heads", "stacked-nano", settings=_one_stack(8)),
        ),
        add_figures=_add_head_costs,
    ),
}
"""All experiments by the name that `detrove experiment` knows them by."""
