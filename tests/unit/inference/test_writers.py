"""What is written down can be read back, by our own readers and by the tools that others use."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from detrove.data import open_dataset
from detrove.errors import InputError
from detrove.inference import writers
from detrove.inference.writers import PictureFound
from detrove.structures import Category, Detections, LabelMap

LABELS = LabelMap((None, Category(1, "red cell"), Category(17, "plättchen"), None, Category(90, "x, y")))


def found_in(path: Path, boxes: list[list[float]], labels: list[int]) -> PictureFound:
    Image.new("RGB", (40, 20), (90, 120, 150)).save(path)
    scores = torch.linspace(0.9, 0.5, len(boxes))
    detections = Detections(torch.tensor(boxes).reshape(-1, 4), scores, torch.tensor(labels, dtype=torch.long), LABELS)
    return PictureFound(path, 20, 40, detections)


@pytest.fixture
def found(tmp_path: Path) -> list[PictureFound]:
    (tmp_path / "day").mkdir()
    (tmp_path / "night").mkdir()
    return [
        found_in(tmp_path / "day" / "a.png", [[1, 2, 11, 8], [0, 0, 40, 20]], [1, 4]),
        found_in(tmp_path / "night" / "a.png", [], []),
        found_in(tmp_path / "night" / "b.jpg", [[4, 5, 6.5, 9.25], [1, 1, 3, 3], [2, 2, 5, 5]], [2, 1, 1]),
    ]


def test_coco_results(found: list[PictureFound]) -> None:
    results = writers.coco_results(found)
    assert [entry["image_id"] for entry in results] == [1, 1, 3, 3, 3]
    assert [entry["category_id"] for entry in results] == [1, 90, 17, 1, 1]
    assert results[0]["bbox"] == [1, 2, 10, 6]
    assert results[2]["file_name"] == "night/b.jpg"


def test_a_name_that_is_a_number_is_the_id(tmp_path: Path) -> None:
    found = [found_in(tmp_path / f"{number:012}.jpg", [[0, 0, 1, 1]], [1]) for number in (285, 139)]
    assert [entry["image_id"] for entry in writers.coco_results(found)] == [285, 139]


def test_two_names_with_the_same_number_are_numbered_anew() -> None:
    assert writers.image_ids([Path("7.jpg"), Path("007.jpg")]) == [1, 2]


def test_coco_labels_are_read_by_pycocotools(tmp_path: Path, found: list[PictureFound]) -> None:
    writers.write_json(tmp_path / "labels.json", writers.coco_labels(found, LABELS))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "labels.json"))
        results = coco.loadRes(writers.coco_results(found))
    assert coco.getAnnIds() == [1, 2, 3, 4, 5]
    assert coco.loadAnns(3)[0]["area"] == pytest.approx(2.5 * 4.25)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["red cell", "plättchen", "x, y"]
    assert len(results.anns) == 5


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_labels_written_back_are_a_data_set(tmp_path: Path, found: list[PictureFound], kind: str) -> None:
    write = {"coco": writers.write_coco_set, "yolo": writers.write_yolo_set}[kind]
    write(tmp_path / "set", found, LABELS)
    dataset = open_dataset(tmp_path / "set", split="train")
    assert dataset.format == kind
    assert dataset.warnings == []
    assert dataset.label_map.names == ["red cell", "plättchen", "x, y"]
    by_name = {record.path.relative_to(tmp_path / "set" / "images").as_posix(): record for record in dataset.records}
    assert by_name.keys() == {"day/a.png", "night/a.png", "night/b.jpg"}
    slots = {1: 0, 2: 1, 4: 2}
    for one, name in zip(found, by_name, strict=True):
        record = by_name[name]
        assert record.labels.tolist() == [slots[label] for label in one.detections.labels.tolist()]
        np.testing.assert_allclose(record.boxes_xyxy, one.detections.boxes.numpy(), atol=1e-4)
        assert dataset[dataset.records.index(record)].image.size == (40, 20)


def test_yolo_classes_are_numbered_without_empty_slots(tmp_path: Path, found: list[PictureFound]) -> None:
    assert (
        writers.yolo_lines(found[0]) == "0 0.150000 0.250000 0.250000 0.300000\n2 0.500000 0.500000 1.000000 1.000000\n"
    )
    assert writers.yolo_lines(found[1]) == ""
    writers.write_yolo_set(tmp_path / "set", found, LABELS)
    assert (tmp_path / "set" / "classes.txt").read_text(encoding="utf-8") == "red cell\nplättchen\nx, y\n"


def test_pictures_that_would_share_a_label_file_are_refused(tmp_path: Path) -> None:
    writers.refuse_ambiguous_labels([tmp_path / "a.png", tmp_path / "b.jpg"])
    with pytest.raises(InputError, match=r"a\.jpg: would share its YOLO label file with .*a\.png"):
        writers.refuse_ambiguous_labels([tmp_path / "a.png", tmp_path / "a.jpg"])


def test_counts(found: list[PictureFound]) -> None:
    rows = list(csv.DictReader(io.StringIO(writers.counts_csv(found, LABELS))))
    assert [row["picture"] for row in rows] == ["day/a.png", "night/a.png", "night/b.jpg"]
    assert rows[0] == {"picture": "day/a.png", "red cell": "1", "plättchen": "0", "x, y": "1", "total": "2"}
    assert [row["total"] for row in rows] == ["2", "0", "3"]


@pytest.mark.parametrize(
    ("name", "written", "format"),
    [
        ("a.jpg", "a.jpg", "JPEG"),
        ("a.PNG", "a.PNG", "PNG"),
        ("a.tif", "a.tif.png", "PNG"),
        ("a.webp", "a.webp", "WEBP"),
    ],
)
def test_drawings(tmp_path: Path, found: list[PictureFound], name: str, written: str, format: str) -> None:
    picture = Image.new("RGB", (40, 20), (90, 120, 150))
    writers.write_drawing(tmp_path / "drawn" / name, picture, found[0].detections)
    with Image.open(tmp_path / "drawn" / written) as drawn:
        assert drawn.format == format
        assert drawn.size == (40, 20)
        assert np.abs(np.asarray(drawn.convert("RGB")).astype(int) - np.asarray(picture)).max() > 50


def test_json_keeps_every_script(tmp_path: Path) -> None:
    writers.write_json(tmp_path / "a.json", {"name": "plättchen 血小板"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "血小板" in text
    assert json.loads(text) == {"name": "plättchen 血小板"}
