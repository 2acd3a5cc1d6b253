"""The page of a comparison: the table that its reader sorts, and what to see in each figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from detrove.reporting import Bar, Cell, Number, Page, Series, bar_chart, line_chart
from detrove.study.arms import ArmRecord
from detrove.study.comparison import SHOWN, Comparison, Summary
from detrove.study.queries import QueryStudy
from detrove.study.query_page import ABOUT_QUERIES, add_queries

HEADER = (
    "",
    "AP",
    "AP50",
    "AP small",
    "AP medium",
    "AP large",
    "minutes",
    "epochs",
    "memory",
    "ms",
    "parameters",
    "multiply-adds",
    "seeds",
)
SIZES = {"ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
NOTHING_LEARNED = 0.01
"""An AP below this is chance: a detector that has not begun to detect."""

ABOUT_TABLE = (
    "Click on a head to sort. AP is that of the validation pictures by the weights that each run kept: the mean of the "
    "seeds, in brackets the least and the most. Minutes are training time. Memory is the most that a training process "
    "held. ms: one picture from file to boxes, one at a time. Multiply-adds: of that picture. A dash: no such object, "
    "or not measured."
)


def comparison_page(
    comparison: Comparison,
    title: str | None = None,
    question: str = "",
    more: Callable[[Page], None] | None = None,
) -> Page:
    """The page, from verdict to conditions. `question` stands under the verdict, what `more` adds after the figures."""
    page = Page(title or f"Detectors compared on {Path(comparison.conditions.data).name}", verdict(comparison))
    if question:
        page.paragraph(question)
    page.table(HEADER, table_rows(comparison.ranked()), ABOUT_TABLE, sortable=True)
    if comparison.failed:
        page.section("What is missing", "These arms are not in the table; the same command tries or continues them.")
        missing = comparison.failed
        page.bullets([f"{record.arm.name}, seed {record.arm.seed}: {record.why_unfinished}" for record in missing])
    _add_courses(page, comparison.summaries)
    _add_prices(page, comparison.summaries)
    if more is not None:
        more(page)
    _add_queries(page, comparison.summaries)
    _add_conditions(page, comparison)
    return page


def verdict(comparison: Comparison) -> str:
    """Which arm learned most, and how sure that is."""
    ranked = comparison.ranked()
    best, budget = ranked[0], comparison.conditions.describe_budget()
    if best.ap < NOTHING_LEARNED:
        return f"After {budget} each, none of them detects anything yet (the best AP is {best.ap:.3f}): train longer."
    text = f"After {budget} each, {best.name} has learned most: AP {_with_range(best.values('ap'))}"
    if len(ranked) == 1:
        return f"{text}."
    next_best = ranked[1]
    text += f"; then comes {next_best.name} with {_with_range(next_best.values('ap'))}."
    if min(len(best.records), len(next_best.records)) == 1:
        return f"{text} With one seed each, small differences are luck: add seeds before you believe them."
    if min(best.values("ap")) <= max(next_best.values("ap")):
        return f"{text} Their seeds overlap: which of these two is better, this comparison cannot tell."
    return f"{text} Every seed of the first is above every seed of the second."


def table_rows(summaries: Sequence[Summary]) -> list[list[Cell]]:
    """The cells under `HEADER`."""
    return [
        [
            summary.name,
            *(_precision(summary, metric) for metric in SHOWN),
            Number(f"{summary.minutes:.1f}", summary.minutes),
            Number(f"{summary.epochs:g}", summary.epochs),
            None if summary.memory is None else Number(mebibytes(summary.memory), summary.memory),
            Number(f"{1e3 * summary.measured('latency'):.1f}", summary.measured("latency")),
            Number(f"{summary.measured('parameters') / 1e6:.2f} M", summary.measured("parameters")),
            Number(f"{summary.measured('multiply_adds') / 1e9:.2f} G", summary.measured("multiply_adds")),
            len(summary.records),
        ]
        for summary in summaries
    ]


def mebibytes(count: float) -> str:
    """ "512 MiB"."""
    return f"{count / 2**20:,.0f} MiB"


def _precision(summary: Summary, metric: str) -> Cell:
    mean = summary.mean(metric)
    if mean is None:
        return None
    # The others without: the whole table is to be seen on a wide screen.
    return Bar(_with_range(summary.values(metric)) if metric == "ap" else f"{mean:.3f}", mean)


def _with_range(values: Sequence[float]) -> str:
    """The mean, and in brackets the least and the most where there are several."""
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f}–{max(values):.3f})"


# ---- how they learned ------------------------------------------------------------------------------------------------


def _add_courses(page: Page, summaries: Sequence[Summary]) -> None:
    page.section("How they learned", "Bands reach from the worst seed to the best.")
    charts = [
        (
            line_chart(
                [curve(summary, x) for summary in summaries], f"AP against {x}s", label, "AP on validation pictures"
            ),
            about_course(summaries, x),
        )
        for x, label in (("minute", "minutes of training"), ("epoch", "epochs"))
    ]
    present = {metric: name for metric, name in SIZES.items() if any(s.mean(metric) is not None for s in summaries)}
    if present:
        bars = [(summary.name, [summary.mean(metric) for metric in present]) for summary in summaries]
        charts.append((bar_chart(list(present.values()), bars, "AP by size of objects", "AP"), about_sizes(summaries)))
    page.charts(charts)


KEYS = {"minute": "minutes", "epoch": "epoch"}


def curve(summary: Summary, x: str) -> Series:
    """AP against "minute" or "epoch": the mean of the seeds, and their range, as far as all were validated."""
    lines = []
    for history, best in zip(summary.histories, summary.best, strict=True):
        # Where a budget left no time to validate on the way, the best is known at the end.
        lines.append([line for line in history if "ap" in line] or [{**history[-1], **best}])
    points = [([line[KEYS[x]] for line in seed], [line["ap"] or 0.0 for line in seed]) for seed in lines]
    return _mean_of_seeds(summary.name, points)


def bargaining(summary: Summary) -> Series | None:
    """The share of objects that another query answers for than at the validation before, against epochs; None where it
    was never looked at."""
    points = []
    for history in summary.histories:
        watched = [(line["epoch"], line.get("watch", {}).get("changed_since_last")) for line in history]
        known = [(epoch, share) for epoch, share in watched if share is not None]
        if not known:
            return None
        points.append(([epoch for epoch, _ in known], [share for _, share in known]))
    return _mean_of_seeds(summary.name, points)


def _mean_of_seeds(name: str, seeds: Sequence[tuple[list[float], list[float]]]) -> Series:
    """Points (x, y) of every seed as one line, with a band; between its points, a seed is taken to go straight."""
    if len(seeds) == 1:
        return Series(name, *seeds[0], markers=len(seeds[0][0]) <= 20)
    first, last = max(xs[0] for xs, _ in seeds), min(xs[-1] for xs, _ in seeds)
    grid = sorted({value for xs, _ in seeds for value in xs if first <= value <= last})
    if not grid:  # one validation each, not at the same time
        means = [statistics.mean(values[-1] for values in axis) for axis in zip(*seeds, strict=True)]
        return Series(name, [means[0]], [means[1]])
    values = np.array([np.interp(grid, xs, ys) for xs, ys in seeds])
    low, high = values.min(axis=0).tolist(), values.max(axis=0).tolist()
    return Series(name, grid, values.mean(axis=0).tolist(), len(grid) <= 20, low, high)


def about_course(summaries: Sequence[Summary], x: str) -> str:
    """What to look for, and who was first to half of the best AP."""
    look = {
        "minute": "What a budget of time buys: higher is better, further to the left is sooner.",
        "epoch": "What the same pictures taught, whatever a step costs: papers compare convergence so.",
    }[x]
    half = max(summary.ap for summary in summaries) / 2
    if len(summaries) < 2 or 2 * half < NOTHING_LEARNED:
        return look
    reached = {summary.name: first_at(curve(summary, x), half) for summary in summaries}
    sooner = sorted((at, name) for name, at in reached.items() if at is not None)
    never = [name for name, at in reached.items() if at is None]
    (at, name), *_ = sooner
    text = f"{look} Half of the best AP ({half:.3f}) is reached first by {name}, at {x} {at:.3g}"
    if never:
        return f"{text}; never by {_listed(never)}."
    return f"{text}, last by {sooner[-1][1]}, at {sooner[-1][0]:.3g}."


def first_at(line: Series, level: float) -> float | None:
    """Where a curve first reaches a level; None where it does not."""
    return next((x for x, y in zip(line.x, line.y, strict=True) if y is not None and y >= level), None)


def about_sizes(summaries: Sequence[Summary]) -> str:
    """What to look for, and who is best on the smallest objects that there are."""
    look = "Sizes as COCO has them: below 32×32 pixels of the original picture, to 96×96, and above."
    for metric, name in SIZES.items():
        known = [(value, summary.name) for summary in summaries if (value := summary.mean(metric)) is not None]
        if len(known) > 1 and max(known)[0] >= NOTHING_LEARNED:
            value, best = max(known)
            return f"{look} On {name} ones {best} is best, with {value:.3f}."
    return f"{look} Detectors on finer maps, or with several, should gain on the small ones."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ---- what they cost --------------------------------------------------------------------------------------------------


def _add_prices(page: Page, summaries: Sequence[Summary]) -> None:
    page.section("What they cost")
    latencies = {summary.name: 1e3 * summary.measured("latency") for summary in summaries}
    dots = [Series(summary.name, [latencies[summary.name]], [summary.ap]) for summary in summaries]
    fastest = min(summaries, key=lambda summary: latencies[summary.name])
    text = (
        "Up and to the left is better: more found, sooner. "
        f"{fastest.name} is fastest, with {latencies[fastest.name]:.1f} ms for a picture."
    )
    charts = [(line_chart(dots, "AP against latency", "milliseconds a picture", "AP"), text)]
    known = {summary.name: summary.memory for summary in summaries if summary.memory is not None}
    if known:
        dots = [Series(s.name, [known[s.name] / 2**20], [s.ap]) for s in summaries if s.name in known]
        lightest = min(known, key=lambda name: known[name])
        text = (
            "The most that each training held at once, Python and torch with it. "
            f"{lightest} took least, {mebibytes(known[lightest])}."
        )
        charts.append((line_chart(dots, "AP against memory in training", "MiB", "AP"), text))
    page.charts(charts)


# ---- their queries ---------------------------------------------------------------------------------------------------


def studies_of(summary: Summary) -> list[QueryStudy]:
    """What the queries of each seed did."""
    return [QueryStudy.load(record.queries) for record in summary.records]


def _add_queries(page: Page, summaries: Sequence[Summary]) -> None:
    page.section("Their queries, layer by layer", ABOUT_QUERIES)
    bargains = [series for summary in summaries if (series := bargaining(summary)) is not None]
    add_queries(page, {summary.name: studies_of(summary) for summary in summaries}, bargains)


# ---- under what conditions -------------------------------------------------------------------------------------------


def _add_conditions(page: Page, comparison: Comparison) -> None:
    conditions, first = comparison.conditions, comparison.summaries[0].records[0].measured or {}
    page.section("What was equal, and what was not", "Each arm followed its model's recipe, but for what is told here.")
    seeds = sorted({record.arm.seed for record in comparison.records})
    threads = f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    facts = {
        "data": Path(conditions.data).name,
        "budget of each arm": conditions.describe_budget(),
        "seeds": ", ".join(str(seed) for seed in seeds),
        "picture size": "each model's own" if conditions.size is None else f"longer side {conditions.size} pixels",
        "batch": "each recipe's own" if conditions.batch_size is None else f"{conditions.batch_size} pictures",
        "trunk starts from": _trunk(conditions.backbone_weights, comparison.records),
        **{name: str(value) for name, value in conditions.settings.items()},
        "measured on": f"{first['processor']}, {threads}, torch {first['torch']}",
        "made with": f"detrove {first['detrove']}",
    }
    page.table(["", ""], list(facts.items()))
    special = [
        [summary.name, summary.arm.model, ", ".join(f"{key}={value}" for key, value in summary.arm.settings.items())]
        for summary in comparison.summaries
    ]
    if any(row[0] != row[1] or row[2] for row in special):
        page.table(["arm", "model", "its own settings"], special)


def _trunk(weights: str | None, records: Sequence[ArmRecord]) -> str:
    if weights is None:
        return "random weights"
    if weights != "pretrained":
        return Path(weights).name
    without = [record.arm.key for record in records if (record.trained or {}).get("trunk_had_weights") is False]
    if not without:
        return "timm's ImageNet weights"
    if len(without) == len(records):
        return "random weights, as timm's could not be had"
    return f"timm's ImageNet weights, but random ones in {', '.join(without)}, which could not have them: not equal"
