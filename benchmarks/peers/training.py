"""The loop that trains a detector of another package as the package's own are trained.

The same pictures, random changes, batch, clock, schedule and validation: what differs is the detector, its losses and
its learning rate. Validation is outside of the minutes, and the weights that were best on it are kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from detrove.data import DetectionDataset
from detrove.data.batching import training_loader
from detrove.evaluation import coco_metrics, coco_results, detect
from detrove.memory import freed_memory_kept
from detrove.models import catalogue
from detrove.nn.backbone import Backbone
from detrove.structures import Detections, ImageBatch, LabelMap, Preprocessing, Targets
from detrove.training.clock import TrainingClock
from detrove.training.optimizer import set_rates
from detrove.training.schedule import rate_factor
from detrove.training.trainer import augmentation_of
from detrove.training.validation import affordable

TRUNK = "mobilenetv2_100"
TRUNK_STRIDES = (8, 16, 32)
TRUNK_SHARE = 0.3
"""The trunk's learning rate, as a part of the rest's, about as in `detrove-nano` (papers: 0.1, for long trainings)."""
WEIGHT_DECAY = 1e-4
MODEL = "detrove-nano"
"""Whose batch, random changes and schedule all share."""


class Trunk(nn.Module):
    """detrove's own trunk, with its weights, for a detector that asks for maps alone; `channels` are theirs.

    Every BatchNorm is fixed, and the stem and first stage too. The norms are fixed by timm's own means, because timm's
    norms carry the activations: to replace them by norms alone, as Hugging Face's code does with any norm, loses these.
    """

    def __init__(self, weights: Path, strides: tuple[int, ...] = TRUNK_STRIDES) -> None:
        super().__init__()
        backbone = Backbone(TRUNK, strides)
        backbone.load(weights)
        self.body, self.indices, self.channels = backbone.body, backbone.indices, backbone.channels

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to maps (B, C, h, w), finest first; channels-last, the faster way on a CPU."""
        maps = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return [maps[index] for index in self.indices]


class Peer(Protocol):
    """A detector of another package: its module, the trunk within it, and how it is taught and asked."""

    preprocessing: Preprocessing
    label_map: LabelMap
    clip_norm: float
    module: nn.Module
    trunk: Trunk

    def loss(self, images: ImageBatch, targets: list[Targets]) -> Tensor:
        """What its own training minimises."""
        ...

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """Its detections in upright pictures, whatever their score, up to 100 in each."""
        ...


@dataclass
class Trained:
    """What became of a training: the best validation's COCO results, and how long it was.

    `curve` has a line for each validation: epoch, step, minutes, AP and AP50 and the mean loss since the last.
    """

    minutes: float = 0.0
    steps: int = 0
    diverged: bool = False
    best_ap: float = -1.0
    results: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)


class PeerTraining:
    """Trains `peer` at `rate` until the clock's budget is used; it then has the weights that validated best."""

    def __init__(
        self,
        peer: Peer,
        training: DetectionDataset,
        validation: DetectionDataset,
        rate: float,
        seed: int,
        clock: TrainingClock,
    ) -> None:
        recipe = catalogue.preset(MODEL).recipe
        self.peer, self.validation, self.clock, self.batch_size = peer, validation, clock, recipe.batch_size
        self.loader = training_loader(
            training, peer.preprocessing, augmentation_of(recipe), recipe.batch_size, seed, smallest=2
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(peer, rate), fused=True)
        self.recipe = recipe
        self.trained, self.best = Trained(), copy.deepcopy(peer.module.state_dict())
        self.validation_seconds: list[float] = []

    def run(self) -> Trained:
        """Epochs of steps, and a validation after the last and whenever a tenth of the time so far pays for it."""
        self.clock.prepared()
        epoch = 0
        with freed_memory_kept():
            while self.clock.allows_another_step() and not self.trained.diverged:
                loss = self._train_epoch(epoch)
                epoch += 1
                if not self.trained.diverged and self._may_validate():
                    self._validate(epoch, loss)
        self.peer.module.load_state_dict(self.best)
        self.trained.minutes = self.clock.used / 60
        return self.trained

    def _train_epoch(self, epoch: int) -> float:
        """The mean loss of one pass over the pictures, or of what the budget allows of it."""
        losses: list[float] = []
        self.peer.module.train()
        self.loader.set_epoch(epoch, self.clock.fraction)
        for images, targets in self.loader:
            if not self.clock.allows_another_step():
                break
            set_rates(self.optimizer, rate_factor(self.recipe, self.clock.fraction, self.trained.steps))
            losses.append(step(self.peer, self.optimizer, images, targets))
            self.clock.step()
            self.trained.steps += 1
            if not math.isfinite(losses[-1]):
                self.trained.diverged = True
                break
        return sum(losses) / max(1, len(losses))

    def _may_validate(self) -> bool:
        if not self.clock.allows_another_step():
            return True
        expected = len(self.validation) * self.clock.seconds_per_step / self.batch_size
        expected = self.validation_seconds[-1] if self.validation_seconds else expected
        return affordable(self.clock, sum(self.validation_seconds), expected)

    def _validate(self, epoch: int, loss: float) -> None:
        """Measure, outside of the minutes, and keep what is best."""
        started = time.monotonic()
        with self.clock.paused():
            results, metrics = measure(self.peer, self.validation, self.batch_size)
            ap, ap50 = metrics.ap or 0.0, metrics.ap50 or 0.0
            minutes = self.clock.used / 60
            line = {
                "epoch": epoch,
                "step": self.trained.steps,
                "minutes": minutes,
                "loss": loss,
                "ap": ap,
                "ap50": ap50,
            }
            self.trained.curve.append(line)
            print({key: round(value, 4) for key, value in line.items()}, flush=True)
            if ap >= self.trained.best_ap:
                self.trained.best_ap, self.trained.results = ap, results
                self.best = copy.deepcopy(self.peer.module.state_dict())
        self.validation_seconds.append(time.monotonic() - started)


def step(peer: Peer, optimizer: torch.optim.Optimizer, images: ImageBatch, targets: list[Targets]) -> float:
    """One step of the optimiser; the loss, nan where it or the gradient is no number: then nothing is changed."""
    loss = peer.loss(images, targets)
    if not loss.isfinite():
        return math.nan
    optimizer.zero_grad()
    loss.backward()
    if not clip_grad_norm_(peer.module.parameters(), peer.clip_norm).isfinite():
        return math.nan
    optimizer.step()
    return loss.item()


def measure(peer: Peer, data: DetectionDataset, batch_size: int) -> tuple[list[dict[str, Any]], Any]:
    """COCO results in all pictures of a data set, and their metrics."""
    peer.module.eval()
    truth = data.ground_truth()
    with torch.inference_mode():
        results = coco_results(detect(peer, data, batch_size), truth)
    return results, coco_metrics(truth, results)


def parameter_groups(peer: Peer, rate: float) -> list[dict[str, Any]]:
    """The parameters that learn, the trunk's at its share of the rate; no decay for what has one dimension."""
    of_trunk = {id(parameter) for parameter in peer.trunk.parameters()}
    groups = []
    for in_trunk in (False, True):
        for flat in (False, True):
            chosen = [
                parameter
                for parameter in peer.module.parameters()
                if parameter.requires_grad and (id(parameter) in of_trunk) == in_trunk and (parameter.ndim < 2) == flat
            ]
            own = rate * (TRUNK_SHARE if in_trunk else 1.0)
            decay = 0.0 if flat else WEIGHT_DECAY
            groups.append({"params": chosen, "lr": own, "initial_lr": own, "weight_decay": decay})
    return [group for group in groups if group["params"]]
