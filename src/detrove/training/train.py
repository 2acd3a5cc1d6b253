"""`train`: from a labelled data set to a run folder with a measured detector."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from detrove import checkpoints
from detrove.data import DetectionDataset
from detrove.data.batching import default_workers
from detrove.errors import InputError
from detrove.evaluation import Metrics, write_report
from detrove.inference import Detector, load
from detrove.models import catalogue
from detrove.training.clock import TrainingClock
from detrove.training.config import TrainingConfig
from detrove.training.held_out import choose_splits, open_splits
from detrove.training.progress import Display, duration, make_display
from detrove.training.run_folder import RunFolder, free_folder
from detrove.training.trainer import Trainer
from detrove.training.validation import Measured, Validation

RUNS = Path("runs")
MAY_CHANGE = ("epochs", "minutes", "workers")  # when a run is continued


@dataclass(frozen=True)
class Run:
    """What a training leaves: the folder, the validation metrics of its best weights, and these as a detector.

    `metrics` is None where Ctrl-C cut the validation short.
    """

    output: Path
    metrics: Metrics | None

    @property
    def detector(self) -> Detector:
        """The best weights, read from the run folder."""
        return load(self.output)


def train(
    data: str | Path,
    model: str = "detrove-nano",
    output: str | Path | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    weights: str | Path | None = None,
    ignore_heads: bool = False,
    backbone_weights: str | Path | None = "pretrained",
    seed: int = 0,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Run:
    """Train a detector on the pictures of a data set and leave a run folder.

    `data` is a COCO, VOC or YOLO data set with a split to train on; it is validated on its "val" split, or where there
    is none on a seeded 15% of the training pictures, held out. `model` is a catalogue name. `output` is the run folder,
    by default runs/DATA-MODEL, numbered where that exists. The length is `epochs`, or `minutes` of training time, or
    the recipe's epochs. `size` is the longer side in pixels that pictures are resized to, aspect kept. The learning
    rate is not changed with `batch_size`.

    `weights` is a detrove checkpoint to start from; with `ignore_heads` its class heads are left out, for other
    classes. `backbone_weights` is a safetensors file in timm's names, "pretrained" for timm's download (offline: a
    warning, and random weights), or None for random weights. `resume` continues the run in `output`, given the same
    options. `settings` are overrides as of `--set` (`TrainingConfig.from_preset`). The same seed gives the same run
    again on the same machine where the length is in epochs.

    Ctrl-C ends the training after the present step with everything saved. Raises `InputError` for whatever is wrong
    with the input, before any work is done where it can be known.
    """
    clock = TrainingClock()
    preset = catalogue.preset(model)
    if resume and output is None:
        raise InputError("nothing to resume: name the run folder with --output")
    output = free_folder(RUNS, f"{Path(data).resolve().stem}-{model}") if output is None else Path(output)
    if not resume:
        RunFolder(output).refuse_if_taken()
    settings = dict(settings or {})
    if "train_split" not in settings:
        settings = choose_splits(Path(data)) | settings
    config = TrainingConfig.from_preset(
        preset,
        settings={"workers": default_workers(), **settings},
        size=size,
        batch_size=batch_size,
        data=str(data),
        output=str(output),
        model=model,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        backbone_weights=None if backbone_weights in (None, "none") else str(backbone_weights),
        weights=None if weights is None else str(weights),
        ignore_heads=ignore_heads,
    )
    return run(config, resume=resume, progress=progress, clock=clock)


def run(config: TrainingConfig, resume: bool = False, progress: bool = True, clock: TrainingClock | None = None) -> Run:
    """Train as a resolved config says; `clock` has been running since the preparation began."""
    clock = clock or TrainingClock()
    clock.budget = None if config.minutes is None else config.minutes * 60
    folder = RunFolder(Path(config.output))
    if resume:
        _refuse_other_options(folder, config)
    else:
        folder.refuse_if_taken()
    display = make_display(progress)
    try:
        with _told(display) if progress else nullcontext():
            trainer = _prepare(config, folder, clock, display)
            state = folder.load_last() if resume else None
            if state is not None:
                trainer.resume(state)
                display.message(f"continuing {folder.path} after epoch {trainer.position.epoch}")
            clock.prepared()
            trainer.run()
            return _finish(trainer, folder, display)
    finally:
        display.close()


def _prepare(config: TrainingConfig, folder: RunFolder, clock: TrainingClock, display: Display) -> Trainer:
    """Open the data, build the model and begin the run folder."""
    training_data, validation_data = open_splits(config)
    for dataset in (training_data, validation_data):
        display.message(dataset.describe())
        for warning in dataset.warnings:
            display.message(f"  {warning}")
    if config.val_split is None:
        display.message(
            f"{config.data}: no split to validate on: {len(validation_data)} of its training pictures are held out"
        )
    set_seed(config.seed)
    model = build_model(config, training_data)
    folder.write_config(config)
    folder.write_labels(training_data.label_map)
    validation = Validation(
        validation_data, config.preprocessing, training_data.label_map, config.model, config.recipe.batch_size
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    length = f"{config.epochs} epochs" if config.epochs else f"{config.minutes:g} minutes"
    display.message(f"training {config.model} ({parameters / 1e6:.1f} M parameters) for {length} in {folder.path}")
    return Trainer(config, model, catalogue.criterion_for(model), training_data, validation, folder, clock, display)


def build_model(config: TrainingConfig, data: DetectionDataset) -> nn.Module:
    """The detector to begin with: the preset with the config's options, and the weights it names."""
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.model_config.items()
    }
    if config.weights is None:
        return catalogue.create(
            config.model, num_classes=len(data.label_map), backbone_weights=config.backbone_weights, **options
        )
    checkpoint = checkpoints.read(config.weights)
    # A frozen BatchNorm and a live one hold different tensors: the file says which these are.
    options.setdefault("backbone_frozen", checkpoint.config.get("backbone_frozen", True))
    model = catalogue.create(config.model, num_classes=len(data.label_map), **options)
    checkpoints.load_weights(model, checkpoint.tensors, config.ignore_heads, source=config.weights)
    return model


def _refuse_other_options(folder: RunFolder, config: TrainingConfig) -> None:
    """A continued run keeps its options; only its length may change."""
    if not folder.config.exists():
        if folder.path.exists() and any(folder.path.iterdir()):
            raise InputError(f"{folder.path}: no run to continue (no {folder.config.name}); choose another --output")
        return
    before = TrainingConfig.from_yaml(folder.config)
    other = [
        f"{name} was {getattr(before, name)}, now {getattr(config, name)}"
        for name in vars(config)
        if name not in MAY_CHANGE and getattr(before, name) != getattr(config, name)
    ]
    if other:
        raise InputError(
            f"{folder.path}: a run is continued with the options it was begun with: {'; '.join(other)}; "
            "repeat them, or choose another --output"
        )


def _finish(trainer: Trainer, folder: RunFolder, display: Display) -> Run:
    """The report, and what to say at the end."""
    stopped, best = trainer.interruption.requested, trainer.best
    if best is None and not stopped:  # continued, and no better since
        best = trainer.validation.measure(load(folder.path).model.to(trainer.accelerator.device))
    display.message(
        f"{'stopped early' if stopped else 'trained'} after {duration(trainer.clock.used)} and "
        f"{trainer.position.step} steps; best weights: {folder.best}"
    )
    if best is None:
        display.message("not validated: no score thresholds are stored and no report is written")
        return Run(folder.path, None)
    _write_report(trainer, folder, best)
    display.message(
        f"validation AP {best.metrics.ap or 0:.3f}, AP50 {best.metrics.ap50 or 0:.3f}; report: {folder.report}"
    )
    return Run(folder.path, best.metrics)


def _write_report(trainer: Trainer, folder: RunFolder, best: Measured) -> None:
    """The page about the run, on its validation pictures."""
    config, validation = trainer.config, trainer.validation
    thresholds = load(folder.path).thresholds
    write_report(
        folder.report,
        title=f"{config.model} on {Path(config.data).resolve().name}",
        metrics=best.metrics,
        ground_truth=validation.dataset.ground_truth(),
        detections=best.detections,
        dataset=validation.dataset,
        label_map=validation.label_map,
        thresholds=None if thresholds is None else thresholds.tolist(),
        history=trainer.lines,
        facts={
            "model": config.model,
            "data": config.data,
            "measured on": f"{len(validation.dataset)} pictures of {config.val_split or 'train, held out'}",
            "training": f"{duration(trainer.clock.used)}, {trainer.position.step} steps, seed {config.seed}",
            "picture size": f"longer side {config.preprocessing.longer} pixels",
            "weights": str(folder.best),
        },
    )


@contextmanager
def _told(display: Display) -> Iterator[None]:
    """Warnings are told as messages."""

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:  # noqa: ARG001
        display.message(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
