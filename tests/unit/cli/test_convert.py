"""`detrove convert`: foreign weights become a file that predicts, and the report says what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import detrove
from detrove.checkpoints import hugging_face


def test_an_official_file_becomes_one_that_predicts(
    tmp_path: Path, detrove_command: Callable, official_file: Callable[..., Path], photos: Path
) -> None:
    source, ours = official_file(tmp_path / "checkpoint.pth"), tmp_path / "ours.safetensors"
    answer = detrove_command("convert", source, ours, "--model", "detr-toy")
    assert answer.status == 0, answer.err
    lines = dict(line.split(None, 1) for line in answer.out.splitlines())
    assert lines["from"] == f"{source} (layout: detr)"
    assert lines["model"] == "detr-toy"
    assert lines["tensors"].endswith(", none missing, none unexpected")
    assert lines["classes"] == "80 named of 91 slots (person, bicycle, car, …)"
    assert lines["written"] == str(ours)
    found = json.loads(detrove_command("predict", ours, photos, "--threshold", 0, "--json").out)
    assert {each["name"] for picture in found["pictures"] for each in picture["detections"]} - {""}


def test_what_is_left_out_is_named(
    tmp_path: Path, detrove_command: Callable, official_file: Callable[..., Path]
) -> None:
    source = official_file(tmp_path / "a.pth", dilation=False)
    content = torch.load(official_file(tmp_path / "a.pth"), weights_only=True)
    content["model"]["mask_head.lay1.weight"] = torch.zeros(1)
    torch.save(content, source)
    answer = detrove_command("convert", source, tmp_path / "a.safetensors", "--model", "detr-toy")
    assert "1 mask head (mask_head.lay1.weight)" in answer.out
    answer = detrove_command("convert", source, tmp_path / "b.safetensors", "--model", "detr-toy", "--json")
    facts = json.loads(answer.out)
    assert facts["left_out"] == {"mask head": ["mask_head.lay1.weight"]}
    assert (facts["layout"], facts["detector"], facts["model"]) == ("detr", "detr", "detr-toy")
    assert (len(facts["classes"]), facts["class_slots"]) == (80, 91)
    assert facts["matched"] == len(content["model"]) - 1
    model = detrove.load(tmp_path / "b.safetensors").model
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_run_folder_is_taken(tmp_path: Path, detrove_command: Callable, weights: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").write_bytes(weights.read_bytes())
    answer = detrove_command("convert", tmp_path / "run", tmp_path / "new.safetensors")
    assert answer.status == 0, answer.err
    assert "2 named of 2 slots (cell, debris)" in answer.out
    assert detrove.load(tmp_path / "new.safetensors").thresholds is not None


@pytest.mark.parametrize(("name", "options"), [("folder", []), ("folder.v2", ["--to", "hugging-face"])])
def test_a_folder_for_hugging_face(
    tmp_path: Path,
    detrove_command: Callable,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: list[str],
) -> None:
    written = []
    monkeypatch.setattr(hugging_face, "export_folder", lambda checkpoint, folder: written.append(folder) or folder)
    (tmp_path / name).mkdir()  # an empty one is in nobody's way
    answer = detrove_command("convert", weights, tmp_path / name, *options)
    assert answer.status == 0, answer.err
    assert written == [tmp_path / name]


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("taken.safetensors", [], "exists already; choose another name"),
        ("full", [], "exists already; choose another name"),
        ("new.pth", [], "a detrove file's name ends in .safetensors"),
        ("new", ["--to", "detrove"], "a detrove file's name ends in .safetensors"),
        ("new.safetensors", ["--to", "hugging-face"], "for Hugging Face name a folder"),
        ("new", ["--to", "onnx"], "--to onnx: unknown; choose from detrove, hugging-face"),
        ("new.safetensors", ["--model", "detr-nanno"], "did you mean detr-nano"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, detrove_command: Callable, weights: Path, output: str, options: list[str], message: str
) -> None:
    (tmp_path / "taken.safetensors").write_bytes(b"somebody's")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    answer = detrove_command("convert", weights, tmp_path / output, *options)
    assert answer.status == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert (tmp_path / "taken.safetensors").read_bytes() == b"somebody's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "taken.safetensors"]
