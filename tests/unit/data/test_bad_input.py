"""Whatever is wrong with the files is one line that names the file and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from makers import coco_content, voc_xml, write_coco, write_picture, write_voc, write_yolo

from detrove.data import open_dataset
from detrove.errors import InputError

COCO_FILE = "annotations/instances_train2017.json"


def change_coco(**changes: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / COCO_FILE).write_text(json.dumps(coco_content(**changes)))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def annotation(**changes: object) -> list[dict[str, object]]:
    return [{"id": 3, "image_id": 7, "category_id": 5, "bbox": [1, 1, 5, 5], **changes}]


CASES = [
    (write_coco, write(COCO_FILE, ""), "train", "instances_train2017.json: the annotation file is empty"),
    (write_coco, write(COCO_FILE, '{\n"images": [,'), "train", "instances_train2017.json:2: broken JSON"),
    (write_coco, write(COCO_FILE, "[]"), "train", "no list 'images'"),
    (write_coco, change_coco(images=[]), "train", "lists no pictures"),
    (write_coco, change_coco(categories=[]), "train", "lists no categories"),
    (write_coco, change_coco(categories=[{"id": 5}]), "train", "a category must have a number 'id' and a 'name'"),
    (write_coco, change_coco(images=[{"id": 7, "file_name": "a.jpg"}]), "train", "must have id, file_name, width"),
    (write_coco, change_coco(images=coco_content()["images"] * 2), "train", "two pictures have the id 7"),
    (write_coco, change_coco(annotations=annotation(image_id=8)), "train", "annotation 3 names an unknown picture"),
    (write_coco, change_coco(annotations=annotation(category_id=1)), "train", "annotation 3 names an unknown category"),
    (write_coco, change_coco(annotations=annotation(bbox=[1, 2, 3])), "train", r"annotation 3 has no bbox \[x"),
    (write_coco, change_coco(annotations=annotation(bbox=[1, 2, 3, "x"])), "train", "expected finite numbers"),
    (write_coco, change_coco(annotations=annotation(bbox=[1, 2, 3, float("nan")])), "train", "finite numbers"),
    (write_coco, remove("train2017/a.jpg"), "train", r"its picture 'a\.jpg' is not found"),
    (write_coco, remove("train2017/b.jpg"), "train", r"b\.jpg: no such picture, named by .*train2017\.json"),
    (write_coco, lambda root: None, "val", "no split 'val': choose from train"),
    (write_voc, write("Annotations/a.xml", ""), "train", r"a\.xml: the annotation file is empty"),
    (write_voc, write("Annotations/a.xml", "<annotation>\n<object></name>"), "train", r"a\.xml:2: broken XML"),
    (write_voc, write("Annotations/a.xml", voc_xml([("", (1, 2, 3, 4))])), "train", "object 1 has no <name>"),
    (write_voc, write("Annotations/a.xml", "<a><object><name>x</name></object></a>"), "train", "<bndbox> of object 1"),
    (write_voc, write("ImageSets/Main/train.txt", "a\nmissing\n"), "train", "names 'missing', but there is no"),
    (write_voc, write("ImageSets/Main/train.txt", "\n"), "train", r"train\.txt: the annotation file is empty"),
    (write_voc, remove("JPEGImages/a.jpg"), "train", r"a\.xml: names an unknown picture \(a\)"),
    (write_voc, lambda root: None, "tset", "no split 'tset': choose from train, val"),
    (write_yolo, write("labels/train/a.txt", "0 0.5 0.5 0.5"), "train", r"a\.txt:1: expected 'class cx cy width"),
    (write_yolo, write("labels/train/a.txt", "0 0.5 0.5 0.1 0.1\nx 1 1 1 1"), "train", r"a\.txt:2: expected finite"),
    (write_yolo, write("labels/train/a.txt", "7 0.5 0.5 0.1 0.1"), "train", "class 7 has no name in data.yaml"),
    (write_yolo, write("data.yaml", "train: images/train\nnames: [a\n"), "train", r"data\.yaml:\d+: broken YAML"),
    (write_yolo, write("data.yaml", "train: images/train\n"), "train", "has no 'names'"),
    (write_yolo, write("data.yaml", "train: images/trian\nnames: [a]\n"), "train", "'images/trian' is not found"),
    (write_yolo, write("images/train/a.jpg", "no picture"), "train", r"a\.jpg: not a picture"),
]


@pytest.mark.parametrize(("make", "spoil", "split", "message"), CASES, ids=[case[3] for case in CASES])
def test_message(
    tmp_path: Path, make: Callable[[Path], Path], spoil: Callable[[Path], None], split: str, message: str
) -> None:
    spoil(make(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere", format="voc")


def test_folder_of_no_format(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"no annotations found; expected COCO JSON .*; VOC XML .*; YOLO"):
        open_dataset(tmp_path)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set format 'yolo5': did you mean yolo"):
        open_dataset(write_yolo(tmp_path), format="yolo5")


def test_wrong_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no annotations of format voc found"):
        open_dataset(write_yolo(tmp_path), format="voc")


def test_split_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has several splits; name one of train, val"):
        open_dataset(write_voc(tmp_path))


def test_yolo_split_without_pictures(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images" / "val").mkdir()
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    with pytest.raises(InputError, match="no pictures in its split val"):
        open_dataset(root, "val")


def test_categories_that_contradict_each_other(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2017")
    write_coco(tmp_path, "val2017", categories=[{"id": 30, "name": "dog"}, {"id": 5, "name": "ant"}])
    with pytest.raises(InputError, match=r"category 30 is 'dog' but 'cat' in .*train2017"):
        open_dataset(tmp_path, "train")


def test_truncated_picture(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    path = root / "train2017" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"a\.jpg: cannot be decoded .*truncated"):
        open_dataset(root)[0]


def test_picture_of_another_size(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    write_picture(root / "train2017" / "a.jpg", 64, 48)
    with pytest.raises(InputError, match=r"a\.jpg: is 64x48, but its annotation says 40x30"):
        open_dataset(root)[0]


def test_split_without_boxes_is_told(tmp_path: Path) -> None:
    assert "no boxes at all" in open_dataset(write_coco(tmp_path, annotations=[])).warnings[0]
