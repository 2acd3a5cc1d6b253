"""Two processes (gloo, CPU) train as one does with the batch of both; whoever dies is told of, and nobody hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from detrove.data import training_loader
from detrove.evaluation import evaluate
from detrove.models import catalogue
from detrove.training.optimizer import build_optimizer
from detrove.training.trainer import augmentation_of, seed_step

sys.path.insert(0, str(Path(__file__).parent))
import two_processes
from two_processes import EMPTY, EPOCHS, make_config, train_without_validation, write_data

PATIENCE = 300.0  # seconds, on a machine with better things to do
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures to train on, five to validate on, and six of which one has an object."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "train", [1, 3, 2, 1, 4, 1, 2, 1, 2, 3], seed=1)  # two boxes a step, see `count_boxes`
    write_data(folder, "val", [1, 2, 1, 3, 2], seed=2)
    write_data(folder, "sparse", [0, 0, 2, 0, 0, 0], seed=3)
    return folder


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of what two processes trained that torchrun started, and what each of them had in the end."""
    output = tmp_path_factory.mktemp("both")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, two_processes.__file__, str(data), str(output)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return output, [json.loads((output / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_what_is_wrong_for_all_is_said_once(data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "detrove", "train", str(data / "nowhere"), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("detrove: error")]
    assert "nowhere" in line


def test_both_have_the_same_weights(both: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (result["digests"] for result in both[1])
    assert first == second
    assert set(first) == {*EPOCHS, *(f"empty-{model}" for model in EMPTY)}
    assert len(set(first.values())) == len(first)


def test_two_are_as_one_with_the_doubled_batch(
    data: Path, both: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    config = make_config(data, tmp_path / "alone", "dab-nano", EPOCHS["dab-nano"])
    _, alone = train_without_validation(config, double=True)
    together = both[1][0]["losses"]["dab-nano"]
    assert len(alone) == len(together) == 51
    assert alone[-1]["loss"] < 0.8 * alone[0]["loss"]
    for step, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert other == pytest.approx(one, rel=1e-6), step


def unscaled(model: str) -> Callable[[str], bool]:
    """Which terms are means over a process's own queries or noised objects."""
    if model == "detr-nano":
        return lambda name: name == "class"
    return lambda name: name.startswith("denoising")


@pytest.mark.parametrize("model", ["detr-nano", "dn-dab-nano"])
def test_means_of_each_process_are_as_two_halves_by_hand(
    data: Path, both: tuple[Path, list[dict[str, Any]]], tmp_path: Path, model: str
) -> None:
    """Softmax is a mean over a process's queries, denoising over its objects; boxes are counted over both."""
    config = make_config(data, tmp_path / "alone", model, EPOCHS[model])
    trainer = two_processes.prepare(config, two_processes.Losses(), double=True)
    detector, dataset, told = trainer._bare_model().train(), trainer.training_data, []
    criterion, optimizer = catalogue.criterion_for(detector), build_optimizer(detector, config.recipe)
    halves = [
        training_loader(dataset, config.preprocessing, augmentation_of(config.recipe), 4, 0, 0, process, 2)
        for process in (0, 1)
    ]
    for epoch in range(EPOCHS[model]):
        for loader in halves:
            loader.set_epoch(epoch)
        for batches in zip(*halves, strict=True):
            mean_count = max(sum(len(target) for _, targets in batches for target in targets) / 2, 1.0)
            losses = []
            for process, (images, targets) in enumerate(batches):
                seed_step(0, len(told), process)
                own = max(sum(map(len, targets)), 1)
                found = criterion(detector(images.to(torch.float64), targets), targets)
                share = own / mean_count
                losses.append({k: v if unscaled(model)(k) else v * share for k, v in found.items()})
            weighted = [criterion.weights[k.split("_")[-1]] * v.sum() for terms in losses for k, v in terms.items()]
            loss = torch.stack(weighted).sum() / 2
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(detector.parameters(), config.recipe.clip_norm)
            optimizer.step()
            terms = {k: (losses[0][k][-1].item() + losses[1][k][-1].item()) / 2 for k in losses[0]}
            told.append({"loss": loss.item(), **terms})
    together = both[1][0]["losses"][model]
    assert len(told) == len(together) == 6
    for step, (one, other) in enumerate(zip(told, together, strict=True)):
        assert other == pytest.approx(one, rel=1e-6), step


def test_validation_is_shared_and_is_that_of_eval(data: Path, both: tuple[Path, list[dict[str, Any]]]) -> None:
    output, results = both
    assert results[0]["metrics"] == results[1]["metrics"]
    assert evaluate(output / "validated", data).to_json() == results[0]["metrics"]
    assert {entry.name for entry in (output / "validated").iterdir()} >= {"best.safetensors", "last", "report.html"}
    assert not list(output.rglob("*partial*"))


def toy_command(data: Path, output: Path, *options: str) -> list[str]:
    """A training that does not end by itself."""
    settings = [part for key, value in two_processes.TOY.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    basic = ["--model", "detr-nano", "--size", "64", "--batch-size", "4", "--backbone-weights", "none"]
    command = [sys.executable, "-m", "detrove", "train", str(data), "--output", str(output), "--epochs", "100000"]
    return [*command, *basic, *settings, *options]


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command; at the end of the test nothing of it is left."""
    processes: list[subprocess.Popen[str]] = []

    def start(command: list[str], **place: str) -> subprocess.Popen[str]:
        processes.append(subprocess.Popen(command, env=ENVIRONMENT | place, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.05)


def test_devices_a_killed_process_ends_the_other(
    data: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    process = started(toy_command(data, tmp_path / "run", "--devices", "2"))
    wait_for(tmp_path / "run" / "last", process)
    children = psutil.Process(process.pid).children()
    workers = sorted(c.pid for c in children if "spawn_main" in " ".join(c.cmdline()))
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    [error] = [line for line in told.splitlines() if "error" in line]
    assert error.startswith("detrove: error: process 2 of 2 was killed, most often for want of memory")
    assert error.endswith("continue the run with --resume")
    assert not psutil.pid_exists(workers[0])
    assert (tmp_path / "run" / "last" / "state.json").exists()


def test_without_a_launcher_the_other_process_says_so_itself(
    data: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """As on a cluster, where each machine starts its own."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = toy_command(data, tmp_path / "run")
    processes = [started(command, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
    wait_for(tmp_path / "run" / "last", processes[0])
    processes[1].kill()
    _, told = processes[0].communicate(timeout=PATIENCE)
    assert processes[0].returncode == 2
    assert "detrove: error: process 1 of 2: another process of this training has ended" in told.splitlines()[-1]


def free_port() -> int:
    """A port that nobody listens at."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
