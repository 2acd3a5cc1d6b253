"""Does a training that was killed, wherever, and continued end as one that was never stopped?

A toy DN-DAB-DETR on a handful of generated pictures, with random changes, mosaics, rectangular batches, a cache,
processes that load pictures, dropout, noised objects, a moving average of the weights, a trunk that first learns by
itself, and a step's pictures in two parts. One run is left alone. Each other one is killed (SIGKILL) at a random point,
then continued to the end: within a step; around or in the middle of one of the operations by which files are written;
or at any moment. All tensors of the state (weights, moments, average), the best weights' file, and the numbers of every
epoch must then be the same, bit for bit; only times may differ.

    python benchmarks/kill_points.py [--points 20] [--seed 0]

Runs are forked off this process, which computes nothing itself. Exit status 1 where a run ends otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from PIL import Image

from detrove.training import train, trainer

NUM_PICTURES, SIZE, EPOCHS = 14, 64, 4
OPTIONS: dict[str, Any] = {
    "model": "dn-dab-nano",
    "epochs": EPOCHS,
    "size": SIZE,
    "batch_size": 4,
    "backbone_weights": None,
    "rectangular": True,
    "cache": "60kB",
    "progress": False,
    "settings": {
        "model.backbone": "test_resnet",
        "model.dim": 32,
        "model.num_heads": 4,
        "model.feedforward_dim": 64,
        "model.num_encoder_layers": 1,
        "model.num_decoder_layers": 2,
        "model.num_queries": 8,
        "model.dropout": 0.1,
        "workers": 2,
        "accumulate": 2,
        "ema_decay": 0.9,
        "trunk_warmup": 0.2,
        "learning_rate": 1e-3,
        "mosaic": 0.5,
        "copy_paste": 0.5,
        "colour": 0.4,
        "crop": 0.5,
        "scale": [0.7, 1.1],
    },
}
TIMES = {"minutes", "clock", "validation_seconds"}
"""What may differ: how long things took."""


@dataclass(frozen=True)
class Counts:
    """What a run that nobody disturbs consists of."""

    steps: int
    writes: int
    seconds: float


@dataclass(frozen=True)
class Point:
    """Where to kill: in a `step`, at a `write` ("before", "after" or "half" of it), or after `seconds`."""

    step: int = 0
    write: int = 0
    how: str = ""
    seconds: float = 0.0

    def describe(self) -> str:
        """In words."""
        if self.step:
            return f"in step {self.step}, after {self.seconds * 1000:.0f} ms of it"
        if self.write:
            return f"{self.how} file operation {self.write}"
        return f"after {self.seconds:.2f} s"


def make_pictures(folder: Path, split: str, number: int) -> None:
    """Pictures of two shapes with one to three squares, red or blue, as COCO JSON."""
    generator = np.random.default_rng(number)
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image_id in range(1, number + 1):
        width, height = (64, 48) if image_id % 2 else (48, 64)
        pixels = generator.integers(90, 130, (height, width, 3), dtype=np.uint8)
        for _ in range(int(generator.integers(1, 4))):
            category, side = int(generator.integers(1, 3)), int(generator.integers(10, 20))
            x, y = int(generator.integers(0, width - side)), int(generator.integers(0, height - side))
            pixels[y : y + side, x : x + side] = (220, 20, 20) if category == 1 else (20, 20, 220)
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **box})
        Image.fromarray(pixels).save(folder / split / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def die() -> None:
    """As the system kills for want of memory: at once, and nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


class Watcher:
    """Counts the steps and the file operations of this process's training, and dies at the point it is given."""

    def __init__(self, point: Point) -> None:
        self.point, self.steps, self.writes = point, 0, 0
        step = trainer.Trainer._step

        @wraps(step)
        def watched(*arguments: Any) -> Any:
            self.steps += 1
            if self.steps == point.step:
                threading.Thread(target=lambda: (time.sleep(point.seconds), die()), daemon=True).start()
            return step(*arguments)

        setattr(trainer.Trainer, "_step", watched)  # noqa: B010
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "rename"), (shutil, "rmtree")):
            setattr(
                owner, name, partial(self.operation, getattr(owner, name)) if owner is not Path else self.renaming()
            )
        if not point.step and not point.write and point.seconds:
            threading.Thread(target=lambda: (time.sleep(point.seconds), die()), daemon=True).start()

    def renaming(self) -> Callable[[Path, Path], Any]:
        """`Path.rename`, which is a method, watched."""
        rename = Path.rename
        return lambda path, target: self.operation(rename, path, target)

    def operation(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """A file operation, in the midst of which the process may die."""
        self.writes += 1
        here = self.writes == self.point.write
        if here and self.point.how == "half" and function.__name__ == "fsync":
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
        if here and self.point.how != "after":
            die()
        answer = function(*arguments, **options)
        if here:
            die()
        return answer


def run(data: Path, output: Path, point: Point, unsaved: float, resume: bool) -> Counts | None:
    """Train in a process of its own; None where it was killed."""
    began = time.monotonic()
    output.parent.mkdir(exist_ok=True)
    process = os.fork()
    if process == 0:
        status = 1
        try:
            errors = os.open(output.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(errors, sys.stderr.fileno())  # the processes that load pictures complain of their parent's death
            torch.set_num_threads(1)
            trainer.LONGEST_UNSAVED = unsaved
            watcher = Watcher(point)
            train(data, output=output, resume=resume, **OPTIONS)
            (output.parent / "counts.json").write_text(json.dumps([watcher.steps, watcher.writes]))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        raise SystemExit(f"a training failed:\n{output.with_suffix('.txt').read_text()}")
    steps, writes = json.loads((output.parent / "counts.json").read_text())
    return Counts(steps, writes, time.monotonic() - began)


def differences(whole: Path, parts: Path) -> list[str]:
    """What of two run folders is not the same, times left aside."""
    found = []
    for name in ("last/model", "last/optimizer", "last/average", "best"):
        (one, about), (other, about_other) = (read(run / f"{name}.safetensors") for run in (whole, parts))
        if one.keys() != other.keys() or about != about_other:
            found.append(f"what {name} holds")
        found += [f"{name}: {key}" for key in one.keys() & other.keys() if not same_bits(one[key], other[key])]
    for name in ("metrics.jsonl", "last/state.json"):
        one, other = (told(run / name) for run in (whole, parts))
        found += [f"lines of {name}"] if len(one) != len(other) else []
        for line, pair in enumerate(zip(one, other, strict=False), start=1):
            changed = [key for key in pair[0].keys() | pair[1].keys() if pair[0].get(key) != pair[1].get(key)]
            found += [f"{name} {line}: {key} was {pair[0].get(key)}, is {pair[1].get(key)}" for key in changed]
    left = [entry.name for entry in parts.iterdir() if "partial" in entry.name or entry.name == "last.old"]
    return found + [f"{name} was left behind" for name in left]


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, and what it says of them (in an order that changes from process to process)."""
    with safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, bit for bit: a nan equals itself, and 0 is not -0."""
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def told(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON or of JSON lines, without times."""
    text = path.read_text()
    entries = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in entries]


def random_point(number: int, counts: Counts, drawn: random.Random) -> Point:
    """Every second point lies in the writing of files, and every fifth of the others at any moment."""
    if number % 2:
        return Point(write=drawn.randint(1, int(0.9 * counts.writes)), how=drawn.choice(("before", "half", "after")))
    if number % 10 == 8:
        return Point(seconds=drawn.uniform(0.0, counts.seconds))
    return Point(step=drawn.randint(1, counts.steps), seconds=drawn.uniform(0.0, 0.5 * counts.seconds / counts.steps))


def resumed_at(output: Path) -> str:
    """From where a killed run will go on."""
    for place in ("last", "last.old"):
        state = output / place / "state.json"
        if state.exists():
            return f"continued at step {json.loads(state.read_text())['step']}"
    return "begun again" if output.exists() else "begun"


def main() -> int:
    """Print a line for each point; exit status 1 where a run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn, same = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="detrove-kill-points-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # a killed run leaves its cache's file behind
        data, root = Path(folder) / "data", Path(folder)
        make_pictures(data, "train", NUM_PICTURES)
        make_pictures(data, "val", 6)
        counts = run(data, root / "whole" / "run", Point(), unsaved=0.0, resume=False)
        assert counts is not None
        print(f"undisturbed: {counts.steps} steps, {counts.writes} file operations, {counts.seconds:.1f} s", flush=True)
        for number in range(options.points):
            point, output = random_point(number, counts, drawn), root / str(number) / "run"
            # Every second run that is killed in a step saves at the ends of epochs only, the others after every step.
            unsaved = 600.0 if point.step and number % 4 else 0.0
            killed = run(data, output, point, unsaved, resume=False) is None
            state = resumed_at(output) if killed else "was over before"
            if killed:
                run(data, output, Point(), unsaved, resume=True)
            found = differences(root / "whole" / "run", output)
            same += not found
            print(
                f"{number + 1:3}: killed {point.describe()}, {state}: {'; '.join(found[:3]) or 'identical'}", flush=True
            )
            shutil.rmtree(output.parent)
    print(f"{same} of {options.points} runs ended as the one that was never stopped")
    return same != options.points


if __name__ == "__main__":
    sys.exit(main())
