"""`detrove bench`: names, files, options and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

QUICK = ("--seconds", "0.05", "--size", "64")


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detrove.inference.bench.machine.SIDES", {"cpu": (8,)})


def test_a_name_with_random_weights(detrove_command: Callable) -> None:
    answer = detrove_command("bench", "detr-nano", *QUICK)
    assert answer.status == 0
    lines = answer.out.splitlines()
    assert lines[0] == "detr-nano (random weights: the speed is real, detections would not be)"
    assert lines[1] == "a generated picture, seen at 64×48, batch 1"
    assert max(map(len, lines)) <= 100
    stages = [line.split()[0] for line in lines if " ms" in line and "%" in line and line.split()[1] != "median"]
    assert stages == ["decode", "preprocess", "trunk", "encoder", "decoder", "postprocess"]


def test_a_file_as_json(detrove_command: Callable, weights: Path, photos: Path) -> None:
    answer = detrove_command("bench", weights, "--image", photos / "a.jpg", "--batch", "2", "--json", *QUICK)
    found = json.loads(answer.out)
    assert found["weights"] == str(weights)
    assert found["model"] == "detr-nano"
    assert found["picture"] == str(photos / "a.jpg")
    assert (found["height"], found["width"], found["batch"]) == (43, 64, 2)
    assert found["engine"] is None
    assert found["precision"] == "float32"
    assert sum(found["stages"].values()) == pytest.approx(found["latency"], rel=0.5)
    assert found["share_of_peak"] == pytest.approx(found["speed"] / found["matrix_product_peak"])


def test_an_engine(detrove_command: Callable, weights: Path) -> None:
    answer = detrove_command("bench", weights, "--engine", "torch", "--json", *QUICK)
    assert answer.status == 0
    assert json.loads(answer.out)["engine"] == "torch"
    assert "engine torch, float32" in detrove_command("bench", weights, "--engine", "torch", *QUICK).out


def test_threads(detrove_command: Callable, weights: Path) -> None:
    before = torch.get_num_threads()
    try:
        answer = detrove_command("bench", weights, "--threads", "1", "--json", *QUICK)
        assert json.loads(answer.out)["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "--batch must be at least 1, got 0"),
        (("--size", "-3"), "--size must be at least 1, got -3"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--seconds", "0"), "--seconds must be more than 0, got 0"),
        (("--seconds", "nan"), "--seconds must be more than 0, got nan"),
        (("--precision", "bfloat16"), "--precision is an engine's: name an --engine, such as torch"),
        (("--engine", "steam"), "unknown engine 'steam'"),
        (("--image", "nowhere.jpg"), "nowhere.jpg: no such picture"),
    ],
)
def test_bad_options(detrove_command: Callable, weights: Path, arguments: tuple[str, ...], message: str) -> None:
    answer = detrove_command("bench", weights, *arguments)
    assert answer.status == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1


def test_neither_name_nor_file(detrove_command: Callable) -> None:
    answer = detrove_command("bench", "detr-nan")
    assert answer.status == 2
    assert "detr-nan" in answer.err
