"""Starting from a trained detector of whatever origin, where the classes are partly the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detrove import checkpoints
from detrove.checkpoints.hugging_face import export_folder
from detrove.errors import InputError
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing
from detrove.training.config import TrainingConfig
from detrove.training.held_out import open_splits
from detrove.training.optimizer import parameter_groups
from detrove.training.train import build_model, train

PERSON, NO_OBJECT = 1, 91  # rows of the official class head


@pytest.fixture(scope="module")
def streets(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The squares, called crate and person: COCO knows the second."""
    folder = tmp_path_factory.mktemp("streets") / "squares"
    shutil.copytree(squares, folder)
    for path in (folder / "annotations").iterdir():
        coco = json.loads(path.read_text())
        coco["categories"] = [{"id": 1, "name": "crate"}, {"id": 2, "name": "person"}]
        path.write_text(json.dumps(coco))
    return folder


def begun(data: Path, weights: Path, tiny_options: Callable[..., Any] | None = None, **options: Any):
    """The detector that a training would begin with, what is told of its classes, and the config."""
    settings = {} if tiny_options is None else toy_settings(tiny_options)
    model = options.pop("model", "detr-nano")
    config = TrainingConfig.from_preset(
        catalogue.preset(model),
        settings=settings,
        size=64,
        batch_size=4,
        data=str(data),
        output="",
        model=model,
        epochs=1,
        weights=str(weights),
        **options,
    )
    return *build_model(config, open_splits(config)[0]), config


@pytest.fixture(scope="module")
def official(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file as the official code of DETR R50 writes it, with random numbers, and its tensors."""
    shapes = json.loads((shared / "checkpoint-layouts" / "detr.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    tensors = {key: 0.02 * torch.randn(shape) for key, shape in shapes.items()}
    path = tmp_path_factory.mktemp("official") / "checkpoint.pth"
    torch.save({"model": tensors}, path)
    return path, tensors


@pytest.mark.slow
def test_an_official_file_is_a_start(official, streets: Path):
    path, tensors = official
    model, told, config = begun(streets, path, model="detr-r50")
    assert told is not None
    assert f"classes kept from {path}: person (1 of 2); new: crate; left out: bicycle, car" in told
    own = model.state_dict()
    torch.testing.assert_close(own["query_positions"], tensors["query_embed.weight"], rtol=0, atol=0)
    kept = tensors["class_embed.weight"][[PERSON, NO_OBJECT]]
    torch.testing.assert_close(own["class_head.weight"][[1, 2]], kept, rtol=0, atol=0)
    assert not torch.isclose(own["class_head.weight"][0, :, None], tensors["class_embed.weight"].T).all(dim=0).any()
    rates = {group["name"]: group["initial_lr"] for group in parameter_groups(model, config.recipe)}
    assert rates == {"backbone": 1e-5, "rest": 1e-4}  # the official ones
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("conv1" in name and "layer" not in name for name in learning)  # the stem is fixed


def toy_settings(tiny_options: Callable[..., Any]) -> dict[str, Any]:
    """The toy detector on a ResNet, the only trunks that Hugging Face's code computes as they are."""
    return tiny_options(Path())["settings"] | {"model.backbone": "resnet18"}


def saved(tiny_options: Callable[..., Any], folder: Path) -> tuple[Path, nn.Module]:
    """A toy detector of red and person in a file of ours, and its model."""
    settings = toy_settings(tiny_options)
    sizes = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    torch.manual_seed(0)
    model = catalogue.create("detr-nano", num_classes=2, backbone_frozen=True, **sizes)
    labels = LabelMap.from_categories({0: "person", 7: "red"})
    detector = Detector(model, Preprocessing(longer=64), labels, name="detr-nano")
    return checkpoints.save(detector, folder / "best.safetensors"), model


def assert_begun_from(before: nn.Module, after: nn.Module) -> None:
    """All tensors are the same, but for the class head's row of crate."""
    given = before.state_dict()
    for key, value in after.state_dict().items():
        if key.startswith("class_head."):
            torch.testing.assert_close(value[[1, 2]], given[key][[0, 2]], rtol=0, atol=0, msg=key)
            assert key != "class_head.weight" or not torch.equal(value[0], given[key][1])
        else:
            torch.testing.assert_close(value, given[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("origin", ["file", "run folder", "Hugging Face folder"])
def test_any_origin_gives_the_same_start(streets: Path, tmp_path: Path, tiny_options, origin: str):
    file, before = saved(tiny_options, tmp_path)
    source = {"file": file, "run folder": tmp_path}.get(origin)
    if source is None:
        source = export_folder(checkpoints.read(file), tmp_path / "theirs")
    after, told, _ = begun(streets, source, tiny_options)
    assert told == f"classes kept from {source}: person (1 of 2); new: crate; left out: red"
    assert_begun_from(before, after)


def test_a_folder_that_holds_no_weights_is_named(streets: Path, tmp_path: Path, tiny_options):
    with pytest.raises(InputError, match=r"no best\.safetensors in this folder"):
        begun(streets, tmp_path, tiny_options)


def test_no_shared_class_is_refused_with_the_way_round(squares: Path, tmp_path: Path, tiny_options):
    detector = checkpoints.read(saved(tiny_options, tmp_path)[0])
    other = dataclasses.replace(detector, label_map=LabelMap.from_categories({1: "cat", 2: "dog"}))
    other_file = checkpoints.save(
        Detector(other.build(), other.preprocessing, other.label_map, name="detr-nano"), tmp_path / "cats.safetensors"
    )
    with pytest.raises(InputError, match=r"cats\.safetensors.*share no name.*--ignore-heads"):
        begun(squares, other_file, tiny_options)
    assert "every class starts anew" in begun(squares, other_file, tiny_options, ignore_heads=True)[1]


@pytest.mark.parametrize(("rate", "fixed"), [(0.0, True), (1e-5, False)])
def test_a_trunk_of_rate_zero_is_fixed_whole(streets: Path, tmp_path: Path, tiny_options, rate: float, fixed: bool):
    weights, _ = saved(tiny_options, tmp_path)
    settings = {**toy_settings(tiny_options), "backbone_learning_rate": rate}
    model, _, config = begun(streets, weights, lambda _: {"settings": settings})
    assert any(parameter.requires_grad for parameter in model.get_submodule("backbone").parameters()) is not fixed
    groups = parameter_groups(model, config.recipe)
    assert ("backbone" in [group["name"] for group in groups]) is not fixed


def test_our_weights_get_the_queries_that_the_pictures_need(tmp_path: Path):
    """What weights decide is not what the user decided: sizes that are in no tensor follow the data set."""
    sizes = {"backbone": "test_resnet", "dim": 32, "num_heads": 4, "num_queries": 20, "num_detections": 20}
    model = catalogue.create("detrove-nano", num_classes=1, backbone_frozen=True, **sizes)
    labels = LabelMap.from_categories({1: "nut"})
    detector = Detector(model, Preprocessing(longer=64), labels, name="detrove-nano")
    weights = checkpoints.save(detector, tmp_path / "best.safetensors")
    crowd = tmp_path / "crowd"
    for split in ("train", "val"):
        write_crowd(crowd, split, num_boxes=15)
    options = {"weights": weights, "epochs": 1, "progress": False, "settings": {"workers": 0, "preflight": False}}
    train(crowd, output=tmp_path / "run", **options)
    config = TrainingConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert config.model_config["num_queries"] == config.model_config["num_detections"] == 30
    assert config.model_config["dim"] == 32
    assert config.preprocessing.longer == 64
    options["settings"] |= {"model.num_queries": 20, "model.num_detections": 20}
    train(crowd, output=tmp_path / "as asked", **options)
    assert TrainingConfig.from_yaml(tmp_path / "as asked" / "config.yaml").model_config["num_queries"] == 20


def write_crowd(folder: Path, split: str, num_boxes: int) -> None:
    """One picture with so many squares, as COCO JSON."""
    (folder / split).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / split / "a.png")
    boxes = [[12.0 * (n % 5), 20.0 * (n // 5), 14.0, 14.0] for n in range(num_boxes)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "nut"}],
    }
    (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
