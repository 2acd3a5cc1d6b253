"""What a finished training amounts to: what stood out, by which numbers, and what to try.

Each rule looks at what was measured in this run and answers with one sentence, its numbers in it, or with nothing. A
rule that cannot be decided (too few validations, too few boxes) stays silent rather than guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detrove.data import DetectionDataset
from detrove.data.dataset import evenly_spaced
from detrove.evaluation import ErrorAnalysis, Metrics, analyse_errors, coco_results, findings
from detrove.evaluation.findings import change_at_the_end, luck
from detrove.evaluation.matching import BoxTable
from detrove.evaluation.queries import duplicate_rate
from detrove.evaluation.report import thresholds_of_categories
from detrove.inference import Detector
from detrove.training.config import TrainingConfig
from detrove.training.validation import Measured, Validation

NOTHING_LEARNED = 0.01
"""AP below which a detector has found nothing worth the name."""
BY_HEART = 0.2
"""AP on training pictures above that on others, from which on a detector knows its pictures by heart; half as much
where AP on others falls."""
VARIATION = {"crop": 0.5, "colour": 0.3, "mosaic": 0.5}
"""Random changes of the pictures that are worth a try against that, as settings of the recipe."""
FEW_BOXES, WEAK = 50, 0.5
"""A class with fewer boxes to learn from, and with an AP below this share of the mean, lacks boxes."""
SMALL_SIDE, MANY_SMALL, FEWEST_SMALL = 16.0, 0.1, 10
"""Pixels at the training size under which an object is small; the share and number of them that count."""
MANY_DUPLICATES, FEWEST_DUPLICATES = 0.15, 5
FEW_OBJECTS = 50
"""Validation objects below which AP is a matter of luck."""
MOST_PICTURES = 100
"""Training pictures that are looked at for comparison."""
MOST_CLASSES = 3
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a finished run.

    `lines` are those of metrics.jsonl, `metrics` and `errors` those of the best weights on the validation pictures, the
    latter at the thresholds. `sides` (G,) are the square roots of the areas of the true boxes of `errors`, in pixels at
    the training size, whose longer side is `size`. `boxes_of_class` counts training boxes by class name.
    `training_ap` is the AP of the same weights on training pictures, None where it was not measured. `alarm` is what
    the watch told last, or "". `variation` are the settings that would vary the pictures more than they were.
    """

    lines: Sequence[Mapping[str, Any]]
    metrics: Metrics
    errors: ErrorAnalysis
    sides: np.ndarray
    size: int
    boxes_of_class: Mapping[str, int]
    training_ap: float | None = None
    alarm: str = ""
    variation: Sequence[str] = ()

    @property
    def num_objects(self) -> int:
        """Objects that AP is measured on."""
        return int((~self.errors.truth.is_crowd).sum())

    @property
    def aps(self) -> list[float]:
        """AP at every validation."""
        return [line["ap"] or 0.0 for line in self.lines if "ap" in line]


def gather(
    config: TrainingConfig,
    lines: Sequence[Mapping[str, Any]],
    detector: Detector,
    best: Measured,
    validation: Validation,
    training_data: DetectionDataset,
    compare: bool = True,
) -> Evidence:
    """The evidence of a finished run: `best` is the validation of the weights that `detector` holds.

    To `compare`, it looks at as many training pictures as there are to validate on, `MOST_PICTURES` at most; not where
    they were cut into tiles, of which the AP would be another measure.
    """
    truth = validation.dataset.ground_truth()
    thresholds = None if detector.thresholds is None else detector.thresholds.tolist()
    by_category = thresholds_of_categories(detector.label_map, thresholds, truth)
    errors = analyse_errors(truth, coco_results(best.detections, truth), by_category)
    counts = np.bincount(training_data.records.labels, minlength=len(training_data.label_map)).tolist()
    known = None
    if compare and config.tiling is None:
        indices = evenly_spaced(len(training_data), min(len(validation.dataset), MOST_PICTURES))
        shown = replace(validation, dataset=training_data.subset(indices))
        known = shown.measure(detector.model).metrics.ap
    return Evidence(
        lines,
        best.metrics,
        errors,
        sides_at(errors.truth, validation),
        config.preprocessing.longer,
        dict(zip(training_data.label_map.names, counts, strict=True)),
        known,
        next((line["watch"]["alarm"] for line in reversed(lines) if "alarm" in line.get("watch", {})), ""),
        [f"--set {name}={value}" for name, value in VARIATION.items() if getattr(config.recipe, name) < value],
    )


def sides_at(truth: BoxTable, validation: Validation) -> np.ndarray:
    """(G,) the square root of each true box's area in pixels of its picture as the detector sees it whole."""
    sizes = validation.dataset.annotations.sizes
    scales = np.array([validation.preprocessing.target_size(h, w)[0] / h for w, h in sizes.tolist()])
    sides = truth.boxes_xyxy[:, 2:] - truth.boxes_xyxy[:, :2]
    return np.sqrt(np.clip(sides, 0, None).prod(axis=1)) * scales[truth.pictures]


def verdict(evidence: Evidence) -> list[str]:
    """What stood out, a sentence each, the gravest first; one sentence that says so where nothing did."""
    if evidence.metrics.ap is None:
        return ["The validation pictures have no object, so nothing could be judged: label some."]
    said = [sentence for rule in RULES if (sentence := rule(evidence)) is not None]
    if evidence.metrics.ap < NOTHING_LEARNED:
        return said[:1]
    return said or [_nothing(evidence)]


def learned_nothing(evidence: Evidence) -> str | None:
    """AP is as good as 0: collapsed, or far too short."""
    ap, last = evidence.metrics.ap or 0.0, evidence.lines[-1] if evidence.lines else {}
    if ap >= NOTHING_LEARNED:
        return None
    if evidence.alarm:
        return f"Nothing was learned (AP {ap:.3f}): {evidence.alarm}"
    return (
        f"Nothing was learned yet: AP {ap:.3f} after {last.get('step', 0):,} steps. Train longer, or start from "
        "weights (--weights, --backbone-weights): from random ones a detector of this family needs thousands of steps."
    )


def under_trained(evidence: Evidence) -> str | None:
    """AP was still rising at the end."""
    gained = change_at_the_end(evidence.aps)
    if gained is None or gained <= luck(evidence.num_objects):
        return None
    return (
        f"Under-trained: AP rose by {gained:.3f} over the last quarter of the validations, to {max(evidence.aps):.3f}, "
        "and had not levelled off. Try twice the --epochs or --minutes."
    )


def learned_by_heart(evidence: Evidence) -> str | None:
    """AP is far better on the pictures that were trained on, or better there and falling on others."""
    ap, known, fall = evidence.metrics.ap or 0.0, evidence.training_ap, fallen(evidence)
    if known is None or known - ap <= max(BY_HEART / (1 if fall is None else 2), luck(evidence.num_objects)):
        return None
    signs = [f"AP is {known:.3f} on training pictures and {ap:.3f} on others", *([] if fall is None else [fall])]
    tried = f"; then more variation ({', '.join(evidence.variation)})" if evidence.variation else ""
    return f"Over-fitted: {', and '.join(signs)}. More labelled pictures help most{tried}."


def fell_back(evidence: Evidence) -> str | None:
    """AP fell after its best, and nothing shows that training pictures are learned by heart."""
    fall = fallen(evidence)
    if fall is None or learned_by_heart(evidence) is not None:
        return None
    return f"{fall}: the weights of the best epoch are kept. A lower rate, or more steps, would make it steadier."


def fallen(evidence: Evidence) -> str | None:
    """How far AP was below its best over the last quarter of the validations, in words; None where it may be luck."""
    aps, change = evidence.aps, change_at_the_end(evidence.aps)
    if change is None or -change <= luck(evidence.num_objects):
        return None
    best = [line["epoch"] for line in evidence.lines if "ap" in line][aps.index(max(aps))]
    return f"AP fell from {max(aps):.3f} in epoch {best} to {aps[-1]:.3f}"


def few_boxes(evidence: Evidence) -> str | None:
    """A class is weak, and was shown seldom."""
    mean = evidence.metrics.ap or 0.0
    short = sorted(
        (evidence.boxes_of_class.get(name, 0), name, values["ap"])
        for name, values in evidence.metrics.per_class.items()
        if values["ap"] is not None and values["ap"] < WEAK * mean and mean - values["ap"] > luck(values["num_boxes"])
    )
    short = [entry for entry in short if entry[0] < FEW_BOXES]
    if not short:
        return None
    named = ", ".join(f"{name} ({boxes} to learn from, AP {ap:.3f})" for boxes, name, ap in short[:MOST_CLASSES])
    more = f" and {len(short) - MOST_CLASSES} more classes" if len(short) > MOST_CLASSES else ""
    return f"Too few boxes of {named}{more}, against AP {mean:.3f} of all: label more of them, or merge classes."


def too_small(evidence: Evidence) -> str | None:
    """Small objects are missed where others are found."""
    shares = shares_found(evidence)
    if shares is None:
        return findings.weak_small(evidence.metrics)
    of_small, of_others = shares
    if of_small >= WEAK * of_others:
        return None
    counted = ~evidence.errors.truth.is_crowd
    small = (counted & (evidence.sides < SMALL_SIDE)).sum() / counted.sum()
    larger = 2 * evidence.size
    left = (counted & (2 * evidence.sides < SMALL_SIDE)).sum() / counted.sum()
    return (
        f"Too small for the size: {small:.0%} of the objects are under {SMALL_SIDE:.0f} pixels "
        f"at --size {evidence.size}; {of_small:.0%} of those are found, of the others {of_others:.0%}. Try --size "
        f"{larger} (then {left:.0%} are), or --tiles for large pictures."
    )


def shares_found(evidence: Evidence) -> tuple[float, float] | None:
    """Which share of the small objects is found, and of the others; None where there are too few small ones to say."""
    truth, matching = evidence.errors.truth, evidence.errors.matching
    counted = ~truth.is_crowd
    small = counted & (evidence.sides < SMALL_SIDE)
    others = counted & ~small
    if small.sum() < FEWEST_SMALL or small.sum() < MANY_SMALL * counted.sum() or not others.any():
        return None
    found = np.zeros(len(truth), dtype=bool)
    found[matching.truth_of[matching.is_hit]] = True
    return float(found[small].mean()), float(found[others].mean())


def duplicates(evidence: Evidence) -> str | None:
    """Objects are shown more than once."""
    errors = evidence.errors
    rate, hits = duplicate_rate(errors.truth, errors.found), int(errors.matching.is_hit.sum())
    if rate is None or rate < MANY_DUPLICATES or rate * hits < FEWEST_DUPLICATES:
        return None
    return (
        f"Duplicates: {rate * hits:.0f} boxes repeat one of the {hits} objects that are found. Queries learn late to "
        "tell objects apart: train longer; a higher score threshold hides some."
    )


def loose_boxes(evidence: Evidence) -> str | None:
    """Objects are found, boxes are loose."""
    return findings.loose_boxes(evidence.metrics)


def wrong_names(evidence: Evidence) -> str | None:
    """Good boxes carry other classes' names."""
    return findings.wrong_names(evidence.errors)


def skipped_steps(evidence: Evidence) -> str | None:
    """Steps were left out because their numbers were lost."""
    skipped = sum(line.get("skipped", 0) for line in evidence.lines)
    if not skipped:
        return None
    steps = evidence.lines[-1]["step"]
    return f"{skipped} of {steps:,} steps were skipped: their loss was no number. Look at the pictures named for them."


def few_objects(evidence: Evidence) -> str | None:
    """AP is measured on hardly anything."""
    objects = evidence.num_objects
    if objects >= FEW_OBJECTS:
        return None
    return (
        f"Measured on {objects} objects only: differences of AP below {luck(objects):.2f} are luck, and were "
        "not judged. Validate on more pictures."
    )


def unmeasured_classes(evidence: Evidence) -> str | None:
    """Classes without a box to validate on."""
    return findings.unmeasured_classes(evidence.metrics)


RULES: tuple[Callable[[Evidence], str | None], ...] = (
    learned_nothing,
    under_trained,
    learned_by_heart,
    fell_back,
    too_small,
    few_boxes,
    duplicates,
    wrong_names,
    loose_boxes,
    skipped_steps,
    few_objects,
    unmeasured_classes,
)


def _nothing(evidence: Evidence) -> str:
    """What was looked at in vain; nothing of what could not be judged."""
    ap = evidence.metrics.ap or 0.0
    too_few = change_at_the_end(evidence.aps) is None
    known_aps = [values["ap"] for values in evidence.metrics.per_class.values() if values["ap"] is not None]
    weak = [one for one in known_aps if one < WEAK * ap]
    rate = duplicate_rate(evidence.errors.truth, evidence.errors.found)
    sound = [
        "too few validations for a curve" if too_few else "AP was flat at the end, where the rate is low too",
        "no class is far below the others" if len(known_aps) > 1 and not weak else "",
        "small objects are found as others are" if shares_found(evidence) else "",
        "hardly any object is shown twice" if rate is not None and rate < MANY_DUPLICATES else "",
    ]
    known = "" if evidence.training_ap is None else f", {evidence.training_ap:.3f} on training pictures"
    return (
        f"Nothing stands out: AP {ap:.3f}{known}; {', '.join(filter(None, sound))}. What is left to try: more "
        "pictures, a longer training, a larger --model."
    )
