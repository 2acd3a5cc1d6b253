"""Does each paper of the family learn faster than the one before it, and does its attention show why?

Trains the small sisters of DETR, Conditional DETR, DAB-DETR, DN-DETR, Deformable DETR, DINO and Stacked DETR on the
generated scenes at 128 pixels, three seeds each. They share the trunk and its weights, pictures and their order, batch,
width, queries, number of layers, schedule, rate and number of epochs; what differs is what the papers differ in. Tells
AP against epochs and against minutes, the size of objects for Stacked DETR beside DETR, and where decoders look: which
part of a matched query's attention falls into its object's box, and how far from its centre attention falls.

The trunk is no part of the argument and would take most of the time. So it is fitted to the scenes once, from ImageNet
weights, inside detrove-nano; then it is frozen, and what it makes of every picture is kept for all arms. Minutes are
those of everything behind the trunk, and of the processor: an arm has one thread, and what else the machine does in the
meantime changes nothing.

    python benchmarks/family_argument.py ../shared --output runs/family

Each arm is a process with one thread of computation, `--processes` of them at a time. A finished arm leaves
`OUTPUT/ARM-SEED.json` and is not run again; table.md and figure.png are made of all that are asked for and there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from detrove.boxes import cxcywh_to_xyxy
from detrove.checkpoints.files import write_atomically
from detrove.data import DetectionDataset, open_dataset
from detrove.data.batching import training_loader
from detrove.data.scenes import make_scenes
from detrove.data.transforms import Augmentation
from detrove.losses.matcher import match
from detrove.models import catalogue
from detrove.nn.backbone import Backbone, Level, resize_mask
from detrove.nn.recording import DenseAttention, SampledAttention, recording
from detrove.structures import ImageBatch, Preprocessing, Targets
from detrove.training import train
from detrove.training.clock import TrainingClock
from detrove.training.config import TrainingConfig
from detrove.training.held_out import open_splits
from detrove.training.processes import Processes
from detrove.training.progress import make_display
from detrove.training.run_folder import RunFolder
from detrove.training.train import build_model
from detrove.training.trainer import Trainer
from detrove.training.validation import Measured, Validation

SIZE, EPOCHS, SEEDS = 128, 4, (0, 1, 2)
PICTURES = {"train": 4000, "val": 300, "test": 1}
TRUNK, MAPS = "trunk.safetensors", "maps.pt"
TRUNK_NAME, TRUNK_EPOCHS = "mobilenetv2_100", 2
LOOKED_AT = 64
"""Validation pictures in which attention is measured."""
PASSED = 0.3
"""The AP50 from which on a detector counts as one that has begun to detect."""

SHARED: dict[str, Any] = {
    "model.num_queries": 30,
    "model.dropout": 0.0,
    "model.feedforward_dim": 256,
    "learning_rate": 4e-4,
    "backbone_learning_rate": 2e-4,
    "clip_norm": 0.1,
    "batch_size": 4,
    "schedule": "cosine",
    "final_rate": 0.01,
    "warmup": 100,
    "decay_norms_and_biases": False,
    "horizontal_flip": 0.0,
    "crop": 0.0,
    "scale": [1.0, 1.0],
    "workers": 0,
    "cache": "1GB",
}
"""What all arms have in common. No picture is changed, so that the trunk's maps can be kept."""
LAYERS = {"model.num_encoder_layers": 1, "model.num_decoder_layers": 3}
STACKED_LAYERS = {"model.num_encoder_layers": [1, 1], "model.num_decoder_layers": [2, 1]}
STRIDES_16_TO_64 = {"model.strides": [16, 32], "model.num_levels": 3}
THREE_GROUPS = {"groups": 3, "label_noise": 0.2, "box_noise": 0.4, "contrastive": False, "num_queries": 0}
THREE_CONTRASTIVE_GROUPS = THREE_GROUPS | {"label_noise": 0.25, "contrastive": True}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr-nano", LAYERS),
    "conditional": ("conditional-nano", LAYERS),
    "dab": ("dab-nano", LAYERS),
    "dn-dab": ("dn-dab-nano", LAYERS | {"model.denoising": THREE_GROUPS}),
    "deformable": ("deformable-nano", LAYERS | STRIDES_16_TO_64),
    "dino": ("dino-nano", LAYERS | STRIDES_16_TO_64 | {"model.denoising": THREE_CONTRASTIVE_GROUPS}),
    "detr-coarse": ("detr-nano", LAYERS | {"model.num_encoder_layers": 2}),
    "stacked": ("stacked-nano", STACKED_LAYERS),
}
"""Preset and own settings of each. One encoder layer, three of the decoder, and stride 16 as the finest: 4 x 3 cells of
stride 32 are too few for up to eight objects, strides from 8 on would cost the deformable ones several times the
others' minutes. The last two are compared with each other: DETR on stride 32 alone, and Stacked DETR on 32 and then 16,
with as many layers in all. Three groups of denoising, fewer than published, because there are only 30 queries."""
CLASS_WEIGHT_2: dict[str, Any] = {"model.class_weight": 2.0}
TWO_COORDINATES: dict[str, Any] = {"model.num_coordinates": 2, "model.modulate": False}
FAST_ANCHORS: dict[str, Any] = {"slow_parameters": ["anchors"], "slow_factor": 30.0}
"""Anchors are bare parameters, which AdamW moves by a learning rate a step at most: a logit by 0.8 in all 4,000 steps.
The points of Conditional and Deformable DETR come out of a layer, all of whose weights move them."""
PROBES: dict[str, tuple[str, dict[str, Any]]] = {
    "dab-one-temperature": ("dab-nano", LAYERS | {"model.temperature": 10000.0}),
    "dab-class-weight-2": ("dab-nano", LAYERS | CLASS_WEIGHT_2),
    "dab-unmodulated": ("dab-nano", LAYERS | {"model.modulate": False}),
    "dab-two-coordinates": ("dab-nano", LAYERS | TWO_COORDINATES),
    "dab-two-coordinates-class-weight-2": ("dab-nano", LAYERS | TWO_COORDINATES | CLASS_WEIGHT_2),
    "dab-fast-anchors": ("dab-nano", LAYERS | FAST_ANCHORS),
    "dab-fast-anchors-class-weight-2": ("dab-nano", LAYERS | FAST_ANCHORS | CLASS_WEIGHT_2),
}
"""Arms that ask why DAB-DETR comes out below Conditional DETR here, each some settings nearer to it; run where named.
The published DAB-DETR writes the picture's positions at temperature 20 and its anchors' at 10000: the two do not match
until projections have learned to translate."""
ON_STRIDE_16 = ("detr", "conditional", "dab", "dn-dab", *PROBES)
"""Arms on one level that read the trunk's stride 16 in place of 32, through a projection of that width. Dilating the
last stage instead, as DC5 does, spoils a trunk that was not trained so: DETR's AP50 was 0.06 after seven epochs."""
SIZED = ("detr-coarse", "stacked")
PUBLISHED = ("detr", "conditional", "dab", "dn-dab", "dino")
ORDER = (*itertools.pairwise(PUBLISHED), ("dab", "deformable"), ("deformable", "dino"))
"""The published order, as pairs: the second is above the first. Nothing is said about DN and Deformable."""


# --- the trunk -------------------------------------------------------------------------------------------------------


def make_trunk(scenes: Path, imagenet: Path, output: Path) -> None:
    """Fit the trunk to the scenes once, inside the detector of the package, and keep what it makes of every picture."""
    trunk = output / TRUNK
    if not trunk.exists():
        run = train(
            scenes,
            model="detrove-nano",
            output=output / "trunk-run",
            epochs=TRUNK_EPOCHS,
            size=SIZE,
            backbone_weights=imagenet,
            settings={"model.num_queries": 60, "crop": 0.0, "workers": 0, "cache": "1GB"},
            progress=False,
        )
        body = run.detector.model.get_submodule("backbone.body")
        write_atomically(trunk, save({name: value.contiguous() for name, value in body.state_dict().items()}))
    if not (output / MAPS).exists():
        torch.save(maps_of_all(scenes, trunk), output / MAPS)


def maps_of_all(scenes: Path, weights: Path) -> dict[str, list[Tensor]]:
    """The trunk's maps of all pictures that any arm will see."""
    remembered = Remembered(load_trunk(weights), {})
    for split in ("train", "val"):
        data = open_dataset(scenes, split)
        for images, _ in training_loader(data, Preprocessing(longer=SIZE), Augmentation(), batch_size=16, workers=0):
            remembered(images)
    return remembered.maps


def load_trunk(weights: Path) -> Backbone:
    """The trunk with all the levels that any arm asks for."""
    trunk = Backbone(TRUNK_NAME, strides=(16, 32))
    trunk.load(weights)
    return trunk.eval()


class Remembered:
    """A frozen trunk that computes its maps of a picture once: `maps` by the picture's own pixels.

    Each picture is alone on a canvas of `SIZE` x `SIZE`, so that its maps do not depend on the rest of its batch.
    """

    def __init__(self, trunk: Backbone, maps: dict[str, list[Tensor]], strides: Sequence[int] | None = None) -> None:
        self.trunk, self.maps = trunk, maps
        self.wanted = [trunk.strides.index(stride) for stride in strides or trunk.strides]

    def __call__(self, images: ImageBatch) -> list[Level]:
        """As the trunk's `forward`, without gradients."""
        pictures = [
            self.maps_of(pixels, size) for pixels, size in zip(images.pixels, images.sizes.tolist(), strict=True)
        ]
        height, width = images.pixels.shape[-2:]
        levels = []
        for index in self.wanted:
            stride = SIZE // pictures[0][index].shape[-1]
            rows, columns = -(-height // stride), -(-width // stride)
            features = torch.stack([maps[index][:, :rows, :columns] for maps in pictures])
            levels.append(Level(features, resize_mask(images.padding_mask, (rows, columns))))
        return levels

    def maps_of(self, pixels: Tensor, size: Sequence[int]) -> list[Tensor]:
        """The maps (C, h, w) of one picture of `size`, height and width, in its batch's padding."""
        own = pixels[:, : size[0], : size[1]].contiguous()
        key = hashlib.blake2b(own.numpy().tobytes(), digest_size=16).hexdigest()
        if key not in self.maps:
            canvas = F.pad(own, (0, SIZE - size[1], 0, SIZE - size[0]))
            batch = ImageBatch(canvas[None], torch.zeros(1, SIZE, SIZE, dtype=torch.bool), torch.tensor([size]))
            with torch.no_grad():
                self.maps[key] = [level.features[0].clone() for level in self.trunk(batch)]
        return self.maps[key]


# --- one arm ---------------------------------------------------------------------------------------------------------


def run_arm(arm: str, seed: int, epochs: int, scenes: Path, trunk: Path, output: Path) -> None:
    """Train one detector from one seed and write down its curve; called in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        trainer, looks = prepare(arm, seed, epochs, scenes, trunk, Path(folder))
        trainer.run()
        facts = {
            "arm": arm,
            "seed": seed,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "settings": settings_of(arm),
            "epochs": trainer.lines,
            "looks": looks,
        }
    write_atomically(output / f"{arm}-{seed}.json", json.dumps(facts, indent=1).encode())


def settings_of(arm: str) -> dict[str, Any]:
    """What all have in common and its own."""
    return SHARED | (ARMS | PROBES)[arm][1]


def prepare(arm: str, seed: int, epochs: int, scenes: Path, trunk: Path, folder: Path) -> tuple[Trainer, list[Any]]:
    """The package's own training, with a validation that looks at attention too."""
    preset = (ARMS | PROBES)[arm][0]
    config = TrainingConfig.from_preset(
        catalogue.preset(preset),
        settings=settings_of(arm),
        size=SIZE,
        batch_size=None,
        data=str(scenes),
        output=str(folder),
        model=preset,
        epochs=epochs,
        seed=seed,
        backbone_weights=str(trunk),
    )
    training_data, validation_data = open_splits(config)
    torch.manual_seed(seed)
    detector, _ = build_model(config, training_data)
    maps = torch.load(trunk.parent / MAPS, mmap=True)
    shared, backbone = load_trunk(trunk), detector.get_submodule("backbone")
    strides: Any = backbone.strides
    if arm in ON_STRIDE_16:
        strides = [16]
        detector.input_projection = nn.Conv2d(shared.channels[0], config.model_config["dim"], kernel_size=1)
    backbone.forward = Remembered(shared, maps, strides)
    validation = LookingValidation(
        validation_data, config.preprocessing, training_data.label_map, config.model, 25, None
    )
    trainer = Trainer(
        config,
        detector,
        catalogue.criterion_for(detector),
        training_data,
        validation,
        RunFolder(folder),
        TrainingClock(now=time.process_time),
        make_display(progress=False),
    )
    trainer.clock.prepared()
    trainer.clock.used = 0.0  # minutes are those of training alone
    return trainer, validation.looks


@dataclass(frozen=True)
class LookingValidation(Validation):
    """Measures AP as every training does, and each time where the decoder looks as well: `looks`, one an epoch."""

    looks: list[list[dict[str, float]]] = field(default_factory=list)

    def measure(self, model: nn.Module, processes: Processes | None = None) -> Measured:
        """As a validation does."""
        measured = super().measure(model, processes)
        self.looks.append(where_it_looks(model, self.dataset, self.preprocessing))
        return measured


# --- where a decoder looks -------------------------------------------------------------------------------------------


@torch.no_grad()
def where_it_looks(model: Any, dataset: DetectionDataset, preprocessing: Preprocessing) -> list[dict[str, float]]:
    """For each decoder layer the means over matched pairs of a query and an object, on the first pictures.

    `inside` is the part of the query's cross-attention, all heads together, that falls into the object's box; `offset`
    the distance of its centroid from the object's centre, `spread` the root of its mean squared distance from that
    centroid, both in pixels of the picture as the model is given it.
    """
    found: list[list[Tensor]] = []
    for start in range(0, min(LOOKED_AT, len(dataset)), 16):
        samples = [dataset[index] for index in range(start, start + 16)]
        images = ImageBatch.from_images([preprocessing(sample.image) for sample in samples])
        targets = [sample.targets for sample in samples]
        with recording(model) as recorder:
            predictions = model(images)
        cost = catalogue.criterion_for(model).cost
        pairs = match(predictions.logits[-1:], predictions.boxes[-1:], targets, cost)
        picture, query = pairs.picture[0], pairs.query[0]
        boxes = torch.cat([boxes_in_pixels(*pair) for pair in zip(targets, images.sizes, strict=True)])
        boxes = boxes[pairs.position[0]]
        layers = [x for x in [*recorder.dense, *recorder.sampled] if x.name.endswith("cross_attention")]
        rows = [attended_points(layer, images, picture, query, boxes) for layer in layers]
        found.append([summary(*row, boxes) for row in rows])
    means = [torch.cat(parts).mean(dim=0).tolist() for parts in zip(*found, strict=True)]
    return [dict(zip(("inside", "offset", "spread"), values, strict=True)) for values in means]


def boxes_in_pixels(target: Targets, size: Tensor) -> Tensor:
    """(N, 4) xyxy in pixels of the model's picture of `size`, height and width."""
    return cxcywh_to_xyxy(target.boxes) * size.flip(0).repeat(2)


def attended_points(
    layer: DenseAttention | SampledAttention, images: ImageBatch, picture: Tensor, query: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points (n, K, 2) in pixels that n queries look at, their weights (n, K), and how far each is inside (n, K)."""
    height, width = images.pixels.shape[-2:]
    if isinstance(layer, SampledAttention):
        points = layer.locations[picture, query].flatten(1, 3) * torch.tensor([width, height])
        weights = layer.weights[picture, query].flatten(1)
        inside = ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all(dim=-1).float()
        return points, weights / weights.sum(dim=1, keepdim=True), inside
    weights = layer.attention[picture, :, query].mean(dim=1)
    stride = stride_of(weights.shape[1], height, width)
    rows, columns = -(-height // stride), -(-width // stride)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y], dim=-1).reshape(1, -1, 2) * float(stride)
    overlap = torch.minimum(corners + stride, boxes[:, None, 2:]) - torch.maximum(corners, boxes[:, None, :2])
    points = (corners + stride / 2).expand(len(weights), -1, -1)
    return points, weights, overlap.clamp(min=0).prod(dim=-1) / stride**2


def stride_of(num_cells: int, height: int, width: int) -> int:
    """The stride of the map that has so many cells of a picture."""
    return next(s for s in (4, 8, 16, 32, 64) if -(-height // s) * -(-width // s) == num_cells)


def summary(points: Tensor, weights: Tensor, inside: Tensor, boxes: Tensor) -> Tensor:
    """(n, 3): inside, offset, spread of each pair."""
    centroid = (weights[..., None] * points).sum(dim=1)
    offset = (centroid - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=-1)
    variance = (weights * (points - centroid[:, None]).square().sum(dim=-1)).sum(dim=1)
    return torch.stack([(weights * inside).sum(dim=1), offset, variance.sqrt()], dim=-1)


# --- all arms --------------------------------------------------------------------------------------------------------


def run_arms(arms: Sequence[tuple[str, int]], processes: int, options: Sequence[str], output: Path) -> None:
    """Every arm that has not left its file yet, so many at a time; one that fails is told of and left out."""
    missing = [arm for arm in arms if not (output / f"{arm[0]}-{arm[1]}.json").exists()]
    print(f"{len(arms)} arms, {len(missing)} of them to run, {processes} at a time", flush=True)

    def start(arm: tuple[str, int]) -> None:
        model, seed = arm
        command = [sys.executable, __file__, *options, "--models", model, "--seeds", str(seed), "--arm"]
        finished = subprocess.run(command, capture_output=True, text=True)
        told = finished.stderr.strip().splitlines()[-1:] if finished.returncode else ["done"]
        print(f"{model}, seed {seed}: {' '.join(told)}", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(start, missing))


def read_arms(arms: Sequence[tuple[str, int]], output: Path, epochs: int) -> dict[str, list[dict[str, Any]]]:
    """The finished arms of each detector. Arms of other settings than these do not belong into one table: they fail."""
    found: dict[str, list[dict[str, Any]]] = {}
    for model, seed in arms:
        path = output / f"{model}-{seed}.json"
        if not path.exists():
            continue
        arm = json.loads(path.read_text(encoding="utf-8"))
        if arm["settings"] != settings_of(model) or len(arm["epochs"]) != epochs:
            raise SystemExit(
                f"{path}: an arm of other settings or another number of epochs; delete it or name another --output"
            )
        found.setdefault(model, []).append(arm)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: figures after the last epoch, mean of the seeds and their range."""
    lines = [
        "| | seeds | AP | AP50 | AP50 half-way | epochs to AP50 0.3 | minutes | inside | offset, px | spread, px |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, arms in found.items():
        ends = [arm["epochs"][-1] for arm in arms]
        halves = [arm["epochs"][len(arm["epochs"]) // 2 - 1] for arm in arms]
        passed = [epochs_to_pass(arm) for arm in arms]
        looks = [arm["looks"][-1][-1] for arm in arms]
        cells = [
            model,
            str(len(arms)),
            spread_of([end["ap"] for end in ends]),
            spread_of([end["ap50"] for end in ends]),
            spread_of([half["ap50"] for half in halves]),
            ", ".join("–" if epoch is None else str(epoch) for epoch in passed),
            f"{statistics.mean(end['minutes'] for end in ends):.1f}",
            *(f"{statistics.mean(look[key] for look in looks):.{digits}f}" for key, digits in LOOKS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


LOOKS = (("inside", 2), ("offset", 1), ("spread", 1))
SIZES = {"ap": "AP", "ap_small": "small", "ap_medium": "medium"}
"""No scene has a large object: the picture is too small for 96 x 96 pixels and more."""


def size_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: DETR beside Stacked DETR by the size of objects."""
    lines = [f"| | {' | '.join(SIZES.values())} |", "|---|" + "---|" * len(SIZES)]
    for model in (name for name in SIZED if name in found):
        ends = [arm["epochs"][-1] for arm in found[model]]
        lines.append(f"| {model} | {' | '.join(spread_of([end[key] for end in ends]) for key in SIZES)} |")
    return "\n".join(lines)


def order_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: each pair of the published order, the ratio of their APs, and in how many seeds it holds."""
    lines = ["| published order | ratio of AP | in seeds |", "|---|---|---|"]
    for below, above in ORDER:
        if below in found and above in found:
            low, high = ({arm["seed"]: arm["epochs"][-1]["ap"] for arm in found[name]} for name in (below, above))
            seeds = sorted(low.keys() & high.keys())
            ratio = sum(high[seed] for seed in seeds) / max(sum(low[seed] for seed in seeds), 1e-9)
            holds = sum(high[seed] > low[seed] for seed in seeds)
            lines.append(f"| {below} < {above} | {ratio:.2f} | {holds} of {len(seeds)} |")
    return "\n".join(lines)


def epochs_to_pass(arm: dict[str, Any]) -> int | None:
    """The first epoch after which AP50 is at least `PASSED`."""
    return next((line["epoch"] for line in arm["epochs"] if line["ap50"] >= PASSED), None)


def spread_of(values: Sequence[float]) -> str:
    """The mean, and the least and the most where there are several."""
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """AP against epochs and minutes, attention against epochs, and sizes: means of the seeds; faint: each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    by_epochs, by_minutes, by_offset, by_size = figure.subplots(2, 2).flatten()
    for colour, (model, arms) in enumerate(found.items()):
        shade = f"C{colour}"
        epochs = [line["epoch"] for line in arms[0]["epochs"]]
        minutes = means([[line["minutes"] for line in arm["epochs"]] for arm in arms])
        precision = [[line["ap"] for line in arm["epochs"]] for arm in arms]
        offsets = [[look[-1]["offset"] for look in arm["looks"]] for arm in arms]
        for axes, x, curves in (
            (by_epochs, epochs, precision),
            (by_minutes, minutes, precision),
            (by_offset, epochs, offsets),
        ):
            for curve in curves:
                axes.plot(x, curve, color=shade, alpha=0.25, linewidth=0.8)
            axes.plot(x, means(curves), color=shade, linewidth=2, label=model)
        if model in SIZED:
            places = [place + 0.4 * (model == SIZED[1]) for place in range(len(SIZES))]
            heights = means([[arm["epochs"][-1][key] for key in SIZES] for arm in arms])
            by_size.bar(places, heights, width=0.36, color=shade, label=model)
    by_epochs.set(xlabel="epochs", ylabel="AP", title="AP against epochs")
    by_minutes.set(xlabel="processor minutes of training, one thread", ylabel="AP", title="AP against minutes")
    by_offset.set(xlabel="epochs", ylabel="pixels", title="Attention's centroid to the object's centre, last layer")
    by_size.set(ylabel="AP", title="DETR and Stacked DETR by size", xticks=[place + 0.2 for place in range(len(SIZES))])
    by_size.set_xticklabels(list(SIZES.values()))
    for axes in (by_epochs, by_offset):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(model in SIZED for model in found):
        by_size.legend(frameon=False)
    figure.legend(*by_epochs.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    for axes in (by_epochs, by_minutes, by_offset, by_size):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def means(curves: Sequence[Sequence[float]]) -> list[float]:
    """Point by point."""
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


def main() -> None:
    """Run what is missing, then the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder that holds weights/ of the trunk")
    parser.add_argument("--models", nargs="+", default=list(ARMS), choices=[*ARMS, *PROBES])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--output", type=Path, default=Path("runs/family-argument"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--arm", action="store_true", help="run the one arm that is named in this process")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    scenes = make_scenes(options.output / "scenes", PICTURES)
    if options.arm:
        run_arm(options.models[0], options.seeds[0], options.epochs, scenes, options.output / TRUNK, options.output)
        return
    make_trunk(scenes, options.shared / "weights" / f"{TRUNK_NAME}.imagenet.safetensors", options.output)
    # Seed by seed, so that a run that is cut short has compared all detectors.
    arms = [(model, seed) for seed in options.seeds for model in options.models]
    passed_on = [str(options.shared), "--epochs", str(options.epochs), "--output", str(options.output)]
    run_arms(arms, options.processes, passed_on, options.output)
    found = read_arms(
        [(model, seed) for model in options.models for seed in options.seeds], options.output, options.epochs
    )
    text = "\n\n".join((table(found), order_table(found), size_table(found)))
    print(f"\n{text}")
    write_atomically(options.output / "table.md", f"{text}\n".encode())
    draw(found, options.output / "figure.png")


if __name__ == "__main__":
    main()
