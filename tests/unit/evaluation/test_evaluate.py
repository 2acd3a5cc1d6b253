"""From a detector to metrics, with a detector that knows the answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.errors import InputError
from detrove.evaluation import categories_of_slots, coco_results, detect, evaluate
from detrove.structures import Category, Detections, LabelMap, Preprocessing

CAT, DOG = Category(3, "cat"), Category(8, "dog")


class Pictures:
    """Three pictures of different sizes, each with one object that fills a known box."""

    label_map = LabelMap((CAT, DOG))

    def __init__(self) -> None:
        self.sizes = [(40, 30), (60, 20), (40, 30)]
        self.names = ["cat", "dog", "dog"]
        self.boxes = [(2, 3, 30, 20), (5, 5, 50, 15), (1, 1, 39, 29)]
        self.records = [
            SimpleNamespace(path=Path(f"{i}.jpg"), image_id=f"picture {i}", width=w, height=h)
            for i, (w, h) in enumerate(self.sizes)
        ]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(image=Image.new("RGB", self.sizes[index], (index, 0, 0)))

    def ground_truth(self) -> dict:
        annotations = [
            {"image_id": record.image_id, "category_id": 3 if name == "cat" else 8, "bbox": [a, b, c - a, d - b]}
            for record, name, (a, b, c, d) in zip(self.records, self.names, self.boxes, strict=True)
        ]
        images = [{"id": record.image_id} for record in self.records]
        return {"images": images, "annotations": annotations, "categories": [vars(CAT), vars(DOG)]}


class Oracle:
    """Finds the object of each picture, which it knows by its red value; counts its batches."""

    preprocessing = Preprocessing(longer=32)

    def __init__(self, dataset: Pictures, label_map: LabelMap) -> None:
        self.dataset = dataset
        self.label_map = label_map
        self.batches: list[list[tuple[int, int]]] = []

    def detect(self, pictures: list[Image.Image]) -> list[Detections]:
        self.batches.append([picture.size for picture in pictures])
        return [self._answer(np.asarray(picture)[0, 0, 0]) for picture in pictures]

    def _answer(self, index: int) -> Detections:
        slot = self.label_map.slot_of_name(self.dataset.names[index])
        slots = [slot if slot is not None else 0]
        boxes = torch.tensor([self.dataset.boxes[index]], dtype=torch.float32)
        return Detections(boxes, torch.tensor([0.9]), torch.tensor(slots), self.label_map)


def test_every_picture_once_like_sizes_together_and_in_order():
    dataset = Pictures()
    oracle = Oracle(dataset, dataset.label_map)
    told = []
    found = detect(oracle, dataset, batch_size=2, progress=lambda done, total: told.append((done, total)))
    assert list(found) == ["picture 0", "picture 1", "picture 2"]
    assert [tuple(detections.boxes[0].tolist()) for detections in found.values()] == dataset.boxes
    assert sorted(oracle.batches, key=len) == [[(40, 30)], [(60, 20), (40, 30)]]
    assert told == [(2, 3), (3, 3)]


def test_a_batch_must_hold_something():
    dataset = Pictures()
    with pytest.raises(InputError, match="batch_size"):
        detect(Oracle(dataset, dataset.label_map), dataset, batch_size=0)


def test_evaluation_joins_classes_by_name():
    """The detector has slots that the data set lacks, other ids, and another order."""
    dataset = Pictures()
    label_map = LabelMap((None, Category(18, "dog"), Category(3, "zebra"), Category(17, "cat")))
    assert evaluate(Oracle(dataset, label_map), dataset).ap == pytest.approx(1.0)


def test_evaluation_refuses_strangers_before_it_detects():
    dataset = Pictures()
    oracle = Oracle(dataset, LabelMap.from_categories({3: "zebra"}))
    with pytest.raises(InputError, match="share no class name: zebra against cat, dog"):
        evaluate(oracle, dataset)
    assert not oracle.batches


def test_classes_of_the_same_name_are_joined_by_id():
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}]
    label_map = LabelMap((Category(2, "cell"), Category(9, "cell"), None))
    assert categories_of_slots(label_map, categories) == [2, 1, None]


def test_results_of_foreign_classes_are_left_out():
    label_map = LabelMap((CAT, Category(1, "zebra")))
    boxes = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).repeat(2, 1)
    found = Detections(boxes, torch.tensor([0.75, 0.5]), torch.tensor([0, 1]), label_map)
    results = coco_results({"x": found}, {"categories": [vars(CAT), vars(DOG)]})
    assert results == [{"image_id": "x", "category_id": 3, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75}]
