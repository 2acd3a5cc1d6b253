"""What a data set asks of a recipe: a few measured rules, each told with its reason before a training.

Only detrove's own presets are fitted (`Preset.advised`): a published detector is trained as its paper trained it, but
for the length where it starts from weights that were trained already (`TrainingConfig.weights`). What the user decided
stays (`TrainingConfig.given`), and `--set advise=false` leaves everything as the preset has it. Each rule names what it
was measured on; the figures are in `benchmarks/results/`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrove.data import DetectionDataset
from detrove.models import catalogue
from detrove.structures import Preprocessing
from detrove.training.config import DEFAULT_MODEL, SIZE, TrainingConfig


@dataclass(frozen=True)
class DataFacts:
    """What the rules know of the pictures to train on.

    `most_boxes` of one picture. A box's side is √(width · height): half of the boxes are smaller than `median_side`
    pixels of the pictures as they are. As shares of the longer side of the picture that it is in, half are smaller than
    `median_share`, a tenth smaller than `small_share`, whatever sizes the pictures have. All 0 without boxes. `longer`
    is the median of the pictures' longer sides.
    """

    num_pictures: int
    num_boxes: int
    most_boxes: int
    median_side: float
    median_share: float
    small_share: float
    longer: float

    def describe(self, preprocessing: Preprocessing) -> str:
        """One line."""
        if not self.num_boxes:
            return f"{self.num_pictures:,} pictures without a box"
        each, seen = self.num_boxes / self.num_pictures, self.median_share * preprocessing.longer
        return (
            f"{self.num_pictures:,} pictures, {each:.1f} boxes each ({self.most_boxes} at most), median box "
            f"{self.median_side:.0f} px, {seen:.0f} px at {preprocessing.longer}"
        )


@dataclass(frozen=True)
class Advice:
    """One setting, as `--set` names it, the value that a rule would give it, and why in words."""

    key: str
    value: Any
    reason: str

    def describe(self) -> str:
        """One line."""
        return f"{self.key}={self.value}: {self.reason}"


def facts_of(data: DetectionDataset) -> DataFacts:
    """The facts of the pictures to train on, read from their annotations alone."""
    annotations = data.annotations
    longer = annotations.sizes.max(axis=1) if len(annotations) else np.zeros(1)
    sides = np.sqrt(np.clip(annotations.xywh[:, 2:], 0, None).prod(axis=1))
    counted = (sides > 0) & ~annotations.is_crowd
    sides, shares = sides[counted], (sides / longer[annotations.pictures_of_boxes()])[counted]
    return DataFacts(
        num_pictures=len(annotations),
        num_boxes=len(sides),
        most_boxes=int(np.diff(annotations.starts).max(initial=0)),
        median_side=_quantile(sides, 0.5),
        median_share=_quantile(shares, 0.5),
        small_share=_quantile(shares, 0.1),
        longer=float(np.median(longer)),
    )


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else 0.0


FEWEST_PIXELS = 14
"""A side, as the model sees it, that nine of ten boxes should have: circuit boards, a tenth of whose boxes are under 14
pixels at 320, were found no worse there than at 512 (23 pixels) in the same few minutes; fewer were not measured."""
SIZES = (320, 384, 448, 512, 576, 640)
"""What a picture's size is raised to, and no further: a step's time goes with its square."""
PICTURES_SHOWN = 12_000
"""In a training whose length nobody named: 60 times 205 pictures."""
FEWEST_EPOCHS, MOST_EPOCHS = 12, 300
FEWEST_VIEWS = 1_000
"""Of pictures in a training. 1,750 taught AP 0.35 of circuit boards, 1,800 AP 0.57 of blood cells; fewer were not
measured, and the curve is steep there."""
SPARE_QUERIES = 2
"""Queries for each object of the fullest picture."""
SPARED_QUERIES = 300
"""Queries from which on none are spare: as many as the fullest picture has objects."""


def wants_advice(config: TrainingConfig) -> bool:
    """Whether the config is one to fit: of a preset of ours or a fine-tuning, not fitted yet, and nobody said no."""
    return config.advise and (_is_ours(config) or config.weights is not None)


def _is_ours(config: TrainingConfig) -> bool:
    return catalogue.preset(config.model).advised


def advise(facts: DataFacts, config: TrainingConfig) -> list[Advice]:
    """What the rules would have, also where the config has it already; nothing for a config that wants none."""
    if not wants_advice(config) or not facts.num_boxes:
        return []
    rules = (_size, _queries, _batch, _epochs) if _is_ours(config) else (_epochs,)
    return [advice for rule in rules for advice in rule(facts, config) if advice.key not in config.given]


def advised(config: TrainingConfig, advice: Iterable[Advice]) -> TrainingConfig:
    """The config with that advice taken; what changes anything is noted in it."""
    changes = {each.key: each.value for each in advice if _laid_over(config, {each.key: each.value}) != config}
    return taken(config, changes)


def taken(config: TrainingConfig, advice: Mapping[str, Any]) -> TrainingConfig:
    """The config with that advice, by key, taken and noted in it; what the user decided stays."""
    left = {key: value for key, value in advice.items() if key not in config.given}
    return dataclasses.replace(_laid_over(config, left), advise=False, advice=dict(advice))


def length_here(config: TrainingConfig, num_pictures: int, picture_seconds: float) -> str:
    """What the training's length comes to on this machine, where a picture takes so long, in one line.

    The time is that of steps alone: decoding shares the cores with them, validations come on top.
    """
    each = f"{picture_seconds:.2f} s a picture" if picture_seconds >= 0.01 else f"{1 / picture_seconds:,.0f} pictures/s"
    if config.minutes is None:
        assert config.epochs is not None
        minutes = config.epochs * num_pictures * picture_seconds / 60
        return f"about {each} here: {config.epochs} epochs are at least {two_digits(minutes)} min, validations apart"
    views = 60 * config.minutes / picture_seconds
    told = f"about {each} here: {config.minutes:g} min show at most {two_digits(views)} pictures, "
    told += f"each {two_digits(views / num_pictures)} times"
    if views >= FEWEST_VIEWS or not _is_ours(config):
        return told
    smaller = "" if config.model == DEFAULT_MODEL else f", or --model {DEFAULT_MODEL}"
    minutes = two_digits(config.minutes * FEWEST_VIEWS / views)
    return f"{told}; fewer than {FEWEST_VIEWS:,} teach little: give it {minutes} min{smaller}"


def two_digits(number: float) -> str:
    """Rounded as an estimate is told."""
    rounded = float(f"{number:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _laid_over(config: TrainingConfig, advice: Mapping[str, Any]) -> TrainingConfig:
    fitted = config.with_settings(advice)
    if config.epochs is None or "epochs" not in advice:
        return fitted
    return dataclasses.replace(fitted, epochs=advice["epochs"])


def _size(facts: DataFacts, config: TrainingConfig) -> Iterator[Advice]:
    """Small objects need pixels, as far as the pictures have them; where a step has no room for these, tiles."""
    preprocessing = config.preprocessing
    if preprocessing.shorter is not None:
        return
    larger = [size for size in SIZES if preprocessing.longer < size <= facts.longer]
    sizes = [preprocessing.longer, *larger]
    size = next((size for size in sizes if size * facts.small_share >= FEWEST_PIXELS), sizes[-1])
    seen = size * facts.small_share
    told = f"a tenth of the boxes would be under {preprocessing.longer * facts.small_share:.0f} px at {sizes[0]}"
    told += f", under {seen:.0f} px at {size}" if size != sizes[0] else ""
    judged = "enough" if seen >= FEWEST_PIXELS else "wanted"
    tiles = judged == "wanted" and config.tiling is None and facts.longer >= 2 * size
    told += f"; {FEWEST_PIXELS} are {judged}" + (f": --tiles {SIZES[-1]} would show them as they are" if tiles else "")
    yield Advice(SIZE, size, told)


def _queries(facts: DataFacts, config: TrainingConfig) -> Iterator[Advice]:
    """Room for the fullest picture. Fewer than usual gain nothing: with 50 instead of 100, blood cells were found worse
    (AP 0.429 for 0.438) in as many epochs, and hardly faster."""
    usual, answers = config.model_config["num_queries"], config.model_config["num_detections"]
    room = max(min(SPARE_QUERIES * facts.most_boxes, SPARED_QUERIES), facts.most_boxes)
    wanted = 10 * math.ceil(room / 10)
    reason = f"{facts.most_boxes} boxes in the fullest picture"
    yield Advice("model.num_queries", max(usual, wanted), reason)
    if wanted > answers:
        yield Advice("model.num_detections", wanted, reason)


def _batch(facts: DataFacts, config: TrainingConfig) -> Iterator[Advice]:  # noqa: ARG001
    """The recipe's, with its rates: they go together."""
    recipe = config.recipe
    rates = f"rates {recipe.learning_rate:g}, of the trunk {recipe.backbone_learning_rate:g}"
    yield Advice("batch_size", recipe.batch_size, f"what the recipe's {rates}, are for")


def _epochs(facts: DataFacts, config: TrainingConfig) -> Iterator[Advice]:
    if config.epochs is None:
        return
    most = MOST_EPOCHS if _is_ours(config) else config.recipe.epochs
    wanted = round(PICTURES_SHOWN / facts.num_pictures)
    epochs = min(max(wanted, FEWEST_EPOCHS), most)
    told = f"{facts.num_pictures:,} pictures, about {two_digits(epochs * facts.num_pictures)} views in all"
    told += "" if epochs == wanted else f"; {epochs} is the {'most' if epochs < wanted else 'least'}"
    told += "" if _is_ours(config) else f"; from nothing its paper took {most} epochs"
    yield Advice("epochs", epochs, told)
