"""One entry for weights of every origin: who reads them, and what a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch

import detrove
from detrove.checkpoints import hugging_face, official, reading
from detrove.checkpoints.official import ImportReport
from detrove.errors import InputError
from detrove.models import catalogue

MODEL = "detr-toy"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub's, and no network."""

    def download(url: str, path: str, hash_prefix: str | None = None) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub" / "checkpoints"


def test_an_official_file_becomes_one_of_ours(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    source = official_file(tmp_path / "checkpoint.pth")
    checkpoint, report = reading.read_with_report(source, MODEL)
    assert report.layout == "detr"
    assert len(report.matched) == len(checkpoint.tensors)
    assert checkpoint.source == source

    saved = detrove.save(checkpoint, tmp_path / "ours.safetensors")

    back, report = reading.read_with_report(saved)
    assert report.layout == "detrove"
    assert back.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(back.tensors[key], checkpoint.tensors[key]) for key in back.tensors)
    assert replace(back, tensors={}, source=source) == replace(checkpoint, tensors={})
    assert back.training == {"converted_from": "checkpoint.pth"}


def test_one_head_under_many_names_stays_one(tmp_path: Path) -> None:
    """Deformable DETR's plain form stores its heads six times."""
    torch.manual_seed(0)
    config = replace(catalogue.preset("deformable-nano").config, backbone="test_resnet", dim=32, feedforward_dim=8)
    own = reading.read(detrove.save(catalogue.build(config), tmp_path / "own.safetensors"))
    copies = replace(own, tensors={key: value.clone() for key, value in own.tensors.items()})
    back = reading.read(detrove.save(copies, tmp_path / "back.safetensors"))
    assert all(torch.equal(back.tensors[key], own.tensors[key]) for key in own.tensors)
    stored = safetensors.torch.load_file(tmp_path / "back.safetensors")
    assert "class_heads.0.weight" in stored
    assert "class_heads.1.weight" not in stored


def test_the_content_decides_and_not_the_suffix(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    pickled = official_file(tmp_path / "renamed.safetensors")
    assert reading.read(pickled, MODEL).preset == MODEL


def test_an_official_state_dict_as_safetensors(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    tensors = torch.load(official_file(tmp_path / "a.pth"), weights_only=True)["model"]
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    checkpoint, report = reading.read_with_report(tmp_path / "a.safetensors", MODEL)
    assert report.layout == "detr"
    assert torch.equal(checkpoint.tensors["class_head.weight"], tensors["class_embed.weight"])


def test_settings_in_the_file_choose_among_models(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    assert reading.read(official_file(tmp_path / "a.pth", dilation=True)).preset == "detr-toy-dc5"
    with pytest.raises(InputError, match="fit detr-toy, detr-toy-dc5; say which: --model detr-toy, or model="):
        reading.read(official_file(tmp_path / "a.pth"))


def test_a_named_model_stands_in_for_a_stored_config(tmp_path: Path, official_file: Callable[..., Path]) -> None:
    ours = detrove.save(reading.read(official_file(tmp_path / "a.pth"), MODEL), tmp_path / "a.safetensors")
    other = reading.read(ours, "detr-toy-dc5")
    assert other.preset == "detr-toy-dc5"
    assert other.config["dilation"]
    with pytest.raises(InputError, match=r"a\.safetensors as deformable-nano: .* missing in the weights"):
        reading.read(ours, "deformable-nano")


def test_a_published_name_is_downloaded_once(
    cache: Path, official_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "detr-r50-dc5-f0fb7ef5.pth"
    calls = []

    def download(url: str, path: str, hash_prefix: str | None = None) -> None:
        calls.append((url, hash_prefix))
        official_file(Path(path))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setitem(official.PUBLISHED, name, replace(official.PUBLISHED[name], preset="detr-toy-dc5"))
    for _ in range(2):
        checkpoint = reading.read(name)
        assert checkpoint.preset == "detr-toy-dc5"
        assert checkpoint.source == cache / name
    assert calls == [(f"https://dl.fbaipublicfiles.com/detr/{name}", "f0fb7ef5")]


def test_a_published_name_without_a_network(cache: Path) -> None:
    with pytest.raises(InputError) as caught:
        reading.read("detr-r50-e632da11.pth")
    message = str(caught.value)
    assert message.startswith("detr-r50-e632da11.pth: no such file here, and it cannot be downloaded from https://")
    assert "Name or service not known" in message
    assert "name the file" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.safetensors", "no such checkpoint$"),
        ("nowhere.pth", "no such checkpoint$"),
        ("detr-r50-e632da1.pth", "no such checkpoint; did you mean detr-r50-e632da11.pth"),
        ("detr-r50", "a model of the catalogue; its official weights are detr-r50-e632da11.pth$"),
        ("deformable-r50", "its official weights stand on Google Drive, linked in the README of github.com/fund"),
        ("stacked-r50", "stand on Baidu Pan"),
        ("detrove-nano", "a model of the catalogue; train it first"),
    ],
)
def test_names_that_stand_for_nothing(cache: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*{message}"):
        reading.read(name)


def test_a_folder_and_a_name_of_hugging_face(
    tmp_path: Path, official_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = reading.read(official_file(tmp_path / "a.pth"), MODEL)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    seen = []
    report = ImportReport("Hugging Face", tuple(checkpoint.tensors), {"second names": ("a",)})
    monkeypatch.setattr(hugging_face, "import_with_report", lambda path: seen.append(path) or (checkpoint, report))
    monkeypatch.setattr(hugging_face, "download", lambda name: seen.append(name) or folder)
    monkeypatch.chdir(tmp_path)

    assert reading.read_with_report(folder) == (checkpoint, report)
    assert reading.read("owner/detr-v1.5") is checkpoint
    assert reading.read(folder, "detr-toy-dc5").preset == "detr-toy-dc5"
    assert seen == [folder, "owner/detr-v1.5", folder, folder]


def test_a_name_that_the_hub_cannot_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str) -> Path:
        raise InputError(f"{name}: no network")

    monkeypatch.setattr(hugging_face, "download", download)
    monkeypatch.chdir(tmp_path)
    hub_line = r"^owner/name: no such file or folder here; on the Hugging Face hub: no network"
    with pytest.raises(InputError, match=hub_line):
        reading.read("owner/name")
    (tmp_path / "owner").mkdir()
    with pytest.raises(InputError, match=r"^owner/name: no such checkpoint$"):
        reading.read("owner/name")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        reading.read(tmp_path)
