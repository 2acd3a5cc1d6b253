"""Whatever is wrong with the input: exit status 2, exactly one line that names it and the remedy, and nothing lost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.checkpoints import save
from detrove.cli.main import run
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing

SIZES = {"num_queries": 6, "dim": 64, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}


@dataclass
class Answer:
    """What a command line answered."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line."""
        [line] = [line for line in self.err.splitlines() if "error" in line]
        assert line.startswith("detrove: error: ")
        return line


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run_command(*arguments: object) -> Answer:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return run_command


@pytest.fixture
def refused(command: Callable[..., Answer]) -> Callable[..., str]:
    """Run a command line that must be refused; gives its one error line."""

    def run_refused(*arguments: object) -> str:
        answer = command(*arguments)
        assert answer.status == 2
        assert "Traceback" not in answer.err
        return answer.error

    return run_refused


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DETR of two classes."""
    torch.manual_seed(0)
    model = catalogue.create("detr-nano", num_classes=2, backbone="test_resnet", **SIZES)
    labels = LabelMap.from_categories({1: "cell", 2: "debris"})
    detector = Detector(model, Preprocessing(longer=64), labels, torch.zeros(2), "detr-nano")
    return save(detector, tmp_path_factory.mktemp("weights") / "detr.safetensors")


def toy_training(backbone_weights: object = "none") -> list[object]:
    """Options that make a training take a second."""
    return [
        *("--epochs", "1", "--size", "64", "--batch-size", "2", "--backbone-weights", backbone_weights),
        *("--set", "workers=0", "--set", "model.backbone=test_resnet"),
        *(word for key, value in SIZES.items() for word in ("--set", f"model.{key}={value}")),
    ]


def annotations(num_pictures: int, **changes: Any) -> dict[str, Any]:
    """A COCO dict with one box in the middle of each picture."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(num_pictures)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": [16, 12, 32, 24], "area": 768, "iscrowd": 0}
            for i in range(num_pictures)
        ],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "debris"}],
        **changes,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A good data set of four training and two validation pictures; a test spoils one thing of it."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, num_pictures in (("train", 4), ("val", 2)):
        (folder / split).mkdir()
        for index in range(num_pictures):
            noise = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / split / f"{index}.jpg")
        write_annotations(folder, split, annotations(num_pictures))
    return folder


def write_annotations(data: Path, split: str, content: dict[str, Any]) -> Path:
    path = data / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_missing_files(refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    picture = data / "val" / "0.jpg"
    for arguments in (
        ("predict", weights, nowhere),
        ("predict", nowhere, picture),
        ("eval", weights, nowhere),
        ("eval", nowhere, data),
        ("train", nowhere, "--output", tmp_path / "run", *toy_training()),
        ("train", data, "--output", tmp_path / "run", *toy_training(), "--weights", nowhere),
        ("train", data, "--output", tmp_path / "run", *toy_training(nowhere)),
    ):
        assert str(nowhere) in refused(*arguments), arguments
        assert not (tmp_path / "run").exists()


def test_a_truncated_jpeg(refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = data / split / "1.jpg"
        path.write_bytes(path.read_bytes()[:700])
    for arguments in (
        ("predict", weights, data / "val" / "1.jpg"),
        ("predict", weights, data / "val", "--output", tmp_path / "found"),
        ("eval", weights, data),
    ):
        assert str(data / "val" / "1.jpg") in refused(*arguments)
    assert (tmp_path / "found" / "pictures" / "0.jpg").is_file()
    line = refused("train", data, "--output", tmp_path / "run", *toy_training())
    assert str(data / "train" / "1.jpg") in line or str(data / "val" / "1.jpg") in line


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1, 2", '{"images": [], "annotations": [], "categories": []}'])
def test_an_empty_annotation_file(
    refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path, text: str
) -> None:
    for split in ("train", "val"):
        (data / "annotations" / f"instances_{split}.json").write_text(text)
    assert "instances_train.json" in refused("train", data, "--output", tmp_path / "run", *toy_training())
    assert "instances_val.json" in refused("eval", weights, data)
    assert not (tmp_path / "run").exists()


def test_an_annotation_for_an_unknown_picture(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    content = annotations(4)
    content["annotations"][2]["image_id"] = 77
    path = write_annotations(data, "train", content)
    line = refused("train", data, "--output", tmp_path / "run", *toy_training())
    assert str(path) in line
    assert "77" in line
    assert not (tmp_path / "run").exists()


def test_a_picture_that_is_not_there(refused: Callable[..., str], weights: Path, data: Path) -> None:
    (data / "val" / "1.jpg").unlink()
    line = refused("eval", weights, data)
    assert "1.jpg" in line


def test_boxes_outside_and_of_zero_size_are_counted_and_skipped(
    command: Callable[..., Answer], weights: Path, data: Path
) -> None:
    content = annotations(2)
    extra = [[100, 100, 10, 10], [60, 40, 20, 20], [5, 5, 0, 10], [5, 5, 10, 0], [5, 5, 0, 0]]
    content["annotations"] += [
        {"id": 10 + i, "image_id": 0, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0}
        for i, box in enumerate(extra)
    ]
    path = write_annotations(data, "val", content)
    answer = command("eval", weights, data)
    assert answer.status == 0
    outside, zero = [line for line in answer.err.splitlines() if "warning" in line]
    assert "outside their picture: 2 " in outside
    assert "without width or height: 3 " in zero
    assert str(path) in outside
    assert str(path) in zero
    assert "detrove: error" not in answer.err


def test_an_unknown_model_offers_the_nearest(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    assert "detrove-nano" in refused("train", data, "--model", "detrove-nanno", "--output", tmp_path / "run")
    assert "deformable-r50" in refused("models", "deformable-r5")
    assert not (tmp_path / "run").exists()


def test_an_output_that_exists_is_not_touched(
    refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "taken"
    output.mkdir()
    (output / "precious.txt").write_text("years of work")
    before = snapshot(output)
    for arguments in (
        ("train", data, "--output", output, *toy_training()),
        ("predict", weights, data / "val", "--output", output),
        ("eval", weights, data, "--output", output),
    ):
        line = refused(*arguments)
        assert str(output) in line
        assert "exists already" in line
    assert snapshot(output) == before


def test_weights_of_another_detector(refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path) -> None:
    line = refused(
        *("train", data, "--output", tmp_path / "run", *toy_training()),
        *("--model", "deformable-nano", "--weights", weights),
    )
    assert f"{weights}: holds a detector of the kind detr (detr-nano)" in line
    assert "deformable-nano is of the kind deformable" in line
    assert "leave out --model" in line
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size(refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path) -> None:
    line = refused(
        *("train", data, "--output", tmp_path / "run", *toy_training()),
        *("--weights", weights, "--set", "model.norm_first=true", "--set", "model.num_encoder_layers=0"),
    )
    assert str(weights) in line
    assert "keys of the model are missing in the weights (encoder_norm.weight, " in line
    assert "keys of the weights are unknown to the model (encoder.0." in line
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes(
    refused: Callable[..., str], command: Callable[..., Answer], weights: Path, data: Path, tmp_path: Path
) -> None:
    for split, num_pictures in (("train", 4), ("val", 2)):
        categories = [{"id": i, "name": name} for i, name in enumerate(["crystal", "fibre", "dust"], start=1)]
        write_annotations(data, split, annotations(num_pictures, categories=categories))
    arguments = ("train", data, "--output", tmp_path / "run", *toy_training(), "--weights", weights)
    line = refused(*arguments)
    assert (
        f"{weights}: its classes (cell, debris) and the classes to learn (crystal, fibre, dust) share no name" in line
    )
    assert "--ignore-heads" in line
    assert not (tmp_path / "run").exists()
    answer = command(*arguments, "--ignore-heads")
    assert answer.status == 0
    assert f"class heads of {weights} left out: every class starts anew" in answer.err


def test_weights_that_name_no_classes(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    model = catalogue.create("detr-nano", num_classes=2, backbone="test_resnet", **SIZES)
    unnamed = save(model, tmp_path / "unnamed.safetensors")
    line = refused("train", data, *toy_training(), "--model", "detr-nano", "--weights", unnamed)
    assert f"{unnamed}: its classes (0, 1) and the classes to learn (cell, debris) share no name" in line
    assert "--ignore-heads" in line


def test_pickled_weights(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "old.pth")
    assert "holds no weights, but entries named model" in refused("eval", tmp_path / "old.pth", data)


def test_weights_cut_off(refused: Callable[..., str], weights: Path, data: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    assert "cut off" in refused("predict", cut, data / "val")


@pytest.mark.skipif(os.name == "nt", reason="file sizes cannot be limited there")
@pytest.mark.parametrize("verb", ["predict", "train"])
def test_a_full_disk(
    command: Callable[..., Answer],
    weights: Path,
    data: Path,
    tmp_path: Path,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on the size of a file meets every writer as a full disk does: in the midst of it."""
    import resource

    output = tmp_path / "out"
    arguments = {
        "predict": ["predict", weights, data / "val", "--output", output, "--save", "csv,pictures"],
        "train": ["train", data, "--model", "detr-nano", "--output", output, *toy_training()],
    }[verb]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep modules that it could write in part
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        answer = command(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert answer.status == 2, answer.err
    assert "Traceback" not in answer.err
    assert "no room left on the disk" in answer.error
    assert str(output) in answer.error
    assert not list(output.rglob("*.partial"))
