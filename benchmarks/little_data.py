"""Which detector learns most from a few hundred pictures in the same minutes?

`detrove train` as a user runs it (--size, --minutes, --backbone-weights, --seed, nothing else) beside detectors of
other packages: Hugging Face's DAB-DETR and Deformable DETR and a torchvision detector, all on the same trunk with the
same file of weights, its BatchNorm fixed, and Ultralytics' YOLO11n from random weights. Same pictures, same minutes,
same number of threads; `val` chooses the epoch, outside of the minutes; `test` is quoted beside it. All are measured by
detrove's metrics, from their detections.

Peers get detrove's loader with the random changes and the batch of `detrove-nano`, its warm-up and cosine, and what
suits them best of several learning rates (torchvision: and of several detectors), before the minutes that count: each
is tried for a fifth of them on one thread, as many at a time as there are threads. YOLO11n trains by its own code with
its own changes, in an environment of its own:

    python -m venv YOLO && YOLO/bin/pip install ultralytics
    python benchmarks/little_data.py ../shared/data/bccd --backbone-weights
        ../shared/weights/mobilenetv2_100.imagenet.safetensors --minutes 10 --seeds 0 1 2 --output runs/little
        --yolo-python YOLO/bin/python

Every trial and every row has a process of its own and leaves a file in OUTPUT; a second call goes on with what is
missing. OUTPUT belongs to one data set, size and length.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detrove.checkpoints.files import write_atomically
from detrove.data import find_splits, open_dataset
from detrove.evaluation import coco_metrics

RATES = (1e-4, 3e-4, 1e-3)
HIGHER = 3.0
"""The next rate, as a multiple, where the highest tried was best."""
TRIAL_SHARE = 0.2
"""Of the minutes, for each candidate of a peer."""
HUGGING_FACE = ("dab", "deformable", "deformable-two-stage")
TORCHVISION = "torchvision"
TORCHVISION_DETECTORS = ("ssdlite", "retinanet", "faster-rcnn")
YOLO, YOLO_DEFAULT = "yolo11n", "yolo11n, own threads"
"""With as many threads as all others, and as it starts by itself: with one."""
DETROVE = "detrove"
ROWS = (DETROVE, "dab", "deformable", TORCHVISION, YOLO, YOLO_DEFAULT)


@dataclass(frozen=True)
class Job:
    """One training: whose, which of its detectors, at which rate, for how long; `trial` is one to choose by."""

    row: str
    detector: str
    rate: float | None
    seed: int
    minutes: float
    trial: bool = False

    @property
    def name(self) -> str:
        """What its files are called."""
        own = f"trial-{self.detector}-{self.rate:g}" if self.trial else f"{self.row}-{self.seed}"
        return own.replace(", ", "-").replace(" ", "-")


# --- one training, in a process of its own ----------------------------------------------------------------------------


def run_job(job: Job, options: argparse.Namespace) -> None:
    """Train, detect, and leave `NAME.json` with minutes, steps and COCO results of each split."""
    splits = splits_of(options.data, job.trial)
    run = train_detrove if job.row == DETROVE else train_yolo if job.row in (YOLO, YOLO_DEFAULT) else train_by_loop
    facts = run(job, options, splits)
    write_atomically(options.output / f"{job.name}.json", json.dumps({**asdict(job), **facts}).encode())


def train_detrove(job: Job, options: argparse.Namespace, splits: Sequence[str]) -> dict[str, Any]:
    """The command line, and its run folder's detections."""
    from detrove.evaluation import coco_results, detect
    from detrove.inference import load

    folder = options.output / "runs" / job.name
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "detrove", "train", str(options.data), "--output", str(folder)]
    command += ["--size", str(options.size), "--minutes", str(job.minutes), "--seed", str(job.seed)]
    subprocess.run([*command, "--backbone-weights", str(options.backbone_weights)], check=True)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    detector = load(folder)
    results = {}
    for split in splits:
        data = open_dataset(options.data, split)
        results[split] = coco_results(detect(detector, data), data.ground_truth())
    return {"detector": detector.name, "minutes": last["minutes"], "steps": last["step"], "results": results}


def train_by_loop(job: Job, options: argparse.Namespace, splits: Sequence[str]) -> dict[str, Any]:
    """A peer of Hugging Face or torchvision, by the loop that they share."""
    import torch
    from peers.training import PeerTraining, measure

    from detrove.structures import Preprocessing
    from detrove.training.clock import TrainingClock

    torch.set_num_threads(threads_of(job, options))
    clock = TrainingClock(budget=job.minutes * 60)
    torch.manual_seed(job.seed)
    training, validation = (open_dataset(options.data, split) for split in ("train", "val"))
    given = (job.detector, training.label_map, Preprocessing(longer=options.size), options.backbone_weights)
    if job.row in HUGGING_FACE:
        from peers.hugging_face import HuggingFacePeer as OwnPeer
    else:
        from peers.torchvision_detectors import TorchvisionPeer as OwnPeer
    peer = OwnPeer(*given)
    assert job.rate is not None
    trained = PeerTraining(peer, training, validation, job.rate, job.seed, clock).run()
    results = {split: measure(peer, open_dataset(options.data, split), 8)[0] for split in splits if split != "val"}
    results["val"] = trained.results
    facts = {"minutes": trained.minutes, "steps": trained.steps, "diverged": trained.diverged, "curve": trained.curve}
    return {**facts, "results": results}


def train_yolo(job: Job, options: argparse.Namespace, splits: Sequence[str]) -> dict[str, Any]:
    """Ultralytics in its own environment, on the same pictures in YOLO's format."""
    converted = options.output / "yolo"
    if not converted.exists():
        command = [sys.executable, "-m", "detrove", "data", "convert", str(options.data), "--to", "yolo"]
        subprocess.run([*command, "--output", str(converted)], check=True)
    folder = options.output / "runs" / job.name
    given = {"data": str((converted / "data.yaml").resolve()), "output": str(folder.resolve()), "splits": splits}
    given |= {"size": options.size, "minutes": job.minutes, "seed": job.seed}
    given["threads"] = options.threads if job.row == YOLO else None
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(options.output.resolve())}
    environment |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    environment.pop("OMP_NUM_THREADS", None)
    script = Path(__file__).resolve().parent / "peers" / "ultralytics_yolo.py"
    subprocess.run([options.yolo_python, str(script), json.dumps(given)], check=True, env=environment)
    facts = json.loads((folder / "facts.json").read_text())
    results = {split: of_yolo(folder / split / "predictions.json", options.data, split) for split in splits}
    return {**facts, "results": results}


def of_yolo(predictions: Path, data: Path, split: str) -> list[dict[str, Any]]:
    """Ultralytics' COCO results with the data set's own ids: it knows pictures by file names, and classes by order."""
    dataset = open_dataset(data, split)
    pictures = zip(dataset.annotations.paths, dataset.annotations.image_ids.tolist(), strict=True)
    ids = {Path(path).name: image_id for path, image_id in pictures}
    categories = [entry.id for entry in dataset.label_map.entries if entry]
    if not predictions.exists():  # nothing was found
        return []
    return [
        {**found, "image_id": ids[found["file_name"]], "category_id": categories[found["category_id"] - 1]}
        for found in json.loads(predictions.read_text())
    ]


def splits_of(data: Path, trial: bool = False) -> list[str]:
    """What is measured: a trial on val alone."""
    return [split for split in ("val", "test") if split in find_splits(data) and not (trial and split == "test")]


# --- what is run, and what came of it ---------------------------------------------------------------------------------


def done(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """What a job has left; it is run where it has left nothing yet."""
    path = options.output / f"{job.name}.json"
    if not path.exists():
        # the line's end with the line: trials begin at the same time
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {job.minutes:g} minutes\n", end="", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--job", json.dumps(asdict(job))]
        with (options.output / f"{job.name}.log").open("w") as log:
            given = {"env": environment_of(job, options), "stdout": log, "stderr": subprocess.STDOUT}
            code = subprocess.run(command, **given).returncode
        if code:
            raise SystemExit(f"{job.name} failed (exit status {code}); see {log.name}")
    return json.loads(path.read_text())


def threads_of(job: Job, options: argparse.Namespace) -> int:
    """What all may use; a trial has one thread, because others run beside it."""
    return 1 if job.trial else options.threads


def environment_of(job: Job, options: argparse.Namespace) -> dict[str, str]:
    """The job's threads, and no look at the network."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads_of(job, options)), "HF_HUB_OFFLINE": "1"}


def candidates(row: str) -> list[tuple[str, float]]:
    """Detectors and rates that a row chooses from, if it does."""
    if row in HUGGING_FACE:
        return [(row, rate) for rate in RATES]
    if row == TORCHVISION:
        return [(detector, rate) for detector in TORCHVISION_DETECTORS for rate in RATES]
    return []


def choose(row: str, options: argparse.Namespace) -> tuple[str, float | None]:
    """The candidate that learned most in its trial: the highest AP, among equals the highest AP50.

    Where that is a detector's highest rate, still higher ones are tried as long as they are better.
    """
    offered = candidates(row)
    if not offered:
        return row, None
    truth = open_dataset(options.data, "val").ground_truth()
    scores: dict[tuple[str, float], tuple[float, float]] = {}
    while offered:
        jobs = [Job(row, *pair, options.seeds[0], TRIAL_SHARE * options.minutes, trial=True) for pair in offered]
        with ThreadPoolExecutor(options.threads) as pool:
            trials = list(pool.map(lambda job: done(job, options), jobs))
        for (detector, rate), trial in zip(offered, trials, strict=True):
            scores[detector, rate] = ap, ap50 = measured(trial["results"]["val"], truth)
            print(f"         trial {detector} {rate:g}: AP {ap:.3f}, AP50 {ap50:.3f}", flush=True)
        detector, rate = max(scores, key=lambda pair: scores[pair])
        highest = max(tried for name, tried in scores if name == detector)
        offered = [(detector, rate * HIGHER)] if rate == highest else []
    return detector, rate


def measured(results: list[dict[str, Any]], truth: dict[str, Any]) -> tuple[float, float]:
    """AP and AP50 by detrove's metrics."""
    metrics = coco_metrics(truth, results)
    return metrics.ap or 0.0, metrics.ap50 or 0.0


def table(rows: dict[str, list[dict[str, Any]]], truths: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each row and seed, and the means of each row with detrove's AP as a multiple of its AP."""
    lines = ["| row | detector | rate | seed | val AP | val AP50 | test AP | test AP50 | minutes | steps |"]
    lines.append("|---" * 10 + "|")
    means: dict[str, list[float]] = {}
    for row, runs in rows.items():
        numbers = []
        for run in runs:
            values = [x for s in ("val", "test") if s in truths for x in measured(run["results"][s], truths[s])]
            numbers.append(values)
            rate = "" if run["rate"] is None else f"{run['rate']:g}"
            lines.append(
                f"| {row} | {run['detector']} | {rate} | {run['seed']} | {cells(values)} | "
                f"{run['minutes']:.1f} | {run['steps']} |"
            )
        means[row] = [statistics.mean(column) for column in zip(*numbers, strict=True)]
    lines += ["", "| mean of seeds | val AP | val AP50 | test AP | test AP50 | detrove's val AP against it |"]
    lines.append("|---" * 6 + "|")
    for row, values in means.items():
        ratio = f"{means[DETROVE][0] / values[0]:.2f}x" if DETROVE in means and values[0] else ""
        lines.append(f"| {row} | {cells(values)} | {ratio} |")
    return "\n".join(lines)


def cells(values: Sequence[float]) -> str:
    """Four cells, AP and AP50 of val and of test, where there is one."""
    return " | ".join([f"{value:.3f}" for value in values] + [""] * (4 - len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set with the splits train and val, and test where it has one")
    parser.add_argument("--backbone-weights", type=Path, required=True, help="of mobilenetv2_100, .safetensors")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", choices=(*ROWS, *HUGGING_FACE), default=ROWS)
    parser.add_argument("--yolo-python", help="the interpreter of an environment with Ultralytics")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.job:
        run_job(Job(**json.loads(options.job)), options)
        return
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in options.rows:
        if row in (YOLO, YOLO_DEFAULT) and not options.yolo_python:
            print(f"{row}: left out (--yolo-python names no environment for it)")
            continue
        chosen = choose(row, options)
        rows[row] = [done(Job(row, *chosen, seed, options.minutes), options) for seed in options.seeds]
    text = table(rows, {split: open_dataset(options.data, split).ground_truth() for split in splits_of(options.data)})
    write_atomically(options.output / "table.md", (text + "\n").encode())
    print(text)


if __name__ == "__main__":
    main()
