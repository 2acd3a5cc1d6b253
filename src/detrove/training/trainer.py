"""The training loop: epochs of steps until the length or the clock's budget is reached, validation, the run folder."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from detrove import checkpoints
from detrove.data.batching import explained_worker_deaths, training_loader
from detrove.data.cache import parse_bytes
from detrove.data.dataset import DetectionDataset
from detrove.data.transforms import Augmentation
from detrove.errors import InputError
from detrove.losses.criterion import Criterion
from detrove.memory import freed_memory_kept
from detrove.models.preset import Recipe
from detrove.nn.recompute import recompute_layers
from detrove.structures import ImageBatch, Predictions, Proposals, Targets
from detrove.training.callbacks import Callback, Callbacks, EpochDone, StepDone, validations_without_gain
from detrove.training.clock import TrainingClock
from detrove.training.config import TrainingConfig
from detrove.training.ema import MovingAverage
from detrove.training.events import Events
from detrove.training.interruption import Interruption
from detrove.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer, set_rates
from detrove.training.progress import Display, Status
from detrove.training.run_folder import RunFolder, TrainingState
from detrove.training.schedule import rate_factor
from detrove.training.trunk_warmup import warm_up_trunk
from detrove.training.validation import Measured, Validation, affordable

SAVING_SHARE = 0.05  # of the time since, spent on saving the state to continue from
LONGEST_UNSAVED = 600.0  # seconds, where an epoch takes longer than that


@dataclass
class Position:
    """How far a training has come: whole `epoch`s, `step`s and `pictures`, and the best validation AP (-1: none).

    `warmed_up` is the part of the clock's budget that went before the first step, into preparation and the trunk.
    """

    epoch: int = 0
    step: int = 0
    pictures: int = 0
    best_ap: float = -1.0
    warmed_up: float = 0.0


@dataclass
class Means:
    """Running means of named losses."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Take in one step's losses."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] += value

    def values(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self.count for name, total in self.sums.items()}


class Trainer:
    """Trains `model` and fills the run folder; `run()` does it all.

    The state to continue from is taken at the end of an epoch. An epoch draws all its randomness from the run's seed
    and its own number, so that a continued run goes on as it would have. A run that was interrupted within an epoch
    begins that epoch again.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: nn.Module,
        criterion: Criterion,
        training_data: DetectionDataset,
        validation: Validation,
        folder: RunFolder,
        clock: TrainingClock,
        display: Display,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.recipe = config, config.recipe
        self.criterion, self.validation, self.training_data = criterion, validation, training_data
        self.folder, self.clock, self.display = folder, clock, display
        self.accelerator = Accelerator()
        model = model.to(self.accelerator.device)
        self.average = MovingAverage(model, self.recipe.ema_decay) if self.recipe.ema_decay else None
        if config.recompute:
            recompute_layers(model)
        self.optimizer = build_optimizer(model, self.recipe)
        self.model, self.prepared_optimizer = self.accelerator.prepare(model, self.optimizer)
        self.loader = training_loader(
            training_data,
            config.preprocessing,
            augmentation_of(self.recipe),
            self.recipe.batch_size,
            config.seed,
            config.workers,
            rectangular=config.rectangular,
            cache=None if config.cache is None else parse_bytes(config.cache),
        )
        if self.loader.cache is not None:
            display.message(self.loader.cache.describe())
        self.position = Position()
        self.interruption = Interruption()
        self.lines: list[dict[str, Any]] = []
        self.callbacks = Callbacks([Events(folder.events), *callbacks])
        self.ended_by = ""  # who ended the training before its length was reached, in words
        self.best: Measured | None = None
        self.validated_at = -1  # the step whose weights were validated last
        self.validation_seconds: list[float] = []
        self.saving_seconds, self.saved_at = 0.0, time.monotonic()

    def run(self) -> Measured | None:
        """Train until the end, or until Ctrl-C; answers the best validation, None where it was cut short.

        After a first Ctrl-C the present step is ended and everything is saved and validated; a second one skips that
        validation.
        """
        on_cpu = self.accelerator.device.type == "cpu"
        with self.interruption, freed_memory_kept() if on_cpu else nullcontext():
            if self.position.step == 0:
                self._warm_up_trunk()
            while not self._finished():
                with explained_worker_deaths():
                    self._train_epoch()
            if self.interruption.requested:
                self.display.message("stopping: validating and saving (Ctrl-C again to skip the validation)")
            elif self.ended_by:
                self.display.message(f"stopping early: {self.ended_by}")
            self._save_last()
            try:
                self._validate()
            except KeyboardInterrupt:
                self.display.message("validation skipped")
            if not self.folder.best.exists():
                checkpoints.save(self.validation.detector(self._weights()), self.folder.best)
        return self.best

    def resume(self, state: TrainingState) -> None:
        """Put a saved state in place."""
        self._bare_model().load_state_dict(state.model)
        restore_optimizer(self.optimizer, self._bare_model(), state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.model.load_state_dict(state.average)
        facts = dict(state.facts)
        self.clock.used += facts.pop("used_seconds")
        self.position = Position(**facts)
        self.lines = [line for line in self.folder.read_metrics() if line["epoch"] <= self.position.epoch]
        self._end_where_stale()

    def _warm_up_trunk(self) -> None:
        """Let a trunk without weights learn from crops first, where the recipe gives it a share of the training."""
        model: Any = self._bare_model()
        share, backbone = self.recipe.trunk_warmup, model.backbone
        if share and not backbone.frozen and self.config.weights is None:
            self.display.message("the trunk has no weights: it first learns to tell crops of the objects apart")
            steps = share * (self.config.epochs or 0) * len(self.loader)

            def fraction(step: int) -> float:
                self.clock.prepared()
                if self.interruption.requested:
                    return 1.0
                return step / steps if self.config.epochs else self.clock.fraction / share

            def told(done: float, accuracy: float) -> None:
                left = None if self.clock.budget is None else self.clock.budget - self.clock.used
                self.display.step(Status(0, done * share, left, {"crops told apart": accuracy}, None))

            data, preprocessing = self.training_data, self.config.preprocessing
            warm_up_trunk(backbone, data, preprocessing, self.config.seed, fraction, told)
            if self.average is not None:
                self.average.update(self._bare_model(), step=0)
        self.position.warmed_up = self.clock.fraction

    def _train_epoch(self) -> None:
        """One pass over the training pictures, as far as the budget allows."""
        set_seed((self.config.seed * 1_000_003 + self.position.epoch) % 2**32)
        self.loader.set_epoch(self.position.epoch, self._fraction(0))
        self.model.train()
        means, whole = Means(), True
        for index, (images, targets) in enumerate(self.loader):
            if self.interruption.requested or not self.clock.allows_another_step():
                whole = False
                break
            fraction = self._fraction(index)
            set_rates(self.optimizer, rate_factor(self.recipe, fraction, self.position.step))
            losses = self._step(images, targets)
            means.add(losses)
            self.clock.step()
            self.display.step(self._status(self._fraction(index + 1), means.values()))
            self._tell_step(index, losses)
            if time.monotonic() - self.saved_at > LONGEST_UNSAVED:
                with self.clock.paused():
                    self._save_last()
        number = self.position.epoch + 1
        self.position.epoch += whole
        if means.count:
            self._end_epoch(number, means.values())

    def _step(self, images: ImageBatch, targets: list[Targets]) -> dict[str, float]:
        """One step of the optimiser; answers the loss and each term of the last decoder layer."""
        device = self.accelerator.device
        images, targets = images.to(device), [target.to(device) for target in targets]
        # Not accelerate's autocast: its precision is one for the whole process, not one for each training.
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
            predictions = self.model(images, targets)
        losses = self.criterion(in_full_precision(predictions), targets)
        total = self.criterion.total(losses)
        # one copy from the device for all that is told of the step
        loss, *terms = torch.stack((total, *(value[-1] for value in losses.values()))).detach().tolist()
        if not math.isfinite(loss):
            raise InputError(self._diverged(loss, targets))
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        self.position.step += 1
        self.position.pictures += len(targets)
        if self.average is not None:
            self.average.update(self._bare_model(), self.position.step)
        return {"loss": loss, **dict(zip(losses, terms, strict=True))}

    def _diverged(self, loss: float, targets: list[Targets]) -> str:
        pictures = ", ".join(str(target.image_id) for target in targets)
        return (
            f"the loss became {loss} in step {self.position.step + 1}, on the pictures with the ids {pictures}: lower "
            f"the rate (--set learning_rate={self.recipe.learning_rate / 4:g}), or look at the boxes of those pictures"
        )

    def _end_epoch(self, number: int, losses: dict[str, float]) -> None:
        """Validate where affordable, and write down how it went; `number` counts epochs from 1, a cut one included."""
        line = {
            "epoch": number,
            "step": self.position.step,
            "minutes": round(self.clock.used / 60, 4),
            "pictures": self.position.pictures,
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            **losses,
        }
        with self.clock.paused():
            last = self._finished()
            due = last or affordable(self.clock, sum(self.validation_seconds), self._expected_validation())
            measured = self._validate() if due and not self.interruption.requested else None
            self.lines.append(line | (measured.metrics.to_json() if measured else {}))
            self.folder.write_metrics(self.lines)
            self._tell_epoch(measured)
            if (time.monotonic() - self.saved_at) * SAVING_SHARE >= self.saving_seconds and not last:
                self._save_last()
        status = dataclasses.replace(self._status(self._fraction(0), losses), epoch=number)
        self.display.epoch(status, measured.metrics if measured else None)

    def _tell_step(self, index: int, losses: dict[str, float]) -> None:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        fraction = self._fraction(index + 1)
        self.callbacks.on_step(StepDone(self.position.step, self.position.epoch + 1, fraction, rate, losses))

    def _tell_epoch(self, measured: Measured | None) -> None:
        """Tell the callbacks; one of them, or the want of progress, may end the training."""
        if self.callbacks.on_epoch(EpochDone(self.lines[-1], measured.metrics if measured else None)):
            self.ended_by = "a callback asked for it"
        self._end_where_stale()

    def _end_where_stale(self) -> None:
        waited = validations_without_gain(self.lines)
        if self.config.patience is not None and waited >= self.config.patience:
            self.ended_by = f"no better AP in {waited} validations (patience)"

    def _validate(self) -> Measured | None:
        """Validate the present weights unless they have been, and keep them where they are the best so far."""
        if self.validated_at == self.position.step:
            return None
        started = time.monotonic()
        weights = self._weights()
        measured = self.validation.measure(weights)
        self.validated_at = self.position.step
        if measured.ap >= self.position.best_ap:
            self.position.best_ap, self.best = measured.ap, measured
            facts = {"epoch": self.position.epoch, "step": self.position.step, "validation": measured.metrics.to_json()}
            checkpoints.save(self.validation.detector(weights, measured), self.folder.best, training=facts)
        self.validation_seconds.append(time.monotonic() - started)
        return measured

    def _expected_validation(self) -> float:
        """Seconds that the next validation will take: as the last, at first as training on its pictures."""
        if self.validation_seconds:
            return self.validation_seconds[-1]
        return self.validation.num_views * self.clock.seconds_per_step / self.recipe.batch_size

    def _save_last(self) -> None:
        started = time.monotonic()
        model = self._bare_model()
        self.folder.save_last(
            TrainingState(
                model=model.state_dict(),
                optimizer=optimizer_tensors(self.optimizer, model),
                average=self.average.model.state_dict() if self.average else None,
                facts={**vars(self.position), "used_seconds": self.clock.used},
            )
        )
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - started

    def _finished(self) -> bool:
        if self.interruption.requested or self.ended_by:
            return True
        if self.config.epochs is not None:
            return self.position.epoch >= self.config.epochs
        return not self.clock.allows_another_step()

    def _fraction(self, index: int) -> float:
        """The part of the training that is done after `index` steps of the present epoch."""
        if self.config.epochs is None:
            start = min(self.position.warmed_up, 0.99)
            return max(0.0, (self.clock.fraction - start) / (1 - start))
        return min(1.0, (self.position.epoch + index / len(self.loader)) / self.config.epochs)

    def _status(self, fraction: float, losses: dict[str, float]) -> Status:
        if self.clock.budget is not None:
            left = max(0.0, self.clock.budget - self.clock.used)
        else:
            left = self.clock.used * (1 - fraction) / fraction if fraction else None
        ap = self.position.best_ap if self.position.best_ap >= 0 else None
        return Status(self.position.epoch + 1, fraction, left, losses, ap)

    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _weights(self) -> nn.Module:
        """The model to validate and keep: the moving average where there is one."""
        return self.average.model if self.average is not None else self._bare_model()


def augmentation_of(recipe: Recipe) -> Augmentation:
    """The recipe's part about how training pictures are varied."""
    return Augmentation(**{entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(Augmentation)})


def in_full_precision(predictions: Predictions) -> Predictions:
    """The predictions as float32, for losses that must not be computed in less."""
    encoder, denoising = predictions.encoder, predictions.denoising
    if encoder is not None:
        encoder = Proposals(encoder.logits.float(), encoder.boxes.float())
    if denoising is not None:
        denoising = dataclasses.replace(denoising, logits=denoising.logits.float(), boxes=denoising.boxes.float())
    return Predictions(predictions.logits.float(), predictions.boxes.float(), encoder, denoising)
