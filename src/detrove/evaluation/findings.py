"""What the report says in words: what to look for in each figure, and what these numbers mean for the reader."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detrove.evaluation.errors import ErrorAnalysis
from detrove.evaluation.metrics import Metrics

KIND_MEANINGS = {
    "hits": "right class, IoU at least 0.5",
    "wrong class": "a good box around an object, with another class's name",
    "duplicates": "one more box on an object that is already found",
    "badly placed": "right class, but IoU only 0.1 to 0.5",
    "around nothing": "no object of that class there",
    "missed objects": "objects that no detection explains",
}

FEWEST_VALIDATIONS = 4
"""Below, a curve cannot be judged."""
LEAST_CHANGE = 0.02
"""Of AP over the last quarter of the validations, or since the best one, that is worth a word."""

ABOUT_WORST = (
    "The pictures with the lowest F1. Look for what they have in common: small or hidden objects, a kind of scene that "
    "training pictures lack, or objects that the detector saw and nobody labelled."
)
ABOUT_BEST = "The pictures with the highest F1, those with most objects first. Here the detector can be trusted."
ABOUT_TERMS = (
    "The parts of the loss, unweighted. Each should fall; a class term that falls while the boxes' terms stand still "
    "means that the detector knows what is there before it knows where."
)
ABOUT_QUERIES = (
    "Measured on a few validation pictures, the same ones each time. Each query answers for one object or for none; a "
    "detector learns when queries begin to differ and to keep to their objects."
)
ABOUT_SPREAD = (
    "From query to query of a picture: boxes in parts of the picture, class answers as logarithms. Near 0 all queries "
    "say the same, and nothing can be found: that is a collapse, mostly of too high a rate."
)
ABOUT_CHANGES = (
    "The matching gives each object the query that fits best. Where another one fits at every look, each query is "
    "pulled from object to object; a curve that falls means that they have found their places. Where queries are "
    "ranked proposals (DINO, detrove-nano), they change places more often."
)
ABOUT_FOUND = (
    "Of each picture as many of the best detections as it has objects: the share of objects among them, and how many "
    "of them repeat a found one."
)
ABOUT_RATE = "The step size. AP often rises when it drops, because the last small steps let the boxes settle."
ABOUT_PRECISION_RECALL = (
    "Lower the score threshold and a detector finds more objects (recall, to the right) but is wrong more often "
    "(precision, downwards). The area under a curve is its AP."
)
ABOUT_STRICTNESS = (
    "The stricter the overlap asked for, the lower the curve. Curves far apart mean that objects are found but their "
    "boxes are loose; where a curve drops to the ground, the rest of the objects is never found."
)
ABOUT_CLASS_CURVES = (
    "A curve that starts low has false alarms with high scores; one that ends early belongs to a class of which many "
    "objects are never found."
)
ABOUT_KINDS = (
    "At the score thresholds of the table below, and IoU 0.5. Each detection and each missed object is counted once."
)

_LOW_SHARE = 0.6
"""A size of objects is called weak where its AP is below this share of that of large objects."""
_MANY = 0.3
"""Of all wrong boxes: what is told of."""


def verdict(metrics: Metrics, errors: ErrorAnalysis) -> str:
    """One sentence for the top of the page."""
    if metrics.ap is None:
        return "There is no labelled object in these pictures, so nothing could be measured."
    kinds = errors.kinds
    total = int((~errors.truth.is_crowd).sum())
    hits = int(errors.matching.is_hit.sum())
    wrong = int(errors.matching.is_false_alarm.sum())
    shown = hits + wrong
    right = f"{hits / shown:.0%} of the boxes it shows are right" if shown else "it shows no box at all"
    extra = f", {kinds['duplicates']} of the wrong ones are duplicates" if kinds["duplicates"] else ""
    return (
        f"At its score thresholds the detector finds {hits:,} of {total:,} objects ({hits / max(total, 1):.0%}); "
        f"{right}{extra}. AP is {metrics.ap:.3f}, AP50 {metrics.ap50:.3f}."
    )


def advice(metrics: Metrics, errors: ErrorAnalysis) -> list[str]:
    """What stands out, and what usually helps; at most one sentence for each kind of trouble."""
    if metrics.ap is None:
        return []
    said = (
        weak_small(metrics),
        loose_boxes(metrics),
        wrong_names(errors),
        shown_twice(errors),
        unmeasured_classes(metrics),
    )
    return [sentence for sentence in said if sentence is not None]


def weak_small(metrics: Metrics) -> str | None:
    """Small objects far behind large ones."""
    small, large = metrics.ap_small, metrics.ap_large
    if small is None or large is None or small >= _LOW_SHARE * large:
        return None
    return (
        f"Small objects are the weak side: AP {small:.3f} against {large:.3f} for large ones. A larger --size "
        "usually helps most."
    )


def loose_boxes(metrics: Metrics) -> str | None:
    """Objects found with boxes that fit badly."""
    if metrics.ap75 is None or metrics.ap50 is None or metrics.ap50 <= 0.1 or metrics.ap75 >= 0.5 * metrics.ap50:
        return None
    return (
        f"Boxes are loose: AP falls from {metrics.ap50:.3f} at half an overlap to {metrics.ap75:.3f} at IoU 0.75. "
        "Longer training tightens them; so does checking how consistently the objects were labelled."
    )


def wrong_names(errors: ErrorAnalysis) -> str | None:
    """Good boxes around objects of another class."""
    if errors.kinds["wrong class"] <= _MANY * _mistakes(errors):
        return None
    return "Many good boxes carry the wrong name: see in the confusion matrix which classes look alike."


def shown_twice(errors: ErrorAnalysis) -> str | None:
    """Objects with several boxes."""
    if errors.kinds["duplicates"] <= _MANY * _mistakes(errors):
        return None
    return "Many objects are shown more than once: longer training lets the queries tell them apart."


def _mistakes(errors: ErrorAnalysis) -> int:
    return sum(count for kind, count in errors.kinds.items() if kind not in ("hits", "missed objects"))


def unmeasured_classes(metrics: Metrics) -> str | None:
    """Classes without a box in these pictures."""
    unmeasured = [name for name, values in metrics.per_class.items() if not values["num_boxes"]]
    if not unmeasured:
        return None
    names = ", ".join(unmeasured[:5]) + (", …" if len(unmeasured) > 5 else "")
    return f"Not measured, because these pictures have no box of them: {names} ({len(unmeasured)} in all)."


def about_loss(losses: Sequence[float | None]) -> str:
    """The caption of the loss curve."""
    known = [loss for loss in losses if loss is not None]
    text = "Look for a steep fall that flattens out; jumps upwards mean that the learning rate is too high."
    if len(known) < 2:
        return text
    return f"{text} Here it went from {known[0]:.2f} to {known[-1]:.2f}."


def luck(num_objects: int) -> float:
    """The change of AP that a measure on so many objects cannot tell from chance: the largest standard error of a share
    of them, at least `LEAST_CHANGE`."""
    return max(LEAST_CHANGE, 0.5 / math.sqrt(max(1, num_objects)))


def change_at_the_end(values: Sequence[float]) -> float | None:
    """The best of the last quarter of the validations less the best before it; None where there are too few."""
    if len(values) < FEWEST_VALIDATIONS:
        return None
    quarter = max(1, len(values) // 4)
    return max(values[-quarter:]) - max(values[:-quarter])


def about_progress(values: Sequence[float], num_objects: int) -> str:
    """The caption of the validation curves: of AP on so many objects, and what of its changes is more than luck."""
    text = "Measured on pictures that training never saw."
    change, least = change_at_the_end(values), luck(num_objects)
    if change is None:
        return f"{text} The last AP is {values[-1]:.3f}."
    if -change > least:
        fell = f"AP was best at {max(values):.3f} and fell to {values[-1]:.3f}."
        return f"{text} {fell} The best weights are the ones that were kept."
    if change > least:
        return f"{text} AP rose by {change:.3f} over the last quarter and had not levelled off: train longer."
    return f"{text} AP was flat over the last quarter, where the rate is low too: {values[-1]:.3f} at the end."


def about_classes(metrics: Metrics) -> str:
    """The caption of the table of classes."""
    text = (
        "Classes with the most boxes first. AP counts every detection; precision and recall hold at the threshold, "
        "which is the score from which on a detection is shown."
    )
    measured = {name: values["ap"] for name, values in metrics.per_class.items() if values["ap"] is not None}
    if len(measured) < 2:
        return text
    best, worst = max(measured, key=lambda name: measured[name]), min(measured, key=lambda name: measured[name])
    few = metrics.per_class[worst]["num_boxes"]
    luck = f" With only {few} boxes that number is mostly luck." if few < 20 else ""
    return f"{text} Best is {best} ({measured[best]:.3f}), worst {worst} ({measured[worst]:.3f}).{luck}"


def about_confusion(errors: ErrorAnalysis) -> str:
    """The caption of the confusion matrix."""
    text = (
        "A row is what an object is, a column what it was called; a fuller colour is a larger share. Numbers on the "
        "diagonal are right. The last column counts objects that were missed, the last row boxes around nothing."
    )
    between = errors.confusion[:-1, :-1].copy()
    between[range(len(between)), range(len(between))] = 0
    if not between.any():
        return f"{text} No class was taken for another."
    row, column = divmod(int(between.argmax()), len(between))
    return (
        f"{text} Most often confused: {errors.names[row]} called {errors.names[column]} "
        f"({between[row, column]} time{'' if between[row, column] == 1 else 's'})."
    )
