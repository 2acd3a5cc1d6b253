"""What each of two processes does that a launcher started: `torchrun --nproc-per-node 2 two_processes.py DATA OUTPUT`.

The test imports it too, and does the same alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from torch import nn

from detrove.models import catalogue
from detrove.training import TrainingConfig, run
from detrove.training.callbacks import StepDone
from detrove.training.clock import TrainingClock
from detrove.training.processes import Processes
from detrove.training.progress import SilentDisplay
from detrove.training.run_folder import RunFolder
from detrove.training.trainer import Trainer

training = importlib.import_module("detrove.training.train")

TOY = {
    "model.backbone": "test_resnet",
    "model.backbone_frozen": True,  # a live BatchNorm has each process's own means
    "model.dim": 32,
    "model.num_heads": 4,
    "model.feedforward_dim": 64,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 8,
    "model.dropout": 0.0,
    "learning_rate": 1e-3,
    "backbone_learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "step",
    "drop_at": 1.0,
    "warmup": 0,
    "crop": 0.0,
    "scale": [1.0, 1.0],  # pictures of equal size: DAB-DETR's answers depend on padding a little
    "workers": 0,
    "preflight": False,
}
EPOCHS = {"dab-nano": 17, "detr-nano": 2, "dn-dab-nano": 2}
"""Three steps each, computed in float64."""
EMPTY = ("detr-nano", "dn-dab-nano", "deformable-nano", "dino-nano", "detrove-nano")
"""Trained where hardly a picture has an object."""


def make_config(data: Path, output: Path, model: str, epochs: int, batch_size: int = 4, **settings: Any) -> Any:
    """A training of a toy form."""
    preset = catalogue.preset(model)
    known = {f"model.{name}" for name in vars(preset.config)}
    toy = {key: value for key, value in TOY.items() if not key.startswith("model.") or key in known}
    values = {"data": str(data), "output": str(output), "model": model, "epochs": epochs}
    return TrainingConfig.from_preset(preset, settings={**toy, **settings}, size=64, batch_size=batch_size, **values)


class Losses:
    """Hears the losses of every step."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []

    def on_step(self, event: StepDone) -> None:
        """Write them down."""
        self.told.append(dict(event.losses))


def prepare(config: TrainingConfig, losses: Losses, double: bool) -> Trainer:
    """A trainer that has not begun, its model in float64 where asked for; it never validates."""
    processes, build = Processes(), training.build_model

    def build_double(*arguments: Any) -> tuple[nn.Module, None]:
        return build(*arguments)[0].double(), None

    folder = RunFolder(Path(config.output), writing=processes.main)
    with mock.patch.object(training, "build_model", build_double if double else build):
        clock, display = TrainingClock(), SilentDisplay()
        trainer = training._prepare(config, folder, clock, display, [losses], processes, state=None)
    trainer._validate = lambda: None
    return trainer


def train_without_validation(config: TrainingConfig, double: bool) -> tuple[Trainer, list[dict[str, float]]]:
    """The trainer after all its steps, and the losses of each, which only the main process hears."""
    losses = Losses()
    trainer = prepare(config, losses, double)
    while trainer.position.epoch < (config.epochs or 0):
        trainer._train_epoch()
    return trainer, losses.told


def digest(model: nn.Module) -> str:
    """The same for the same weights."""
    content = b"".join(value.detach().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(content).hexdigest()


def write_data(folder: Path, split: str, boxes: list[int], seed: int) -> None:
    """Pictures of one size with so many red or blue squares each, as COCO JSON."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image_id, number in enumerate(boxes, start=1):
        pixels = generator.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        for _ in range(number):
            category, side = int(generator.integers(1, 3)), int(generator.integers(14, 26))
            x, y = (int(value) for value in generator.integers(0, 64 - side, size=2))
            pixels[y : y + side, x : x + side] = (220, 20, 20) if category == 1 else (20, 20, 220)
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **box})
        Image.fromarray(pixels).save(folder / split / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 64, "height": 64})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def main(data: Path, output: Path) -> None:
    """All trainings, one after the other; what this process has in the end goes to OUTPUT/RANK.json."""
    digests, losses = {}, {}
    for model, epochs in EPOCHS.items():
        config = make_config(data, output / model, model, epochs)
        trainer, losses[model] = train_without_validation(config, double=True)
        digests[model] = digest(trainer._bare_model())
    for model in EMPTY:
        settings = {"train_split": "sparse", "model.dim": 64}  # enough for the groups of a norm on a single cell
        config = make_config(data, output / f"empty-{model}", model, 1, batch_size=2, **settings)
        trainer, _ = train_without_validation(config, double=False)
        digests[f"empty-{model}"] = digest(trainer._bare_model())
    metrics = run(make_config(data, output / "validated", "detr-nano", 1), progress=False).metrics
    assert metrics is not None
    result = {"digests": digests, "losses": losses, "metrics": metrics.to_json()}
    (output / f"{Processes().index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
