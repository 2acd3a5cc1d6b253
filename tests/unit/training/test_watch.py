"""The watch: what it measures on a model, when it alarms, and that a continued run goes on as if never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detrove.data import open_dataset
from detrove.data.batching import collate
from detrove.data.transforms import evaluation_sample
from detrove.losses import match
from detrove.models import catalogue
from detrove.structures import Preprocessing
from detrove.training.validation import Validation
from detrove.training.watch import ALIKE, PATIENCE, Watch, some_pictures

SIZES = {
    "backbone": "test_resnet",
    "dim": 32,
    "num_heads": 4,
    "feedforward_dim": 64,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
    "num_queries": 10,
}


@pytest.fixture(scope="module")
def validation(squares: Path) -> Validation:
    dataset = open_dataset(squares, "val")
    return Validation(dataset, Preprocessing(longer=64), dataset.label_map, "detr-nano", batch_size=4)


def make_model(name: str = "detr-nano", seed: int = 0, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    return catalogue.create(name, num_classes=2, **SIZES, **changes)


def watch_of(validation: Validation, model: torch.nn.Module) -> Watch:
    return Watch(validation, catalogue.criterion_for(model))


def test_what_is_measured_equals_what_one_sees_by_hand(validation: Validation):
    """The same pictures, one batch instead of two, the matches and spreads written out again."""
    model = make_model().eval()
    measured = watch_of(validation, model).look(model)
    samples = [evaluation_sample(validation.dataset[index], validation.preprocessing) for index in range(6)]
    images, targets = collate(samples)
    with torch.inference_mode():
        predictions = model(images)
    boxes, classes = predictions.boxes[-1], predictions.logits[-1].log_softmax(-1)
    variance = ((boxes - boxes.mean(1, keepdim=True)) ** 2).mean(1)
    assert measured["box_spread"] == pytest.approx(variance.mean().sqrt().item(), rel=1e-3)
    variance = ((classes - classes.mean(0)) ** 2).mean(0)
    assert measured["class_spread_between"] == pytest.approx(variance.mean().sqrt().item(), rel=1e-3)
    matches = match(predictions.logits, predictions.boxes, targets, catalogue.criterion_for(model).cost)
    order = matches.position.argsort(dim=1)
    queries = matches.query.gather(1, order)
    changes = [(queries[layer] != queries[layer + 1]).float().mean().item() for layer in range(2)]
    assert measured["changed_between_layers"] == pytest.approx(sum(changes) / 2, rel=1e-3)
    assert measured["changed_since_last"] is None


def test_the_second_look_is_compared_with_the_first(validation: Validation):
    first, second = make_model(seed=0), make_model(seed=1)
    watch = watch_of(validation, first)
    watch.look(first)
    assert watch.look(first)["changed_since_last"] == 0
    state = watch.state()
    changed = watch.look(second)["changed_since_last"]
    assert changed > 0
    continued = watch_of(validation, first)
    continued.restore(state)
    assert continued.look(second)["changed_since_last"] == changed


def test_a_look_leaves_the_model_and_the_random_state_alone(validation: Validation):
    model = make_model(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    watch_of(validation, model).look(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def collapsed(model: Any) -> torch.nn.Module:
    """Every query answers what the biases of the heads say."""
    with torch.no_grad():
        model.class_head.weight.zero_()
    return model


def test_queries_that_stay_alike_alarm_once(validation: Validation):
    sound, alike = make_model(), collapsed(make_model())
    watch = watch_of(validation, sound)
    assert watch.look(sound)["class_spread"] > ALIKE
    looks = [watch.look(alike) for _ in range(PATIENCE + 2)]
    assert [("alarm" in look) for look in looks] == [False] * (PATIENCE - 1) + [True] + [False] * 2
    assert looks[0]["class_spread"] < 1e-6
    assert looks[PATIENCE - 1]["alarm"].startswith("all queries answer alike (their classes differ by ")


def test_alike_now_and_then_is_no_alarm(validation: Validation):
    sound, alike = make_model(), collapsed(make_model())
    watch = watch_of(validation, sound)
    assert not any("alarm" in watch.look(model) for model in (alike, sound, alike, sound, alike))


def test_an_alarm_is_not_repeated_by_a_continued_run(validation: Validation):
    alike = collapsed(make_model())
    watch = watch_of(validation, alike)
    assert "alarm" in [watch.look(alike) for _ in range(PATIENCE)][-1]
    continued = watch_of(validation, alike)
    continued.restore(watch.state())
    assert "alarm" not in continued.look(alike)


def test_duplicates_and_found_objects_of_a_detector_that_sees_one_object_twice(validation: Validation):
    """A stand-in that gives every picture's first object to two queries, sure of them, and says no more."""
    model: Any = make_model()
    data = validation.dataset
    answers = [data[index].targets for index in some_pictures(data, 16)]
    shown = iter([answers[:4], answers[4:]])

    def answer(images: Any) -> Any:
        predictions = plain(images)
        predictions.logits[:] = torch.tensor([0.0, 0.0, 20.0])
        for picture, target in enumerate(next(shown)):
            predictions.boxes[:, picture, :2] = target.boxes[0]
            predictions.logits[:, picture, :2, int(target.labels[0])] = 40.0
        return predictions

    plain, model.forward = model.forward, answer
    measured = watch_of(validation, model).look(model)
    firsts, objects = len(answers), sum(len(target) for target in answers)
    several = sum(len(target) > 1 for target in answers)  # one detection a picture where it has one object
    assert measured["found"] == pytest.approx(firsts / objects, rel=1e-3)
    assert measured["duplicates"] == pytest.approx(several / firsts, rel=1e-3)


def test_pictures_are_spread_over_those_with_objects(squares: Path):
    data = open_dataset(squares, "train")
    assert some_pictures(data, 3) == [0, 6, 11]
    assert some_pictures(data, 99) == list(range(12))


def test_without_objects_there_is_nothing_to_see(squares: Path):
    data = open_dataset(squares, "val")
    empty = data.annotations.keep(torch.zeros(data.annotations.num_boxes, dtype=torch.bool).numpy())
    dataset = type(data)(data.path, data.split, data.format, empty)
    validation = Validation(dataset, Preprocessing(longer=64), data.label_map, "detr-nano", batch_size=4)
    model = make_model()
    assert watch_of(validation, model).look(model) == {}


def test_pictures_of_fewer_cells_than_queries_are_looked_into(tmp_path: Path) -> None:
    """A strip of 64 x 16 pixels has 22 cells, a square 84: 80 queries in one batch are 22 in the other."""
    (tmp_path / "val").mkdir()
    images, objects = [], []
    for number, height in enumerate((64, 16)):
        Image.new("RGB", (64, height)).save(tmp_path / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": height})
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4, 4, 10, 10]})
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "nut"}]}
    (tmp_path / "val" / "_annotations.coco.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path, "val")
    validation = Validation(data, Preprocessing(longer=64), data.label_map, "detrove-nano", batch_size=1)
    model = catalogue.create(
        "detrove-nano", num_classes=1, backbone="test_resnet", dim=32, num_heads=4, num_queries=80, num_detections=80
    )
    measured = watch_of(validation, model).look(model)
    assert measured["box_spread"] is not None
    assert measured["changed_between_layers"] is not None
