"""`load`: what was saved predicts the same, and what cannot be loaded says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detrove
from detrove.checkpoints.coco_labels import COCO_CATEGORIES
from detrove.errors import InputError
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing

SMALL = {"num_queries": 8, "dim": 64, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 2}


def small(name: str, **overrides: object) -> nn.Module:
    torch.manual_seed(0)
    return catalogue.create(name, num_classes=3, **{**SMALL, **overrides})


@pytest.mark.parametrize("name", ["detr-nano", "deformable-nano", "detrove-nano"])
def test_what_was_saved_predicts_the_same(tmp_path: Path, name: str) -> None:
    """Deformable DETR shares its heads between layers, so this covers tensors with several names in a real model."""
    labels = LabelMap.from_categories({1: "a", 2: "b", 7: "c"})
    detector = detrove.Detector(small(name), Preprocessing(longer=64), labels, torch.tensor([0.0, 0.01, 0.02]), name)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    before = detector.predict(picture)

    loaded = detrove.load(detrove.save(detector, tmp_path / "a.safetensors"))

    assert loaded.name == name
    assert loaded.label_map == labels
    assert not loaded.model.training
    after = loaded.predict(picture)
    assert len(after) > 0
    assert torch.equal(after.boxes, before.boxes)
    assert torch.equal(after.scores, before.scores)
    assert torch.equal(after.labels, before.labels)


def test_a_run_folder_stands_for_its_best_weights(tmp_path: Path) -> None:
    detrove.save(small("detr-nano"), tmp_path / "run" / "best.safetensors")
    assert detrove.load(tmp_path / "run").label_map.names == ["0", "1", "2"]


def test_a_bare_preset_is_recognised(tmp_path: Path) -> None:
    path = detrove.save(catalogue.create("detr-nano", num_classes=3), tmp_path / "a.safetensors")
    loaded = detrove.load(path)
    assert loaded.name == "detr-nano"
    assert loaded.preprocessing == catalogue.preset("detr-nano").preprocessing
    assert detrove.load(path, model="detr-nano").name == "detr-nano"


def test_weights_of_another_model_list_both_sides(tmp_path: Path) -> None:
    path = detrove.save(catalogue.create("detr-nano", num_classes=3), tmp_path / "a.safetensors")
    with pytest.raises(InputError) as caught:
        detrove.load(path, model="deformable-nano")
    message = str(caught.value)
    assert message.startswith(f"{path} as deformable-nano: ")
    assert "keys of the model are missing in the weights (level_embedding, queries, " in message
    assert "keys of the weights are unknown to the model (box_head.0.bias, " in message
    assert "have another shape (" in message
    assert "\n" not in message


def test_an_official_checkpoint_names_what_it_sees(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    """Its file name is enough in real life; the toy's is no published one."""
    path = official_file(tmp_path / "checkpoint.pth")
    detector = detrove.load(path, model="detr-toy")
    assert detector.name == "detr-toy"
    assert detector.preprocessing == catalogue.preset("detr-toy").preprocessing
    assert not detector.model.training
    found = detector.predict(np.zeros((48, 64, 3), dtype=np.uint8), threshold=0.0)
    assert len(found) == 5
    assert set(found.names) <= {"", *COCO_CATEGORIES.values()}
    theirs = torch.load(path, weights_only=True)["model"]
    assert torch.equal(detector.model.state_dict()["class_head.bias"], theirs["class_embed.bias"])


def test_an_official_checkpoint_of_two_candidates_asks(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="fit detr-toy, detr-toy-dc5; say which"):
        detrove.load(official_file(tmp_path / "checkpoint.pth"))
    assert detrove.load(official_file(tmp_path / "checkpoint.pth", dilation=False)).name == "detr-toy"


def test_an_unknown_model_offers_the_nearest(tmp_path: Path) -> None:
    path = detrove.save(small("detr-nano"), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="did you mean detr-nano"):
        detrove.load(path, model="detr-nanno")


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.safetensors", "no such checkpoint"), ("model.onnx", "no such file"), (".", "no finished run")],
)
def test_what_cannot_be_loaded(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detrove.load(tmp_path / name)
