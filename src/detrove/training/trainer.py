"""The training loop: epochs of steps until the length or the clock's budget is reached, validation, the run folder."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from detrove import checkpoints
from detrove.data.batching import explained_worker_deaths, training_loader
from detrove.data.cache import parse_bytes
from detrove.data.dataset import DetectionDataset
from detrove.data.transforms import Augmentation
from detrove.errors import InputError, NotFiniteError
from detrove.inference import load
from detrove.losses.criterion import Criterion, count_boxes
from detrove.memory import freed_memory_kept
from detrove.models.preset import Recipe
from detrove.nn.recompute import recompute_layers
from detrove.structures import ImageBatch, Predictions, Proposals, Targets
from detrove.training.callbacks import Callback, Callbacks, EpochDone, StepDone, validations_without_gain
from detrove.training.clock import TrainingClock
from detrove.training.config import TrainingConfig
from detrove.training.ema import MovingAverage
from detrove.training.events import Events
from detrove.training.finiteness import Finiteness
from detrove.training.interruption import Interruption
from detrove.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer, set_rates
from detrove.training.parts import parts_of
from detrove.training.processes import Processes, processes_here
from detrove.training.progress import Display, Status
from detrove.training.run_folder import RunFolder, TrainingState
from detrove.training.schedule import rate_factor
from detrove.training.side_by_side import SideBySide, possible_parts
from detrove.training.trunk_warmup import warm_up_trunk
from detrove.training.validation import Measured, Validation, affordable
from detrove.training.watch import Watch

SAVING_SHARE = 0.05  # of the time since, spent on saving the state to continue from
LONGEST_UNSAVED = 600.0  # seconds, where an epoch takes longer than that
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Position:
    """How far a training has come: whole `epoch`s, `index` steps of the present one, and in all `step`s and `pictures`.

    `rate` is what the last step's learning rates were multiplied by, `best_ap` the best validation AP (-1: none).
    `trunk_ready` says that the trunk has had what it learns by itself,
    `warmed_up` is the part of the clock's budget that went before the first step, into that and into preparation.
    """

    epoch: int = 0
    index: int = 0
    step: int = 0
    pictures: int = 0
    rate: float = 1.0
    best_ap: float = -1.0
    trunk_ready: bool = False
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

    def state(self) -> dict[str, Any]:
        """What `restore` needs: plain numbers."""
        return {"sums": dict(self.sums), "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier part of the run."""
        self.sums.update(state["sums"])
        self.count = state["count"]


class Trainer:
    """Trains `model` and fills the run folder; `run()` does it all.

    The state to continue from is taken between two steps. A step draws all its randomness from the run's seed and its
    own number, and so do its pictures, so that a continued run goes on as it would have, bit for bit on a CPU where the
    length is in epochs and the number of threads stays.

    Several `processes` each take their share of every batch; the main one's clock and Ctrl-C decide for all, and only
    it writes and tells.
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
        processes: Processes | None = None,
    ) -> None:
        self.config, self.recipe = config, config.recipe
        self.criterion, self.validation, self.training_data = criterion, validation, training_data
        self.folder, self.clock, self.display = folder, clock, display
        self.processes = processes or Processes()
        self.accelerator, self.device = self.processes.accelerator, self.processes.device
        model = model.to(self.device)
        self.dtype = next(model.parameters()).dtype
        self.average = MovingAverage(model, self.recipe.ema_decay) if self.recipe.ema_decay else None
        if config.recompute:
            recompute_layers(model)
        if config.compile:
            model.compile()
        self.optimizer = build_optimizer(model, self.recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.mixed_precision == "fp16")
        self.model = self.accelerator.prepare(model)
        self.side_by_side = self._side_by_side(model)
        num_parts = self.processes.number * config.accumulate
        if min(self.recipe.batch_size, len(training_data)) < num_parts:
            raise InputError(
                f"a step of {min(self.recipe.batch_size, len(training_data))} pictures cannot be shared by "
                f"{self.processes.number} processes in {config.accumulate} parts each: use fewer (--devices, --set "
                "accumulate), or a larger --batch-size where there are more pictures"
            )
        self.loader = training_loader(
            training_data,
            config.preprocessing,
            augmentation_of(self.recipe),
            self.recipe.batch_size,
            config.seed,
            config.workers,
            self.processes.index,
            self.processes.number,
            rectangular=config.rectangular,
            cache=None if config.cache is None else parse_bytes(config.cache) // processes_here(),
            smallest=max(2, num_parts),
        )
        if self.loader.cache is not None:
            display.message(self.loader.cache.describe())
        self.position, self.means = Position(), Means()
        self.interruption = Interruption()
        self.lines: list[dict[str, Any]] = []
        self.callbacks = Callbacks([Events(folder.events), *callbacks] if self.processes.main else [])
        self.finiteness = Finiteness(
            config.on_nonfinite, training_data, self.recipe.learning_rate, self.processes.number
        )
        self.watch = Watch(validation, criterion)
        self.watched: dict[str, Any] = {}  # what it saw last
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
        on_cpu = self.device.type == "cpu"
        threads = nullcontext() if self.side_by_side is None else closing(self.side_by_side)
        with self.interruption, threads, freed_memory_kept() if on_cpu else nullcontext():
            if not self.position.trunk_ready:
                self._warm_up_trunk()
            while not self._finished():
                with explained_worker_deaths():
                    self._train_epoch()
            if self.interruption.requested:
                self.display.message("stopping: validating and saving (Ctrl-C again to skip the validation)")
            elif self.ended_by:
                self.display.message(f"stopping early: {self.ended_by}")
            if self.position.trunk_ready:  # one that has learned by half begins anew
                self._save_last()
            best_ap = self.position.best_ap
            try:
                self._add_to_last_line(self._validate())
            except KeyboardInterrupt:
                if self.processes.number > 1:  # the others wait for what this one will not do
                    raise
                self.display.message("validation skipped")
            if self.position.best_ap > best_ap and self.position.trunk_ready:
                self._save_last()
            if self.processes.main and not self.folder.best.exists():
                checkpoints.save(self.validation.detector(self._weights()), self.folder.best)
        return self.best

    def _side_by_side(self, model: nn.Module) -> SideBySide | None:
        """Threads for the parts of a step, where the recipe has them and the model and the machine allow it."""
        config = self.config
        alone = self.processes.number == 1 and self.device.type == "cpu"
        otherwise = config.accumulate > 1 or config.compile or config.recompute or self.scaler.is_enabled()
        if not self.recipe.side_by_side or not alone or otherwise:
            return None
        parts = possible_parts(model, min(self.recipe.batch_size, len(self.training_data)))
        return SideBySide(parts) if parts > 1 else None

    def resume(self, state: TrainingState) -> None:
        """Put a saved state in place."""
        self._bare_model().load_state_dict(state.model)
        restore_optimizer(self.optimizer, self._bare_model(), state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.model.load_state_dict(state.average)
        facts = state.facts
        self.clock.restore(facts["clock"])
        self.means.restore(facts["means"])
        self.validation_seconds = facts["validation_seconds"]
        self.watch.restore(facts["watch"])
        self.finiteness.restore(facts["finiteness"])
        self.scaler.load_state_dict(facts["scaler"])
        self.position = Position(**{entry.name: facts[entry.name] for entry in dataclasses.fields(Position)})
        set_rates(self.optimizer, self.position.rate)
        self.lines = [line for line in self.folder.read_metrics() if line["epoch"] <= self.position.epoch]
        self._end_where_stale()

    def measure_best(self) -> Measured:
        """Validate the best weights again, which an earlier part of the run has found; the present ones are lost."""
        weights = self._weights()
        if self.processes.main:
            weights.load_state_dict(load(self.folder.path).model.state_dict())
        self.processes.align(weights)
        return self.validation.measure(weights, self.processes)

    def _warm_up_trunk(self) -> None:
        """Let a trunk without weights learn from crops first, where the recipe gives it a share of the training."""
        model: Any = self._bare_model()
        share, backbone = self.recipe.trunk_warmup, model.backbone
        learns = bool(share) and not backbone.frozen and self.config.weights is None
        if learns:
            self.display.message("the trunk has no weights: it first learns to tell crops of the objects apart")
            torch.manual_seed(self.config.seed)
            steps = share * (self.config.epochs or 0) * len(self.loader)

            def fraction(step: int) -> float:
                self.clock.prepared()
                done = step / steps if self.config.epochs else self.clock.fraction / share
                return self.processes.of_main(1.0 if self.interruption.requested else done)[0]

            def told(done: float, accuracy: float) -> None:
                left = None if self.clock.budget is None else self.clock.budget - self.clock.used
                self.display.step(Status(0, done * share, left, {"crops told apart": accuracy}, None))

            data, preprocessing = self.training_data, self.config.preprocessing
            warm_up_trunk(backbone, data, preprocessing, self.config.seed, fraction, told)
            self.optimizer.zero_grad()  # of what it learned from last
            self.processes.align(backbone)
            if self.average is not None:
                self.average.update(self._bare_model(), step=0)
            if self.interruption.requested:
                return
        self.position.trunk_ready, self.position.warmed_up = True, self.clock.fraction
        if learns:
            with self.clock.paused():
                self._save_last()

    def _train_epoch(self) -> None:
        """One pass over the training pictures, or what is left of it, as far as the budget allows."""
        [done] = self.processes.of_main(self._fraction(0))
        self.loader.set_epoch(self.position.epoch, done, self.position.index)
        self.model.train()
        whole = True
        for images, targets in self.loader:
            goes_on = self.clock.allows_another_step() and not self.interruption.requested
            goes_on, fraction = self.processes.of_main(goes_on, self._fraction(self.position.index))
            if not goes_on:
                whole = False
                break
            seed_step(self.config.seed, self.position.step, self.processes.index)
            self.position.rate = rate_factor(self.recipe, fraction, self.position.step)
            set_rates(self.optimizer, self.position.rate)
            losses = self._step(images, targets)
            if losses is not None:
                self.means.add(losses)
            self.position.index += 1
            self.clock.step()
            self.display.step(self._status(self._fraction(self.position.index), self.means.values()))
            if losses is not None:
                self._tell_step(losses)
            if time.monotonic() - self.saved_at > LONGEST_UNSAVED:
                with self.clock.paused():
                    self._save_last()
        number, losses = self.position.epoch + 1, self.means.values()
        if whole:
            self.position.epoch, self.position.index, self.means = number, 0, Means()
        if losses:
            self._end_epoch(number, losses)

    def _step(self, images: ImageBatch, targets: list[Targets]) -> dict[str, float] | None:
        """One step of the optimiser: the loss and each term of the last decoder layer, over all processes.

        None where the step was skipped.
        """
        put_back = self.finiteness.keep_buffers(self._bare_model())
        try:
            computed = (self._backward_at_once if self.side_by_side else self._backward)(images, targets)
        except NotFiniteError:
            return self._lost("the loss became nan", images, targets, put_back)
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        names = ["loss", *computed[0][1]]
        sums = [torch.stack((total, *(value[-1] for value in losses.values()))) for total, losses in computed]
        # one copy from the device for all that is told of the step
        told = torch.cat((torch.stack(sums).mean(dim=0), sums[0].new_tensor([len(targets)]), norm[None]))
        *means, pictures, norm = self.processes.mean(told).tolist()
        if not math.isfinite(means[0]):
            self.scaler.update()
            return self._lost(f"the loss became {means[0]}", images, targets, put_back)
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # it skips such a step by itself
            return self._lost(f"the gradient became {norm}", images, targets, put_back)
        self.finiteness.passed()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.position.step += 1
        self.position.pictures += round(pictures * self.processes.number)
        if self.average is not None:
            self.average.update(self._bare_model(), self.position.step)
        return dict(zip(names, means, strict=True))

    def _backward(self, images: ImageBatch, targets: list[Targets]) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Leave the step's gradients in the parameters, part by part; each part's total loss and terms, detached."""
        num_parts, computed = self.config.accumulate, []
        num_boxes = count_boxes(targets) / num_parts
        for number, part in enumerate(parts_of(images, targets, num_parts), start=1):
            with nullcontext() if number == num_parts else self.accelerator.no_sync(self.model):
                total, losses = self._losses(self.model, *part, num_boxes)
                self.scaler.scale(total / num_parts).backward()
            computed.append((total.detach(), {name: value.detach() for name, value in losses.items()}))
        return computed

    def _backward_at_once(self, images: ImageBatch, targets: list[Targets]) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """As `_backward`, the parts side by side."""
        assert self.side_by_side is not None
        num_boxes = count_boxes(targets) / min(self.side_by_side.number, len(targets))
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

        def compute(images: ImageBatch, targets: list[Targets]) -> tuple[Tensor, dict[str, Tensor]]:
            return self._losses(self.model, images, targets, num_boxes)

        return self.side_by_side.backward(compute, parameters, images, targets)

    def _losses(
        self, model: nn.Module, images: ImageBatch, targets: list[Targets], num_boxes: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum that is minimised, and its terms, of pictures that may be a part of a step."""
        images, targets = images.to(self.device, self.dtype), [target.to(self.device) for target in targets]
        return losses_of(model, self.criterion, self.config.mixed_precision, images, targets, num_boxes)

    def _lost(self, what: str, images: ImageBatch, targets: list[Targets], put_back: Callable[[], None]) -> None:
        """A step that lost its numbers ends the training or is skipped, and then leaves no trace in the model."""
        put_back()
        self.optimizer.zero_grad()
        model = self._bare_model()
        told = self.finiteness.failed(
            what, self.position.step + 1, model, lambda x, y: self._losses(model, x, y)[0], images, targets
        )
        if told:
            self.display.message(told)
        self.position.step += 1

    def _end_epoch(self, number: int, losses: dict[str, float]) -> None:
        """Validate where affordable, and write down how it went; `number` counts epochs from 1, a cut one included."""
        line = {
            "epoch": number,
            "step": self.position.step,
            "minutes": round(self.clock.used / 60, 4),
            "pictures": self.position.pictures,
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            **losses,
            **self.finiteness.told_of_epoch(),
        }
        with self.clock.paused():
            last = self._finished()
            due = last or affordable(self.clock, sum(self.validation_seconds), self._expected_validation())
            [due] = self.processes.of_main(due and not self.interruption.requested)
            measured = self._validate() if due else None
            self.lines.append(line | self._told_of(measured))
            self.folder.write_metrics(self.lines)
            self._tell_epoch(measured)
            if (time.monotonic() - self.saved_at) * SAVING_SHARE >= self.saving_seconds and not last:
                self._save_last()
        status = dataclasses.replace(self._status(self._fraction(0), losses), epoch=number)
        self.display.epoch(status, measured.metrics if measured else None)

    def _tell_step(self, losses: dict[str, float]) -> None:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        fraction = self._fraction(self.position.index)
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
        self.processes.align(weights)  # running means of live norms are each process's own
        measured = self.validation.measure(weights, self.processes)
        if self.processes.main:
            self.watched = self.watch.look(weights)
            if "alarm" in self.watched:
                self.display.message(f"alarm: {self.watched['alarm']}")
        self.validated_at = self.position.step
        if measured.ap >= self.position.best_ap:
            self.position.best_ap, self.best = measured.ap, measured
            facts = {"epoch": self.position.epoch, "step": self.position.step, "validation": measured.metrics.to_json()}
            if self.processes.main:
                checkpoints.save(self.validation.detector(weights, measured), self.folder.best, training=facts)
        self.validation_seconds.append(time.monotonic() - started)
        return measured

    def _add_to_last_line(self, measured: Measured | None) -> None:
        """A validation after the last epoch's line was written stands in that line."""
        if measured is not None and self.lines and self.lines[-1]["step"] == self.position.step:
            self.lines[-1] |= self._told_of(measured)
            self.folder.write_metrics(self.lines)

    def _told_of(self, measured: Measured | None) -> dict[str, Any]:
        """What a line of metrics.jsonl says of a validation."""
        return {} if measured is None else measured.metrics.to_json() | {"watch": self.watched}

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
                facts={
                    **vars(self.position),
                    "begun_with": {
                        "trunk_frozen": model.get_submodule("backbone").frozen,
                        "num_pictures": len(self.training_data),
                        "classes": self.training_data.label_map.names,
                    },
                    "means": self.means.state(),
                    "clock": self.clock.state(),
                    "validation_seconds": self.validation_seconds,
                    "watch": self.watch.state(),
                    "finiteness": self.finiteness.state(),
                    "scaler": self.scaler.state_dict(),
                },
            )
        )
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - started

    def _finished(self) -> bool:
        finished = bool(self.interruption.requested or self.ended_by)
        if self.config.epochs is not None:
            finished |= self.position.epoch >= self.config.epochs
        else:
            finished |= not self.clock.allows_another_step()
        return bool(self.processes.of_main(finished)[0])

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


def seed_step(seed: int, step: int, process: int) -> None:
    """Let a step's randomness depend on the run's seed, its own number and the process alone."""
    [drawn] = np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))


def augmentation_of(recipe: Recipe) -> Augmentation:
    """The recipe's part about how training pictures are varied."""
    return Augmentation(**{entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(Augmentation)})


def losses_of(
    model: nn.Module,
    criterion: Criterion,
    mixed_precision: str,
    images: ImageBatch,
    targets: list[Targets],
    num_boxes: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum that is minimised, and its terms, of pictures that may be a part of a step (`Criterion`)."""
    precision = AUTOCAST.get(mixed_precision)
    # Not accelerate's autocast: its precision is one for the whole process, not one for each training.
    with torch.autocast(images.pixels.device.type, precision, enabled=precision is not None):
        predictions = model(images, targets)
    losses = criterion(in_full_precision(predictions), targets, num_boxes)
    return criterion.total(losses), losses


def in_full_precision(predictions: Predictions) -> Predictions:
    """The predictions as float32 where they are less: losses must not be computed in that."""
    encoder, denoising = predictions.encoder, predictions.denoising
    if encoder is not None:
        encoder = Proposals(_widened(encoder.logits), _widened(encoder.boxes))
    if denoising is not None:
        denoising = dataclasses.replace(denoising, logits=_widened(denoising.logits), boxes=_widened(denoising.boxes))
    return Predictions(_widened(predictions.logits), _widened(predictions.boxes), encoder, denoising)


def _widened(values: Tensor) -> Tensor:
    return values.float() if values.dtype in AUTOCAST.values() else values
