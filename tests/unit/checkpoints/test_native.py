"""The checkpoint file: everything comes back, equal to the bit, and every bad file gets its one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from detrove.checkpoints import native, read, save
from detrove.errors import InputError
from detrove.structures import LabelMap, Preprocessing
from detrove.tiling import Tiling


class Trap:
    """Fails the test by leaving a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def detector_of(catalogue: SimpleNamespace, **config) -> SimpleNamespace:
    return SimpleNamespace(
        model=catalogue.Toy(catalogue.ToyConfig(**config)),
        preprocessing=Preprocessing(longer=320, resize_filter="bicubic", mean=(0.1, 0.2, 0.3)),
        label_map=LabelMap.from_categories({7: "red cell", 9: "Blutplättchen", 12: "white cell"}),
        thresholds=torch.tensor([0.1, 1 / 3, 0.7]),
        name="toy",
        tiling=Tiling(640, 0.25),
    )


@pytest.fixture
def saved(tmp_path: Path, toy_catalogue: SimpleNamespace) -> Path:
    return save(detector_of(toy_catalogue), tmp_path / "toy.safetensors", training={"epochs": 3, "seed": 0})


def test_everything_comes_back(saved: Path, toy_catalogue: SimpleNamespace) -> None:
    torch.manual_seed(1)
    detector = detector_of(toy_catalogue)
    save(detector, saved, training={"epochs": 3, "seed": 0})

    checkpoint = read(saved)

    assert checkpoint.label_map == detector.label_map
    assert checkpoint.preprocessing == detector.preprocessing
    assert checkpoint.tiling == detector.tiling
    assert checkpoint.thresholds is not None
    assert torch.equal(checkpoint.thresholds, detector.thresholds)
    assert checkpoint.preset == "toy"
    assert checkpoint.training == {"epochs": 3, "seed": 0}
    assert checkpoint.detrove_version
    model = checkpoint.build()
    assert model.config == detector.model.config
    assert not model.training
    assert_same_bits(model, detector.model)


@pytest.mark.parametrize("tied", [True, False])
def test_shared_parameters_round_trip(tmp_path: Path, toy_catalogue: SimpleNamespace, tied: bool) -> None:
    detector = detector_of(toy_catalogue, tied=tied)
    save(detector, tmp_path / "a.safetensors")
    checkpoint = read(tmp_path / "a.safetensors")
    assert checkpoint.tensors.keys() == detector.model.state_dict().keys()
    model = checkpoint.build()
    assert_same_bits(model, detector.model)
    assert (model.class_heads[0].weight is model.class_heads[2].weight) == tied
    stored = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert ("class_heads.2.weight" in stored) != tied


def test_parts_of_one_storage_are_not_the_same_tensor(tmp_path: Path, toy_catalogue: SimpleNamespace) -> None:
    detector = detector_of(toy_catalogue, width=2)
    both = torch.randn(2, 4)
    detector.model.body.weight = torch.nn.Parameter(both[:, :2])
    detector.model.class_heads[0].bias = torch.nn.Parameter(both[0, 1:4])
    save(detector, tmp_path / "a.safetensors")
    assert_same_bits(read(tmp_path / "a.safetensors").build(), detector.model)


def test_a_bare_model_gets_its_presets_preprocessing(tmp_path: Path, toy_catalogue: SimpleNamespace) -> None:
    model = toy_catalogue.Toy(toy_catalogue.ToyConfig(num_classes=2, width=6))
    checkpoint = read(save(model, tmp_path / "bare.safetensors"))
    assert checkpoint.preset == "toy-wide"
    assert checkpoint.preprocessing == Preprocessing(longer=96)
    assert checkpoint.label_map.names == ["0", "1"]
    assert checkpoint.thresholds is None


def test_a_bare_model_of_no_preset(tmp_path: Path, toy_catalogue: SimpleNamespace) -> None:
    checkpoint = read(save(toy_catalogue.Toy(toy_catalogue.ToyConfig(width=5)), tmp_path / "bare.safetensors"))
    assert checkpoint.preset is None
    assert checkpoint.preprocessing == Preprocessing()


def test_every_value_of_the_metadata_is_json(saved: Path) -> None:
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["format"] == "detrove"
    assert metadata["format_version"] == 2
    assert metadata["labels"][1] == {"id": 9, "name": "Blutplättchen"}
    assert metadata["config"]["detector"] == "toy"


def test_a_failed_write_leaves_the_last_good_file(
    saved: Path, toy_catalogue: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="no room left on the disk"):
        save(detector_of(toy_catalogue), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_name_without_the_suffix_is_refused(tmp_path: Path, toy_catalogue: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        save(detector_of(toy_catalogue), tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "renamed.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_never_opened(tmp_path: Path, name: str, zipped: bool) -> None:
    path, mark = tmp_path / name, tmp_path / "it ran"
    if zipped:
        torch.save({"model": Trap(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(mark)))
    message = refused(path)
    assert "a pickled file, not one of detrove's own" in message
    assert not mark.exists()


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    assert "cut off" in refused(saved)


def test_a_safetensors_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert "not one that detrove saved" in refused(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    assert "not one that detrove saved" in refused(path)


def test_a_newer_format(saved: Path) -> None:
    rewrite_metadata(saved, format_version="3")
    assert "format version 3 is newer" in refused(saved)


def test_weights_of_a_detector_that_was_remade(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite_metadata(saved, format_version="1")
    read(saved)
    monkeypatch.setitem(native.REMADE, "toy", 2)
    assert "the boxes of toy were reckoned otherwise: train it again" in refused(saved)


@pytest.mark.parametrize("key", ["format_version", "config", "labels", "thresholds", "shared"])
def test_missing_metadata(saved: Path, key: str) -> None:
    rewrite_metadata(saved, **{key: None})
    assert key in refused(saved)


def test_damaged_metadata(saved: Path) -> None:
    rewrite_metadata(saved, config="{")
    assert "damaged" in refused(saved)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(tmp_path / "nowhere.safetensors")
    assert "is a folder" in refused(tmp_path)


def test_weights_that_do_not_fit_their_own_config(saved: Path, toy_catalogue: SimpleNamespace) -> None:
    config = {"detector": "toy", "num_classes": 3, "width": 9, "tied": True}
    rewrite_metadata(saved, config=json.dumps(config))
    with pytest.raises(InputError, match=r"body\.weight \(4, 2\) for \(9, 2\)"):
        read(saved).build()


def refused(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(InputError) as caught:
        native.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def rewrite_metadata(path: Path, **changes: str | None) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
    kept = {key: value for key, value in metadata.items() if value is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata=kept)


def assert_same_bits(model: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key
