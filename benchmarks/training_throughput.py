"""How many pictures a second does `detrove train` train, and in how much memory, against Hugging Face's Trainer?

Both whole loops, not steps by hand: ours with its clock, callbacks, state and progress; theirs with its own. The same
weights (exported), the same batches in the same order, prepared before the clock starts; every layer supervised, AdamW
in its fused form, gradients clipped at 0.1, no dropout, and a trunk without gradient on both sides. Each side has a
process of its own and waits after every step while the other takes one. The first steps are not counted. Memory is a
process's highest resident size, beyond what it held when its training began; on a GPU what its tensors took at most.

    python benchmarks/training_throughput.py detr-r50 conditional-r50 --steps 15 --threads 2

About (steps + 3) times twice a step's length and a minute for each model: at batch 2 and 640 pixels on two cores, ten
minutes for detr-r50.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from training_step import MODELS, make_batch, our_model, their_model

from detrove.inference.bench.machine import PeakMemory, resident_memory
from detrove.models import catalogue
from detrove.structures import ImageBatch, Targets
from detrove.training import TrainingConfig
from detrove.training.clock import TrainingClock
from detrove.training.processes import Processes
from detrove.training.progress import SilentDisplay
from detrove.training.run_folder import RunFolder

UNCOUNTED, NUM_BATCHES = 3, 4
Batch = tuple[ImageBatch, list[Targets]]


def batches(options: argparse.Namespace) -> list[Batch]:
    """The same pictures and objects for both sides."""
    generator = torch.Generator().manual_seed(0)
    images, targets = make_batch(options.batch * NUM_BATCHES, options.size)
    order = torch.randperm(len(targets), generator=generator).split(options.batch)
    return [
        (ImageBatch(images.pixels[i], images.padding_mask[i], images.sizes[i]), [targets[n] for n in i.tolist()])
        for i in order
    ]


class Turns:
    """Takes turns with the other side: after each step says how long it took and waits to be called again."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before, self.began = device, resident_memory() or 0, 0.0
        self.peak = PeakMemory(device)

    def wait(self) -> None:
        """Until it is this side's turn; the end of the talk is the end of the training."""
        if not sys.stdin.readline():
            sys.stdout.flush()
            os._exit(0)
        self.began = time.perf_counter()

    def done(self) -> None:
        """Tell of a step, and wait."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.began
        highest, _ = self.peak.read()
        before = 0 if self.device.type == "cuda" else self.before
        print(json.dumps([seconds, ((highest or 0) - before) / 2**20]), flush=True)
        self.wait()

    def on_step(self, event: Any) -> None:  # noqa: ARG002
        """Ours is a callback of our training."""
        self.done()


class Prepared:
    """In the place of a training loader: the same batches again and again."""

    def __init__(self, prepared: list[Batch]) -> None:
        self.prepared, self.cache = prepared, None

    def set_epoch(self, *arguments: Any) -> None:
        """There is no other order."""

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self.prepared


def serve_ours(name: str, options: argparse.Namespace, folder: Path) -> None:
    """`detrove train`'s own loop, its pictures replaced by the prepared ones."""
    training = importlib.import_module("detrove.training.train")
    (folder / "train").mkdir()
    (folder / "annotations").mkdir()
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in (1, 2)]
    boxes = [{"id": n, "image_id": n, "category_id": n, "bbox": [8, 8, 32, 32], "area": 1024} for n in (1, 2)]
    categories = [{"id": n, "name": str(n)} for n in range(1, 81)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / "val").symlink_to(folder / "train")
    for entry in images:
        Image.new("RGB", (64, 64)).save(folder / "train" / entry["file_name"])
    preset = catalogue.preset(name)
    settings = {"workers": 0, "clip_norm": 0.1, "mixed_precision": options.precision, "preflight": False}
    values = {"data": str(folder), "output": str(folder / "run"), "model": name, "epochs": 10**6}
    config = TrainingConfig.from_preset(preset, settings=settings, size=options.size, batch_size=2, **values)
    processes = Processes()
    turns = Turns(processes.device)
    with mock.patch.object(training, "build_model", return_value=(our_model(name, dropout=False), None)):
        run_folder, clock = RunFolder(folder / "run"), TrainingClock()
        trainer = training._prepare(config, run_folder, clock, SilentDisplay(), [turns], processes, state=None)
    trainer.loader = Prepared(batches(options))
    begin(turns)
    trainer.run()


def serve_theirs(name: str, options: argparse.Namespace, folder: Path) -> None:
    """Hugging Face's Trainer on the exported weights."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    turns = Turns(Processes().device)

    class Turn(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:  # noqa: ARG002
            turns.done()

    prepared = [
        {
            "pixel_values": images.pixels.contiguous(memory_format=torch.channels_last),
            "pixel_mask": (~images.padding_mask).long(),
            "labels": [{"class_labels": target.labels, "boxes": target.boxes} for target in targets],
        }
        for images, targets in batches(options)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"),
        per_device_train_batch_size=1,  # of prepared batches
        max_steps=10**6,
        learning_rate=1e-4,
        weight_decay=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=0.1,
        optim="adamw_torch_fused",
        bf16=options.precision == "bf16",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    model = their_model(our_model(name, dropout=False))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=prepared * 1000,  # type: ignore[arg-type]
        data_collator=lambda chosen: chosen[0],
        callbacks=[Turn()],
    )
    begin(turns)
    trainer.train()


def begin(turns: Turns) -> None:
    """From here on memory counts."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the model has left behind
    turns.before, turns.peak = resident_memory() or 0, PeakMemory(turns.device)
    turns.wait()


@dataclasses.dataclass
class Side:
    """One of the two, in its process."""

    process: subprocess.Popen[str]
    memory: float = 0.0

    @classmethod
    def start(cls, name: str, side: str, arguments: list[str]) -> Side:
        """A training that waits for its first turn."""
        command = [sys.executable, __file__, name, "--serve", side, *arguments]
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("step", file=self.process.stdin, flush=True)
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("a side ended before its time; what it said stands above")
            if line.startswith("["):
                seconds, self.memory = json.loads(line)
                return seconds


def compare(name: str, options: argparse.Namespace, arguments: list[str]) -> None:
    """Take turns, print pictures a second of both, the ratio of pairs, and memory."""
    ours, theirs = (Side.start(name, side, arguments) for side in ("ours", "theirs"))
    for side in (ours, theirs):
        for _ in range(UNCOUNTED):
            side.step()
    pairs = [(ours.step(), theirs.step()) for _ in range(options.steps)]
    for side in (ours, theirs):
        side.process.communicate()
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    own, other = (options.batch / statistics.median(taken) for taken in zip(*pairs, strict=True))
    print(
        f"{name:16} detrove {own:6.2f} pictures/s   Trainer {other:6.2f} pictures/s   "
        f"ratio {middle:.2f}x (quartiles {low:.2f} to {high:.2f})   "
        f"memory {ours.memory:.0f} and {theirs.memory:.0f} MiB, {ours.memory / theirs.memory:.2f} of it",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve = serve_ours if options.serve == "ours" else serve_theirs
        with tempfile.TemporaryDirectory() as folder:
            serve(options.models[0], options, Path(folder))
        return
    arguments = ["--batch", str(options.batch), "--size", str(options.size), "--threads", str(options.threads)]
    arguments += ["--precision", options.precision]
    print(f"torch {torch.__version__}, {options.threads} threads, {options.batch} pictures of {options.size} pixels\n")
    for name in options.models:
        compare(name, options, arguments)


if __name__ == "__main__":
    main()
