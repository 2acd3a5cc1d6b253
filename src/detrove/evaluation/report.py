"""The report of a run or of an evaluation: one HTML page that says how good the detector is, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrove.checkpoints.files import write_atomically
from detrove.evaluation import findings
from detrove.evaluation.classes import categories_of_slots, coco_results
from detrove.evaluation.errors import ErrorAnalysis, analyse_errors
from detrove.evaluation.examples import LEGEND, best_pictures, draw_example, worst_pictures
from detrove.evaluation.metrics import METRIC_NAMES, RECALL_LEVELS, Accumulated, Metrics, accumulate, numbering
from detrove.evaluation.thresholds import DEFAULT_THRESHOLD
from detrove.reporting import Bar, Cell, Page, Series, line_chart
from detrove.structures import Detections, LabelMap

CURVES = 6
"""Classes that get a precision–recall curve of their own: those with the most boxes."""
CONFUSED = 20
"""Classes in the confusion matrix: those with the most mistakes."""

NOT_A_TERM = (
    "epoch",
    "step",
    "minutes",
    "pictures",
    "learning_rate",
    "skipped",
    "watch",
    "loss",
    *METRIC_NAMES,
    "per_class",
)
"""What a line of the history holds beside the terms of the loss."""

MEANINGS = {
    "ap": "average precision over IoU 0.50 to 0.95: the number that papers compare",
    "ap50": "the same where half an overlap is enough",
    "ap75": "the same where boxes must fit closely",
    "ap_small": "AP of objects below 32×32 pixels",
    "ap_medium": "AP of objects from 32×32 to 96×96 pixels",
    "ap_large": "AP of objects above 96×96 pixels",
    "ar_1": "share of objects found with one detection a picture and class",
    "ar_10": "the same with ten",
    "ar_100": "the same with a hundred: what could be found at all",
    "ar_small": "recall of objects below 32×32 pixels",
    "ar_medium": "recall of objects from 32×32 to 96×96 pixels",
    "ar_large": "recall of objects above 96×96 pixels",
}


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Metrics,
    ground_truth: Mapping[str, Any],
    detections: Mapping[Any, Detections],
    dataset: Any,
    label_map: LabelMap,
    thresholds: Sequence[float] | None = None,
    errors: ErrorAnalysis | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    stood_out: Sequence[str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the report to `path`, whole or not at all.

    `detections` are all detections of `detect`, by image id; `ground_truth` and `dataset` those they were made on;
    `label_map` and `thresholds` (one per class slot, any sequence; None means 0.5 everywhere) the detector's; `errors`
    their analysis where it has been made. `history` are the lines of `metrics.jsonl`, none for an evaluation without a
    training; `stood_out` is the verdict on the run, a sentence each, None for advice from these metrics alone; `facts`
    is what the reader should know about the run, in words.
    """
    results = coco_results(detections, ground_truth)
    by_category = thresholds_of_categories(label_map, thresholds, ground_truth)
    errors = analyse_errors(ground_truth, results, by_category) if errors is None else errors
    page = Page(title, findings.verdict(metrics, errors))
    page.numbers({_short(name): metrics[name] for name in METRIC_NAMES[:6]})
    page.bullets(findings.advice(metrics, errors) if stood_out is None else stood_out)
    _add_pictures(page, errors, ground_truth, dataset)
    if history:
        _add_learning_curves(page, history, int((~errors.truth.is_crowd).sum()))
    _add_precision_recall(page, accumulate(ground_truth, results))
    _add_errors(page, errors)
    _add_classes(page, metrics, errors, by_category)
    rows: list[list[Cell]] = [[_short(name), metrics[name], MEANINGS[name]] for name in METRIC_NAMES]
    page.section("The twelve COCO numbers", "They count every detection, whatever its score. A dash: no such object.")
    page.table(["", "value", "meaning"], rows)
    if facts:
        page.section("About this report")
        page.table(["", ""], list(facts.items()))
    write_atomically(path, page.to_html().encode(errors="backslashreplace"))


def thresholds_of_categories(
    label_map: LabelMap, thresholds: Sequence[float] | None, ground_truth: Mapping[str, Any]
) -> list[float]:
    """The detector's thresholds in the order of the data set's category ids; 0.5 for classes it does not know."""
    positions = numbering(ground_truth)[1]
    chosen = [DEFAULT_THRESHOLD] * len(positions)
    if thresholds is not None:
        joined = categories_of_slots(label_map, ground_truth["categories"])
        for category_id, threshold in zip(joined, thresholds, strict=True):
            if category_id is not None:
                chosen[positions[category_id]] = float(threshold)
    return chosen


def _short(name: str) -> str:
    """ "AP50" for ap50, "AP small" for ap_small."""
    return name[:2].upper() + name[2:].replace("_", " ")


def _add_pictures(page: Page, errors: ErrorAnalysis, ground_truth: Mapping[str, Any], dataset: Any) -> None:
    scores = errors.pictures(len(ground_truth["images"]))
    index_of = {record.image_id: index for index, record in enumerate(dataset.records)}
    for heading, text, chosen in (
        ("Where it does worst", findings.ABOUT_WORST, worst_pictures(scores)),
        ("Where it does best", findings.ABOUT_BEST, best_pictures(scores)),
    ):
        if not chosen:
            continue
        page.section(heading, text)
        page.legend(LEGEND)
        examples = []
        for score in chosen:
            image_id = ground_truth["images"][score.position]["id"]
            picture = dataset[index_of[image_id]].image
            name = ground_truth["images"][score.position].get("file_name", image_id)
            caption = (
                f"{name}: {score.hits} of {score.hits + score.missed} objects found, {score.false_alarms} false "
                f"alarm{'' if score.false_alarms == 1 else 's'}, F1 {score.f1:.2f}"
            )
            examples.append((draw_example(picture, score.position, errors), caption))
        page.pictures(examples)


def _add_learning_curves(page: Page, history: Sequence[Mapping[str, Any]], num_objects: int) -> None:
    page.section("How it learned")
    epochs = [line["epoch"] for line in history]
    validated = [line for line in history if line.get("ap") is not None]
    losses = [line.get("loss") for line in history]
    charts = [
        (
            line_chart([Series("loss", epochs, losses)], "Loss on the training pictures", "epoch", "loss"),
            findings.about_loss(losses),
        )
    ]
    terms = [name for name in history[-1] if name not in NOT_A_TERM]
    if terms:
        series = [Series(name.replace("_", " "), epochs, [line.get(name) for line in history]) for name in terms]
        charts.append(
            (
                line_chart(series, "Loss terms, last layer", "epoch", "loss", logarithmic=True),
                findings.ABOUT_TERMS,
            )
        )
    if validated:
        series = [
            Series(
                _short(name), [line["epoch"] for line in validated], [line[name] for line in validated], markers=True
            )
            for name in ("ap", "ap50", "ap75")
        ]
        chart = line_chart(series, "On the validation pictures", "epoch", "average precision", (0, 1))
        charts.append((chart, findings.about_progress([float(line["ap"]) for line in validated], num_objects)))
    if any("learning_rate" in line for line in history):
        rates = Series("learning rate", epochs, [line.get("learning_rate") for line in history])
        charts.append(
            (line_chart([rates], "Learning rate", "epoch", "rate"), findings.ABOUT_RATE),
        )
    page.charts(charts)
    _add_queries(page, history)


def _add_queries(page: Page, history: Sequence[Mapping[str, Any]]) -> None:
    """What the watch saw at each validation."""
    watched = [line for line in history if line.get("watch")]
    if len(watched) < 2:
        return
    epochs = [line["epoch"] for line in watched]

    def chart(title: str, y_label: str, names: Mapping[str, str], **options: Any) -> str:
        series = [
            Series(label, epochs, [line["watch"].get(name) for line in watched], markers=True)
            for name, label in names.items()
        ]
        return line_chart(series, title, "epoch", y_label, **options)

    page.section("What its queries do", findings.ABOUT_QUERIES)
    differ = {"class_spread": "classes", "box_spread": "boxes"}
    change = {"changed_since_last": "since the last look", "changed_between_layers": "from layer to layer"}
    share = {"found": "found", "duplicates": "duplicates for each"}
    page.charts(
        [
            (chart("How far queries differ", "spread", differ), findings.ABOUT_SPREAD),
            (chart("Objects that change their query", "share", change, y_limits=(0, 1.02)), findings.ABOUT_CHANGES),
            (chart("Objects found, and found twice", "share", share), findings.ABOUT_FOUND),
        ]
    )


def _add_classes(page: Page, metrics: Metrics, errors: ErrorAnalysis, thresholds: Sequence[float]) -> None:
    page.section("Class by class")
    rows: list[list[Cell]] = []
    for (name, values), threshold, (precision, recall) in zip(
        metrics.per_class.items(), thresholds, errors.precision_and_recall(), strict=True
    ):
        ap = values["ap"]
        cell = None if ap is None else Bar(f"{ap:.3f}", ap)
        rows.append([name, values["num_boxes"], cell, values["ap50"], float(threshold), precision, recall])
    header = ["class", "boxes", "AP", "AP50", "threshold", "precision", "recall"]
    page.table(header, sorted(rows, key=_by_number_of_boxes), findings.about_classes(metrics))


def _by_number_of_boxes(row: Sequence[Cell]) -> tuple[float, str]:
    name, num_boxes = row[:2]
    assert isinstance(num_boxes, int)
    return -num_boxes, str(name)


def _add_precision_recall(page: Page, accumulated: Accumulated) -> None:
    overall = [(iou, accumulated.precision_curve(iou=iou)) for iou in (0.5, 0.75, 0.9)]
    if overall[0][1] is None:
        return
    page.section("Precision and recall", findings.ABOUT_PRECISION_RECALL)
    charts = [
        (
            line_chart(
                [Series(f"IoU {iou:.2f}", RECALL_LEVELS.tolist(), c.tolist()) for iou, c in overall if c is not None],
                "All classes",
                "recall",
                "precision",
                (0, 1.02),
            ),
            findings.ABOUT_STRICTNESS,
        )
    ]
    most = sorted(range(len(accumulated.names)), key=lambda index: -accumulated.num_boxes[index])[:CURVES]
    curves = [(accumulated.names[index], accumulated.precision_curve(index)) for index in most]
    series = [Series(name, RECALL_LEVELS.tolist(), curve.tolist()) for name, curve in curves if curve is not None]
    if len(accumulated.names) > 1:
        which = "Each class" if len(accumulated.names) <= CURVES else f"The {len(series)} classes with most boxes"
        chart = line_chart(series, f"{which}, IoU 0.5", "recall", "precision", (0, 1.02))
        charts.append((chart, findings.ABOUT_CLASS_CURVES))
    page.charts(charts)


def _add_errors(page: Page, errors: ErrorAnalysis) -> None:
    page.section("Kinds of mistakes", findings.ABOUT_KINDS)
    largest = max(max(errors.kinds.values()), 1)
    page.table(
        ["kind", "count", "meaning"],
        [
            [kind, Bar(f"{count:,}", count / largest), findings.KIND_MEANINGS[kind]]
            for kind, count in errors.kinds.items()
        ],
    )
    counts = errors.confusion
    num_classes = len(errors.names)
    mistakes = (counts.sum(0) + counts.sum(1))[:num_classes] - 2 * counts.diagonal()[:num_classes]
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:CONFUSED])
    shown_and_none = np.append(shown, num_classes)
    names = [errors.names[index] for index in shown]
    caption = findings.about_confusion(errors)
    if num_classes > CONFUSED:
        caption += f" Shown are the {CONFUSED} of {num_classes} classes with the most mistakes."
    page.matrix(
        [*names, "nothing there"],
        [*names, "missed"],
        counts[np.ix_(shown_and_none, shown_and_none)],
        "true ↓ detected →",
        caption,
    )
