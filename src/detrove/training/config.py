"""Everything a training run depends on, as plain values: what `config.yaml` holds."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detrove.data.cache import parse_bytes
from detrove.data.tiles import EMPTY_SHARE
from detrove.errors import InputError, nearest
from detrove.models import catalogue
from detrove.models.preset import Preset, Recipe
from detrove.structures import Preprocessing
from detrove.tiling import Tiling
from detrove.training.schedule import SCHEDULES

MIXED_PRECISION = ("no", "bf16", "fp16")
ON_NONFINITE = ("stop", "skip")
RUN_SETTINGS = (
    "train_split",
    "val_split",
    "val_fraction",
    "workers",
    "rectangular",
    "cache",
    "mixed_precision",
    "recompute",
    "accumulate",
    "fit_memory",
    "compile",
    "empty_tiles",
    "patience",
    "on_nonfinite",
    "preflight",
    "advise",
)
DEFAULT_MODEL = "detrove-nano"
AUTO = "auto"
"""The batch size that lets memory decide how many pictures are computed at once."""
MODEL_PREFIX = "model."
PREPROCESSING_PREFIX = "preprocessing."
SIZE = PREPROCESSING_PREFIX + "longer"
"""The setting that `--size` stands for."""
FROZEN = "backbone_frozen"
"""A value of the model's config that depends on whether the trunk gets weights, unless the user decides."""


@dataclass(frozen=True)
class TrainingConfig:
    """A training run, resolved: the same values give the same run again, whatever the presets become later.

    `data` and `output` are paths; `data_format` settles a folder that holds several formats; `model` names the preset
    and `model_config` holds every value of its config that neither the data set decides (the number of classes) nor the
    trunk's weights (whether it is frozen). The length is
    `epochs` or `minutes` of training time, the other is None. Where `val_split` is None, `val_fraction` of the training
    pictures are held out to validate on. `workers` are processes that load pictures; `rectangular` batches hold
    pictures of similar shape; `cache` is how much of the decoded pictures to keep, as "2GB"; `mixed_precision` is
    "no", "bf16" or "fp16" (its losses are scaled); with `recompute` the transformer's layers keep nothing for backward
    and are computed twice, which takes less memory and more time; `accumulate` computes a step's pictures in so many
    parts, one after the other, which takes less memory too, and with `fit_memory` is found by measuring; `compile` lets
    torch.compile make the model's code, which takes minutes at first. `backbone_weights` is a file, "pretrained" or
    None. Where there is a `tiling`, large pictures are trained on and looked at in tiles, and `empty_tiles` is the part
    of those trained on that may be without objects. After
    `patience` validations without a better AP the training ends early; None: never. `on_nonfinite` says what becomes of
    a step whose loss or gradient is no number: "stop" ends the training, "skip" leaves it out; both name the picture.
    With `preflight` a training that can learn nothing is refused before it begins.

    With `advise` the recipe is fitted to the data set first (`detrove.training.advice`), where the preset allows it:
    `advice` is what was changed, as `--set` names it, and `given` are the settings that the user decided, which are
    left alone. A resolved config has been fitted already.
    """

    data: str
    output: str
    model: str
    data_format: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    backbone_weights: str | None = None
    weights: str | None = None
    ignore_heads: bool = False
    train_split: str = "train"
    val_split: str | None = "val"
    val_fraction: float = 0.15
    workers: int = 0
    rectangular: bool = False
    cache: str | None = None
    mixed_precision: str = "no"
    recompute: bool = False
    accumulate: int = 1
    fit_memory: bool = False
    compile: bool = False
    tiling: Tiling | None = None
    empty_tiles: float = EMPTY_SHARE
    patience: int | None = None
    on_nonfinite: str = "stop"
    preflight: bool = True
    advise: bool = True
    given: tuple[str, ...] = ()
    advice: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    recipe: Recipe = field(default_factory=Recipe)
    model_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise InputError("a training needs one length: give epochs or minutes, not both")
        _require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "above 0")
        _require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "between 0 and 1")
        _require(self.workers >= 0, "workers", self.workers, "at least 0")
        _require(0 <= self.empty_tiles < 1, "empty_tiles", self.empty_tiles, "from 0 to below 1")
        _require(self.mixed_precision in MIXED_PRECISION, "mixed_precision", self.mixed_precision, "no, bf16 or fp16")
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        _require(self.on_nonfinite in ON_NONFINITE, "on_nonfinite", self.on_nonfinite, "stop or skip")
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1")
        if self.cache is not None:
            parse_bytes(self.cache)
        _check_recipe(self.recipe)
        if self.accumulate > self.recipe.batch_size:
            raise InputError(
                f"accumulate is {self.accumulate}, but a step has only {self.recipe.batch_size} pictures: its parts "
                "must hold one each; give less, or a larger batch_size"
            )

    @classmethod
    def from_preset(
        cls,
        preset: Preset,
        *,
        settings: Mapping[str, Any],
        size: int | None,
        batch_size: int | str | None,
        of_weights: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> TrainingConfig:
        """The preset's recipe, config and preprocessing with the user's options laid over them.

        `settings` maps keys as `--set` names them: a field of `Recipe` (`learning_rate`), one of `RUN_SETTINGS`,
        `model.` and a field of the model's config, or `preprocessing.` and a field of `Preprocessing`. `size` is the
        longer side in pixels, aspect kept; a `batch_size` of "auto" stands for `fit_memory`. `of_weights` are settings
        too, of the weights to start from: the user's come before them, and they are not `given`. `values` are the other
        fields. Raises `InputError` for an unknown key, offering the nearest, and for a value of the wrong type.
        """
        model_config = _plain(preset.config)
        del model_config["num_classes"]
        if MODEL_PREFIX + FROZEN not in settings:
            model_config.pop(FROZEN, None)
        settings, fit_memory = dict(settings), AUTO in (batch_size, settings.get("batch_size"))
        if fit_memory:
            settings.pop("batch_size", None)
        elif batch_size is not None:
            settings["batch_size"] = batch_size
        given = {*settings, *(name for name in ("epochs", "minutes") if values.get(name) is not None)}
        laid = dict(of_weights or {})
        if size is not None:
            laid |= {SIZE: size, PREPROCESSING_PREFIX + "shorter": None}
            given.add(SIZE)
        unlimited = values.get("epochs") is None and values.get("minutes") is None
        if unlimited:
            values["epochs"] = preset.recipe.epochs
        config = cls(
            **values,
            recipe=preset.recipe,
            preprocessing=preset.preprocessing,
            model_config=model_config,
            fit_memory=fit_memory,
            given=tuple(sorted(given)),
        )
        config = config.with_settings(laid | settings)
        return dataclasses.replace(config, epochs=config.recipe.epochs) if unlimited else config

    def with_settings(self, settings: Mapping[str, Any]) -> TrainingConfig:
        """The config with `settings` laid over it, keys as of `from_preset`.

        Raises `InputError` as `from_preset` does.
        """
        config_class = type(catalogue.preset(self.model).config)
        run, preprocessing = {}, dataclasses.asdict(self.preprocessing)
        recipe, model_config = dataclasses.asdict(self.recipe), dict(self.model_config)
        known = {entry.name for entry in dataclasses.fields(config_class)} - {"num_classes"}
        targets = {
            **{key: (recipe, key, Recipe) for key in recipe},
            **{key: (run, key, TrainingConfig) for key in RUN_SETTINGS},
            **{MODEL_PREFIX + key: (model_config, key, config_class) for key in known},
            **{PREPROCESSING_PREFIX + key: (preprocessing, key, Preprocessing) for key in preprocessing},
        }
        for key, value in settings.items():
            if key not in targets:
                raise InputError(f"unknown setting {key!r}: {nearest(key, targets)}")
            values_of, name, owner = targets[key]
            values_of[name] = coerce(value, typing.get_type_hints(owner)[name], key)
        return dataclasses.replace(
            self,
            **run,
            recipe=Recipe(**recipe),
            preprocessing=Preprocessing(**preprocessing),
            model_config=_plain(model_config),
        )

    def model_options(self) -> dict[str, Any]:
        """What the catalogue makes the model with: `model_config`, lists as the tuples that they were."""
        return {key: tuple(value) if isinstance(value, list) else value for key, value in self.model_config.items()}

    def to_yaml(self) -> str:
        """As `config.yaml` holds it."""
        return yaml.safe_dump(_plain(self), sort_keys=False, width=120, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path) -> TrainingConfig:
        """The inverse of `to_yaml`. Raises `InputError` naming the file where it is no such file."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if isinstance(values, dict):
            values.setdefault("advise", False)  # resolved, also by versions that had no advice to give
        try:
            return coerce(values, cls, "config")
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """ "key=value" as the command line gives it; the value is read as YAML.

    >>> parse_setting("model.num_queries=50")
    ('model.num_queries', 50)
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text}: write it as key=value, for example --set learning_rate=2e-4")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not YAML; quote it") from None


def coerce(value: Any, hint: Any, key: str) -> Any:
    """`value`, as read from YAML, as the annotated type `hint`; raises `InputError` naming `key` where it does not fit.

    Knows what configs are made of: bool, int, float, str, optional values, tuples, dicts and dataclasses. YAML 1.1
    reads 2e-4 as text; it is taken as a number where one is wanted.

    >>> coerce("2e-4", float, "learning_rate")
    0.0002
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(value, arguments, key)
    if origin is typing.Literal and value in arguments:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _coerce_dataclass(value, hint, key)
    if origin is tuple and isinstance(value, list | tuple):
        return _coerce_tuple(value, arguments, key)
    if (origin or hint) is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if hint in (bool, int, str) and type(value) is hint:
        return value
    if hint is type(None) and value is None:
        return None
    raise InputError(f"{key}: {value!r} is not {_wanted(hint)}")


def _coerce_union(value: Any, arguments: tuple[Any, ...], key: str) -> Any:
    settings = [argument for argument in arguments if dataclasses.is_dataclass(argument)]
    if settings and isinstance(value, Mapping):
        return coerce(value, settings[0], key)  # which of its entries is wrong, it tells itself
    for argument in arguments:
        try:
            return coerce(value, argument, key)
        except InputError:
            continue
    raise InputError(f"{key}: {value!r} is not {' or '.join(_wanted(argument) for argument in arguments)}")


def _coerce_tuple(values: list | tuple, arguments: tuple[Any, ...], key: str) -> tuple:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = arguments[:1] * len(values)
    if len(values) != len(arguments):
        raise InputError(f"{key}: {list(values)!r} must have {len(arguments)} entries")
    return tuple(coerce(value, hint, key) for value, hint in zip(values, arguments, strict=True))


def _coerce_dataclass(values: Mapping[str, Any], hint: Any, key: str) -> Any:
    hints = {name: kind for name, kind in typing.get_type_hints(hint).items() if name in hint.__dataclass_fields__}
    for name in values:
        if name not in hints:
            raise InputError(f"{key}: unknown entry {name!r}: {nearest(str(name), hints)}")
    try:
        return hint(**{name: coerce(value, hints[name], name) for name, value in values.items()})
    except TypeError as error:
        raise InputError(f"{key}: an entry is missing ({error})") from None


def _wanted(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(str(choice) for choice in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return f"settings ({', '.join(entry.name for entry in dataclasses.fields(hint))})"
    return words.get(hint, "a list" if typing.get_origin(hint) is tuple else str(hint))


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists: what YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _require(holds: bool, name: str, value: Any, what: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {what}, got {value}")


def _check_recipe(recipe: Recipe) -> None:
    for name in ("learning_rate", "clip_norm"):
        _require(getattr(recipe, name) > 0, name, getattr(recipe, name), "above 0")
    for name in ("backbone_learning_rate", "weight_decay", "warmup", "slow_factor"):
        _require(getattr(recipe, name) >= 0, name, getattr(recipe, name), "at least 0")
    for name in ("batch_size", "epochs"):
        _require(getattr(recipe, name) >= 1, name, getattr(recipe, name), "at least 1")
    parts = ("drop_at", "final_rate", "trunk_warmup", "mix_until")
    for name in (*parts, "horizontal_flip", "vertical_flip", "crop", "colour", "blur", "mosaic", "copy_paste"):
        _require(0 <= getattr(recipe, name) <= 1, name, getattr(recipe, name), "from 0 to 1")
    _require(0 <= recipe.ema_decay < 1, "ema_decay", recipe.ema_decay, "from 0 to below 1")
    _require(0 < recipe.scale[0] <= recipe.scale[1], "scale", list(recipe.scale), "two numbers above 0, in order")
    _require(recipe.schedule in SCHEDULES, "schedule", recipe.schedule, " or ".join(SCHEDULES))
