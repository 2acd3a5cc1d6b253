"""One lenient reading finds every fault, says where it is, and keeps what is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from makers import coco_content, voc_xml, write_coco, write_picture, write_voc, write_yolo

from detrove.data import open_dataset
from detrove.data.discover import read_leniently
from detrove.data.faults import Fault
from detrove.errors import InputError

COCO_FILE = "annotations/instances_train2017.json"


def summary(faults: list[Fault]) -> list[tuple[str, str, int | None, str, int]]:
    return [(fault.kind, fault.file.name, fault.line, fault.entry, fault.num_boxes) for fault in faults]


def test_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    content = coco_content()
    content["images"] += [
        {"id": 7, "file_name": "c.jpg", "width": 4, "height": 4},
        {"id": 11, "file_name": "d.jpg", "width": 0, "height": 4},
        {"id": 12, "file_name": "gone.jpg", "width": 9, "height": 9},
        {"id": 13},
        "no picture",
    ]
    content["annotations"] += [
        {"id": 2, "image_id": 99, "category_id": 5, "bbox": [1, 1, 2, 2]},
        {"id": 3, "image_id": 7, "category_id": 6, "bbox": [1, 1, 2, 2]},
        {"id": 4, "image_id": 7, "category_id": 5, "bbox": [1, 1, 2]},
        {"id": 5, "image_id": 7, "category_id": 5, "bbox": [1, 1, None, 2]},
        {"id": 6, "image_id": 12, "category_id": 5, "bbox": [1, 1, 2, 2]},
        "no annotation",
    ]
    content["categories"].append({"id": "x"})
    file = tmp_path / COCO_FILE
    file.write_text(json.dumps(content, indent=1))
    reading = read_leniently(tmp_path)
    assert reading.format == "coco"
    lines = file.read_text().splitlines()
    assert all(fault.line is None or lines[fault.line - 1].strip(" ,")[:1] in '{"' for fault in reading.faults)
    assert [(kind, entry, boxes) for kind, _, _, entry, boxes in summary(reading.faults)] == [
        ("bad category", "", 0),
        ("bad picture entry", "", 0),
        ("bad picture entry", "", 0),
        ("bad picture entry", "", 0),
        ("bad picture entry", "", 0),
        ("unknown picture", "annotation 2", 1),
        ("unknown category", "annotation 3", 1),
        ("bad box", "annotation 4", 1),
        ("bad box", "annotation 5", 1),
        ("unknown picture", "annotation (without id, number 8 of the list)", 1),
        ("missing picture", "", 1),
    ]
    fault = next(fault for fault in reading.faults if fault.entry == "annotation 4")
    assert fault.line
    assert '"id": 4' in lines[fault.line]
    assert str(fault).startswith(f"{file}:{fault.line}: annotation 4 has no bbox")
    annotations = reading.splits["train"]
    assert [path.rsplit("/", 1)[-1] for path in annotations.paths] == ["a.jpg", "b.jpg"]
    assert annotations.entries.tolist() == [0, 1]
    assert [lines[line] for line in annotations.lines] == ['   "id": 0,', '   "id": 1,']


def test_a_file_of_one_line_names_no_line(tmp_path: Path) -> None:
    write_coco(tmp_path, annotations=[{"id": 2, "image_id": 99, "category_id": 5, "bbox": [1, 1, 2, 2]}])
    [fault] = read_leniently(tmp_path).faults
    assert fault.line is None
    assert str(fault).startswith(f"{tmp_path / COCO_FILE}: annotation 2 names an unknown picture (image_id 99); ")


def test_coco_whose_first_picture_is_missing(tmp_path: Path) -> None:
    (write_coco(tmp_path) / "train2017" / "a.jpg").unlink()
    reading = read_leniently(tmp_path)
    assert [(fault.kind, fault.num_boxes) for fault in reading.faults] == [("missing picture", 2)]
    assert len(reading.splits["train"]) == 1


def test_a_split_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text('{\n"images": [,')
    reading = read_leniently(tmp_path)
    assert summary(reading.faults) == [("broken file", "instances_val2017.json", 2, "", 0)]
    assert list(reading.splits) == ["train"]


def test_voc(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for name in "cde":
        write_picture(tmp_path / "JPEGImages" / f"{name}.jpg", 40, 30)
    labels = tmp_path / "Annotations"
    objects = [("dog", (4, 6, 14, 18)), ("", (1, 2, 3, 4)), ("dog", ("x", 2, 3, 4))]
    (labels / "c.xml").write_text(voc_xml(objects).replace("<object>", "\n<object>"))
    (labels / "d.xml").write_text("<annotation>\n<object></name>")
    (labels / "e.xml").write_text("")
    (labels / "f.xml").write_text(voc_xml([("dog", (4, 6, 14, 18))] * 3))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nc\nd\ne\nf\ng\n")
    reading = read_leniently(tmp_path)
    assert sorted(summary(reading.faults)) == [
        ("bad box", "c.xml", 4, "object 3", 1),
        ("broken file", "d.xml", 2, "", 0),
        ("broken file", "e.xml", None, "", 0),
        ("missing file", "train.txt", None, "g", 0),
        ("missing picture", "f.xml", None, "", 3),
        ("unknown category", "c.xml", 3, "object 2", 1),
    ]
    assert [len(reading.splits[split]) for split in ("train", "val")] == [2, 1]
    assert reading.splits["train"].entries.tolist() == [1, 2, 1]


def test_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    labels, pictures = tmp_path / "labels" / "train", tmp_path / "images" / "train"
    (labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\nx y\n")
    (labels / "b.txt").write_bytes(b"\xff\xfe\x00")
    (pictures / "c.jpg").write_text("no picture")
    (labels / "c.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    reading = read_leniently(tmp_path)
    assert summary(reading.faults) == [
        ("unknown category", "a.txt", 3, "line 3", 1),
        ("bad box", "a.txt", 4, "line 4", 1),
        ("bad box", "a.txt", 5, "line 5", 1),
        ("broken file", "b.txt", None, "", 0),
        ("unreadable picture", "c.jpg", None, "", 1),
    ]
    assert reading.splits["train"].lines.tolist() == [1]


def test_a_description_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "data.yaml").write_text("names: [a\n")
    reading = read_leniently(tmp_path)
    assert reading.splits == {}
    assert [fault.kind for fault in reading.faults] == ["broken file"]


def test_opening_raises_the_first_of_them(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("7 0.5 0.5 0.1 0.1\nx y\n")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    assert str(caught.value) == str(read_leniently(tmp_path).faults[0])


def test_no_data_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no annotations found"):
        read_leniently(tmp_path)


@pytest.mark.parametrize("name", ["bccd", "coco-mini", "deeppcb-mini"])
def test_the_real_sets_have_no_fault(shared: Path, name: str) -> None:
    reading = read_leniently(shared / "data" / name)
    assert reading.faults == []
    for split, written in reading.splits.items():
        assert len(written) == len(open_dataset(shared / "data" / name, split))
