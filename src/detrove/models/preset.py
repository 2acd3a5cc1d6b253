"""What a name in the catalogue stands for: a detector's config, its picture size, and the recipe it is trained by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detrove.structures import Preprocessing


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained unless the user says otherwise: plain values, turned into objects by `training/`.

    Rates are for AdamW at `batch_size` pictures a step. `slow_parameters` are fragments of parameter names whose rate
    is multiplied by `slow_factor` (Deformable DETR: `reference_points`, `sampling_offsets`). `schedule` is "step" (×0.1
    at the fraction `drop_at` of the training) or "cosine" (to `final_rate` of the rate); the rate rises linearly over
    the first `warmup` steps. `trunk_warmup` is the share of the training in which a trunk without weights first learns
    to tell crops of the objects apart. `epochs` is the length where the user names neither epochs nor minutes.
    `ema_decay` of 0 keeps no moving average of the weights. With `side_by_side` the threads of a CPU share a step's
    pictures instead of each operation, where the detector allows it (`training/side_by_side.py`). The rest is
    augmentation: probabilities of a horizontal and a vertical flip and of a random crop, the range of the random size
    relative to the preset's size, the strength of colour jitter in [0, 1], and what is off unless somebody asks for it
    (see `detrove.data.Augmentation`).
    """

    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    decay_norms_and_biases: bool = True
    clip_norm: float = 0.1
    batch_size: int = 16
    slow_parameters: tuple[str, ...] = ()
    slow_factor: float = 0.1
    schedule: str = "step"
    drop_at: float = 0.8
    final_rate: float = 0.0
    warmup: int = 0
    trunk_warmup: float = 0.0
    epochs: int = 50
    ema_decay: float = 0.0
    side_by_side: bool = False
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    crop: float = 0.5
    scale: tuple[float, float] = (0.6, 1.0)
    colour: float = 0.0
    blur: float = 0.0
    keep_small: bool = False
    scale_per_batch: bool = False
    mosaic: float = 0.0
    copy_paste: float = 0.0
    mix_until: float = 0.8


@dataclass(frozen=True)
class Preset:
    """One named detector: its `config` (a frozen dataclass of the model's file), `preprocessing` and `recipe`.

    `published` quotes the paper's average precision on COCO val and where it stands; None where nobody published any.
    `advised` says that training fits the recipe to the data set first: a published one is left as published.
    """

    config: Any
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(longer=1333, shorter=800))
    recipe: Recipe = field(default_factory=Recipe)
    published: str | None = None
    advised: bool = False


def count_queries(config: Mapping[str, Any]) -> int | None:
    """How many objects a detector of these config values can answer with; each pattern asks at every anchor."""
    queries = config.get("num_queries")
    return None if queries is None else queries * max(1, config.get("num_patterns", 0))
