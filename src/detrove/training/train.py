"""`train`: from a labelled data set to a run folder with a measured detector."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from detrove import checkpoints
from detrove.checkpoints import Checkpoint, fit_heads, objectness_keys
from detrove.data import DetectionDataset
from detrove.data.batching import default_workers
from detrove.data.tiles import cut
from detrove.errors import InputError
from detrove.evaluation import ErrorAnalysis, Metrics, write_report
from detrove.inference import Detector, load
from detrove.inference.load import weights_file
from detrove.losses import Criterion
from detrove.models import catalogue
from detrove.structures import Preprocessing
from detrove.tiling import Tiling, asked_tiling
from detrove.training.advice import advise, advised, facts_of, taken, wants_advice
from detrove.training.callbacks import Callback, RunDone
from detrove.training.choice import default_model, gpu_memory_of, larger_detector
from detrove.training.clock import TrainingClock
from detrove.training.config import FROZEN, MODEL_PREFIX, PREPROCESSING_PREFIX, TrainingConfig
from detrove.training.fitting import parts_that_fit
from detrove.training.held_out import choose_splits, open_splits
from detrove.training.launch import launch
from detrove.training.preflight import preflight, preflight_model
from detrove.training.processes import Processes, is_launched, processes_here
from detrove.training.progress import Display, duration, learning_curves, make_display
from detrove.training.run_folder import RunFolder, TrainingState, free_folder
from detrove.training.trainer import Trainer
from detrove.training.validation import Measured, Validation
from detrove.training.verdict import gather, verdict

RUNS = Path("runs")
MAY_CHANGE = ("epochs", "minutes", "workers", "patience", "preflight", "given")  # when a run is continued


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
    model: str | None = None,
    output: str | Path | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    size: int | None = None,
    batch_size: int | str | None = None,
    weights: str | Path | None = None,
    ignore_heads: bool = False,
    backbone_weights: str | Path | None = "pretrained",
    seed: int = 0,
    resume: bool = False,
    format: str | None = None,
    rectangular: bool | None = None,
    cache: str | None = None,
    tiles: int | Tiling | None = None,
    tile_overlap: float | None = None,
    devices: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a detector on the pictures of a data set and leave a run folder.

    `data` is a COCO, VOC, YOLO or CSV data set (`format` settles a folder that holds several) with a split to train on;
    it is validated on its "val" split, or where there is none on a seeded 15% of the training pictures, held out.
    `model` is a catalogue name; the default is what `weights` hold, else detrove-nano, and where `minutes` are given
    but nothing of the model or its pictures, what they are enough for (`training.choice`). `output` is the run folder,
    by default runs/DATA-MODEL, numbered where that exists. The length is `epochs`, or `minutes` of training time, or
    the recipe's epochs. `size` is the longer side in pixels that pictures are resized to, aspect kept. The learning
    rate is not changed with `batch_size`; "auto" keeps the recipe's, and finds by measuring in how many parts a step
    fits the memory.

    `weights` are a detector to start from, a run or what `checkpoints.read` takes. Those of the same preset also decide
    the model's sizes and its pictures' size, unless an option says otherwise. Classes are joined by name: those that
    the data set has too are kept, its others start anew, and all of them with `ignore_heads`. `backbone_weights`
    is a safetensors file in timm's names, "pretrained" for timm's download (offline: a warning, and random weights), or
    None for random weights. `rectangular` batches hold pictures of similar shape, with hardly any padding; `cache`, as
    "2GB", keeps so much of the decoded pictures for the next epoch. `tiles` of so many pixels, neighbours sharing
    `tile_overlap` of a side (default 0.2), are cut out of large pictures; the detector learns from them and from the
    whole pictures, is validated in the same way, and will predict so. `resume` continues the run in `output`, given the
    same options. With several `devices` as many processes share every batch, one on each GPU, or on the CPU where there
    is none; a script that asks for them must start behind `if __name__ == "__main__"`, and its `callbacks` must be
    possible to pickle. `settings` are overrides as of `--set` (`TrainingConfig.from_preset`). The same seed gives the
    same run again on the same machine where the length is in epochs.

    `callbacks` hear of every step and epoch and of the end (`detrove.training.callbacks`). With `patience` among the
    settings the training ends early after so many validations without a better AP.

    Ctrl-C ends the training after the present step with everything saved. Raises `InputError` for whatever is wrong
    with the input, before any work is done where it can be known.
    """
    clock = TrainingClock()
    settings, of_weights = dict(settings or {}), {}
    if weights is not None:
        model, of_weights = _model_of(weights, model)
    if model is not None:
        catalogue.preset(model)  # an unknown name is refused before the data are looked at
    if resume and output is None:
        raise InputError("nothing to resume: name the run folder with --output")
    output = None if output is None else Path(output)
    if output is not None and not resume:
        RunFolder(output).refuse_if_taken()
    if "train_split" not in settings:
        settings = choose_splits(Path(data), format) | settings
    given = {"rectangular": rectangular, "cache": cache}
    settings |= {name: value for name, value in given.items() if value is not None}
    tiling = asked_tiling(tiles, tile_overlap)

    def config_of(name: str) -> TrainingConfig:
        return TrainingConfig.from_preset(
            catalogue.preset(name),
            settings={"workers": default_workers() // max(devices or 1, processes_here()), **settings},
            size=size,
            batch_size=batch_size,
            of_weights=of_weights,
            data=str(data),
            output="" if output is None else str(output),
            model=name,
            data_format=format,
            epochs=epochs,
            minutes=minutes,
            seed=seed,
            backbone_weights=None if backbone_weights in (None, "none") else str(backbone_weights),
            weights=None if weights is None else str(weights),
            ignore_heads=ignore_heads,
            tiling=tiling,
        )

    reasons: list[str] = []
    if model is None:
        model, reasons = default_model(output, resume, config_of, devices)
    if output is None:
        output = free_folder(RUNS, f"{Path(data).resolve().stem}-{model}")
        output = Processes().same(output) if is_launched() else output
    config = config_of(model)
    return run(
        config,
        resume=resume,
        progress=progress,
        clock=clock,
        callbacks=callbacks,
        devices=devices,
        reasons=reasons,
    )


def run(
    config: TrainingConfig,
    resume: bool = False,
    progress: bool = True,
    clock: TrainingClock | None = None,
    callbacks: Sequence[Callback] = (),
    devices: int | None = None,
    reasons: Sequence[str] = (),
) -> Run:
    """Train as a resolved config says; `clock` has been running since the preparation began.

    `reasons` are lines on what was decided before, to be told first.

    With several `devices`, in as many processes on this machine; by default in this one, which may be one of several
    that a launcher started.
    """
    clock = clock or TrainingClock()
    if devices is not None:
        arguments = {"config": config, "resume": resume, "progress": progress, "clock": clock}
        arguments |= {"callbacks": callbacks, "reasons": reasons}
        return run(**arguments) if devices == 1 else launch(devices, run, arguments)
    clock.budget = None if config.minutes is None else config.minutes * 60
    processes = Processes()
    folder = RunFolder(Path(config.output), writing=processes.main)
    if resume:
        config = _continued(folder, config)
    else:
        folder.refuse_if_taken()
    display = make_display(progress and processes.main)
    try:
        told = _told(display) if progress else nullcontext()
        with folder.saying_what_is_kept(), processes.explained_deaths(), told:
            processes.wait()  # all have looked at the folder before one writes to it
            folder.remove_partial()
            for line in reasons:
                display.message(line)
            state = folder.load_last() if resume else None
            trainer = _prepare(config, folder, clock, display, callbacks, processes, state)
            if state is not None:
                trainer.resume(state)
                epoch, step = trainer.position.epoch, trainer.position.step
                display.message(f"continuing {folder.path} after epoch {epoch}, step {step}")
            clock.prepared()
            trainer.run()
            return _finish(trainer, folder, display)
    finally:
        display.close()


def _prepare(
    config: TrainingConfig,
    folder: RunFolder,
    clock: TrainingClock,
    display: Display,
    callbacks: Sequence[Callback],
    processes: Processes,
    state: TrainingState | None,
) -> Trainer:
    """Open the data, build the model and begin the run folder; or, where it has a `state`, make all ready for that."""
    pictures, validation_data = open_splits(config)
    for dataset in (pictures, validation_data):
        display.message(dataset.describe())
    training_data = pictures
    if config.tiling is not None:
        training_data = cut(pictures, config.tiling, config.empty_tiles, config.seed)
    if state is not None:
        _refuse_other_data(folder, state, training_data)
    config, reasons = _advised(config, training_data, processes.device)
    faults = [] if state else [f"  {line}" for line in preflight(config, pictures, validation_data)]
    for line in (*faults, *reasons):
        display.message(line)
    if config.val_split is None:
        display.message(
            f"{config.data}: no split to validate on: {len(validation_data)} of its training pictures are held out"
        )
    if config.tiling is not None:
        display.message(f"{config.tiling.describe()}: {training_data.describe()}")
    set_seed(config.seed)
    model, heads = build_model(config, training_data, state)
    if heads:
        display.message(heads)
    criterion = catalogue.criterion_for(model)
    fits = config.fit_memory  # what is measured once need not be again
    if fits:
        config = _fitted(config, model, criterion, training_data, processes, display)
    if state is None and processes.number == 1:  # several could not stop at the same step of a rehearsal
        with clock.paused():
            told = preflight_model(config, model, criterion, training_data, processes.device, fits)
        for line in told:
            display.message(line)
    folder.write_config(config)
    folder.write_labels(training_data.label_map)
    validation = Validation(
        validation_data,
        config.preprocessing,
        training_data.label_map,
        config.model,
        max(1, config.recipe.batch_size // processes.number),
        config.tiling,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    length = f"{config.epochs} epochs" if config.epochs else f"{config.minutes:g} minutes"
    display.message(f"training {config.model} ({parameters / 1e6:.1f} M parameters) for {length} in {folder.path}")
    return Trainer(config, model, criterion, training_data, validation, folder, clock, display, callbacks, processes)


def _advised(config: TrainingConfig, data: DetectionDataset, device: torch.device) -> tuple[TrainingConfig, list[str]]:
    """The config fitted to the data set, and the reasons in lines; a config that has been fitted stays as it is."""
    if not wants_advice(config):
        return dataclasses.replace(config, advise=False), []
    facts = facts_of(data)
    advice = advise(facts, config)
    hence = ", hence (--set KEY=VALUE decides otherwise):" if advice else ""
    lines = [f"{facts.describe(config.preprocessing)}{hence}", *(f"  · {each.describe()}" for each in advice)]
    return advised(config, advice), [*lines, *larger_detector(config, gpu_memory_of(device))]


def build_model(
    config: TrainingConfig, data: DetectionDataset, state: TrainingState | None = None
) -> tuple[nn.Module, str | None]:
    """The detector to begin with: the preset with the config's options, and the weights it names.

    A trunk with weights whose rate is 0 gets no gradient. The second is a line on what became of the classes of the
    weights. A detector for a `state` has no weights yet, and needs neither files nor a network.
    """
    model, heads = _begun(config, data) if state is None else (_for_state(config, data, state), None)
    backbone: Any = model.get_submodule("backbone")
    if backbone.frozen and config.recipe.backbone_learning_rate == 0:
        backbone.requires_grad_(False)
    return model, heads


def _begun(config: TrainingConfig, data: DetectionDataset) -> tuple[nn.Module, str | None]:
    options = config.model_options()
    if config.weights is None:
        model = catalogue.create(
            config.model, num_classes=len(data.label_map), backbone_weights=config.backbone_weights, **options
        )
        return model, None
    checkpoint = _read(config.weights, config.model)
    _refuse_other_detector(config, checkpoint)
    # A frozen BatchNorm and a live one hold different tensors: the file says which these are.
    options.setdefault("backbone_frozen", checkpoint.config.get("backbone_frozen", True))
    model = catalogue.create(config.model, num_classes=len(data.label_map), **options)
    tensors = checkpoint.tensors
    heads = f"class heads of {config.weights} left out: every class starts anew"
    if not config.ignore_heads:
        tensors, report = fit_heads(
            tensors,
            model.state_dict(),
            checkpoint.label_map,
            data.label_map,
            unnamed=objectness_keys(model),
            source=config.weights,
        )
        heads = report.describe(config.weights)
    checkpoints.load_weights(model, tensors, config.ignore_heads, source=config.weights)
    return model, heads


def _for_state(config: TrainingConfig, data: DetectionDataset, state: TrainingState) -> nn.Module:
    """A trunk that had weights when the run was begun has them, whether or not they could be had now."""
    options = {FROZEN: state.facts["begun_with"]["trunk_frozen"], **config.model_options()}
    return catalogue.create(config.model, num_classes=len(data.label_map), **options)


def _refuse_other_data(folder: RunFolder, state: TrainingState, data: DetectionDataset) -> None:
    """Raise `InputError` where a run would go on with other classes, or another number of pictures."""
    begun_with = state.facts["begun_with"]
    before, now = (f"the classes {', '.join(names)}" for names in (begun_with["classes"], data.label_map.names))
    if before == now:
        before, now = (f"{number:,} pictures" for number in (begun_with["num_pictures"], len(data)))
    if before != now:
        raise InputError(
            f"{data.path}: {folder.path} was begun with {before}, and now there are {now}: a run is continued with the "
            f"pictures that it was begun with; to learn from others, start one from it: --weights {folder.path}"
        )


def _read(weights: str | Path, model: str | None) -> Checkpoint:
    """The weights, of a run folder the best, as what they say they are, or as `model` where they fit several."""
    source = weights_file(Path(weights))
    try:
        return checkpoints.read(source)
    except InputError:
        if model is None:
            raise
    return checkpoints.read(source, model)


def _model_of(weights: str | Path, model: str | None) -> tuple[str, dict[str, Any]]:
    """The catalogue name to train, by default that of the weights, and as settings what they decide: sizes, pictures.

    Weights of another preset than `model` decide nothing.
    """
    if model is not None:
        catalogue.preset(model)
    checkpoint = _read(weights, model)
    if model is None and checkpoint.preset not in catalogue.PRESETS:
        raise InputError(f"{weights}: does not say which detector of the catalogue it holds; name it with --model")
    if model is not None and model != checkpoint.preset:
        return model, {}
    assert checkpoint.preset is not None
    held = _as_settings(catalogue.config_from_json(checkpoint.config), checkpoint.preprocessing)
    of_run = {MODEL_PREFIX + "num_classes", MODEL_PREFIX + FROZEN}
    return checkpoint.preset, {key: held[key] for key in held.keys() - of_run}


def _as_settings(config: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Every value of both under the key that `--set` knows it by."""
    return {
        **{MODEL_PREFIX + key: value for key, value in dataclasses.asdict(config).items()},
        **{PREPROCESSING_PREFIX + key: value for key, value in vars(preprocessing).items()},
    }


def _refuse_other_detector(config: TrainingConfig, checkpoint: Checkpoint) -> None:
    """Weights of another paper's detector share hardly a key with it: say which each is."""
    held = checkpoint.config.get("detector")
    wanted = catalogue.config_to_json(catalogue.preset(config.model).config)["detector"]
    if held != wanted:
        raise InputError(
            f"{config.weights}: holds a detector of the kind {held} ({checkpoint.preset or 'no preset'}), but "
            f"{config.model} is of the kind {wanted}; leave out --model to train what the weights hold"
        )


def _fitted(
    config: TrainingConfig,
    model: nn.Module,
    criterion: Criterion,
    data: DetectionDataset,
    processes: Processes,
    display: Display,
) -> TrainingConfig:
    """The config with a step in as many parts as the memory of every process asks for."""
    largest_share = -(-config.recipe.batch_size // processes.number)
    fit = parts_that_fit(model, criterion, config, data, processes.device, largest_share, processes_here())
    display.message(f"batch: {fit.reason}")
    num_parts = max(processes.gathered(fit.num_parts))
    return dataclasses.replace(config, accumulate=num_parts, fit_memory=False)


def _continued(folder: RunFolder, config: TrainingConfig) -> TrainingConfig:
    """The config of a run that goes on: what was advised and measured when it was begun is not thought over again.

    It keeps its options; only its length may change. Raises `InputError` where others are given.
    """
    if not folder.config.exists():
        if folder.is_begun:
            raise InputError(f"{folder.path}: no run to continue (no {folder.config.name}); choose another --output")
        return config
    before = TrainingConfig.from_yaml(folder.config)
    if config.advise:
        config = taken(config, before.advice)
    if config.fit_memory:
        config = dataclasses.replace(config, accumulate=before.accumulate, fit_memory=False)
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
    return config


def _finish(trainer: Trainer, folder: RunFolder, display: Display) -> Run:
    """The report, and what to say at the end."""
    [stopped] = trainer.processes.of_main(trainer.interruption.requested)
    best = trainer.best
    if best is None and not stopped:  # continued, and no better since
        best = trainer.measure_best()
    if not trainer.processes.main:
        return Run(folder.path, None if best is None else best.metrics)
    display.message(
        f"{'stopped early' if stopped or trainer.ended_by else 'trained'} after {duration(trainer.clock.used)} and "
        f"{trainer.position.step} steps; best weights: {folder.best}"
    )
    if best is None:
        display.message("not validated: no score thresholds are stored and no report is written")
        trainer.callbacks.on_end(RunDone(folder.path, None, ()))
        return Run(folder.path, None)
    detector = load(folder.path)
    detector.model.to(trainer.device)
    known = (trainer.config, trainer.lines, detector, best, trainer.validation, trainer.training_data)
    evidence = gather(*known, compare=not stopped)  # who stops a training wants no more work done
    stood_out = verdict(evidence)
    _write_report(trainer, folder, best, detector, evidence.errors, stood_out)
    for line in (*learning_curves(trainer.lines), "what stood out:", *(f"  · {sentence}" for sentence in stood_out)):
        display.message(line)
    display.message(
        f"validation AP {best.metrics.ap or 0:.3f}, AP50 {best.metrics.ap50 or 0:.3f}; report: {folder.report}"
    )
    trainer.callbacks.on_end(RunDone(folder.path, best.metrics, stood_out))
    return Run(folder.path, best.metrics)


def _write_report(
    trainer: Trainer,
    folder: RunFolder,
    best: Measured,
    detector: Detector,
    errors: ErrorAnalysis,
    stood_out: Sequence[str],
) -> None:
    """The page about the run, on its validation pictures."""
    config, validation, thresholds = trainer.config, trainer.validation, detector.thresholds
    write_report(
        folder.report,
        title=f"{config.model} on {Path(config.data).resolve().name}",
        metrics=best.metrics,
        ground_truth=validation.dataset.ground_truth(),
        detections=best.detections,
        dataset=validation.dataset,
        label_map=validation.label_map,
        thresholds=None if thresholds is None else thresholds.tolist(),
        errors=errors,
        history=trainer.lines,
        stood_out=stood_out,
        facts={
            "model": config.model,
            "data": config.data,
            "measured on": f"{len(validation.dataset)} pictures of {config.val_split or 'train, held out'}",
            "training": f"{duration(trainer.clock.used)}, {trainer.position.step} steps, seed {config.seed}",
            "picture size": f"longer side {config.preprocessing.longer} pixels",
            **({} if config.tiling is None else {"looked at in": config.tiling.describe()}),
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
