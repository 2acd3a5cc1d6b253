"""Data sets written and read again: the same boxes, names and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from makers import coco_content, write_coco, write_picture, write_voc

from detrove.data import find_splits, open_dataset
from detrove.data.annotations import Annotations, joined
from detrove.data.files import relative_names
from detrove.data.writers import write_coco as to_coco
from detrove.data.writers import write_yolo as to_yolo
from detrove.errors import InputError


def read(path: Path) -> dict[str, Annotations]:
    return {split: open_dataset(path, split).annotations for split in find_splits(path)}


def boxes_by_picture(written: Annotations) -> dict[str, tuple[list[str], np.ndarray]]:
    """Picture name -> the class names and boxes of its objects."""
    found = {}
    for picture, path in enumerate(written.paths):
        boxes = written.boxes_of(picture)
        names = [written.categories[id] for id in written.category_ids[boxes].tolist()]
        found[Path(path).name] = names, written.xywh[boxes]
    return found


def assert_same(before: dict[str, Annotations], after: dict[str, Annotations]) -> None:
    assert before.keys() == after.keys()
    for split in before:
        names = [[part.categories[id] for id in sorted(part.categories)] for part in (before[split], after[split])]
        assert names[0] == names[1]
        expected, found = boxes_by_picture(before[split]), boxes_by_picture(after[split])
        assert expected.keys() == found.keys()
        for picture, (names, xywh) in expected.items():
            assert found[picture][0] == names
            np.testing.assert_allclose(found[picture][1], xywh, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco-mini", "bccd", "deeppcb-mini"])
def test_real_sets_to_yolo_and_coco_and_back(shared: Path, tmp_path: Path, name: str) -> None:
    original = read(shared / "data" / name)
    to_yolo(tmp_path / "yolo", original, link=os.stat(tmp_path).st_dev == os.stat(shared).st_dev)
    through_yolo = read(tmp_path / "yolo")
    assert_same(original, through_yolo)
    to_coco(tmp_path / "coco", through_yolo)
    assert_same(original, read(tmp_path / "coco"))


def test_voc_to_coco(shared: Path, tmp_path: Path) -> None:
    original = read(shared / "data" / "bccd")
    to_coco(tmp_path / "coco", original)
    assert_same(original, read(tmp_path / "coco"))


def test_coco_is_kept_to_the_letter(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0] |= {"bbox": [0.1 + 0.2, 6, 1e-9, 120.125], "id": 77}
    original = write_coco(tmp_path / "in", **content)
    written = to_coco(tmp_path / "out", read(original))
    again = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert again["images"] == content["images"]
    assert again["annotations"] == content["annotations"]
    assert sorted(category["id"] for category in again["categories"]) == [5, 30]
    assert (written.num_pictures, written.num_boxes) == ({"train": 2}, {"train": 2})


def test_pictures_are_copied_or_linked(tmp_path: Path) -> None:
    splits = read(write_coco(tmp_path / "in"))
    picture = tmp_path / "in" / "train2017" / "a.jpg"
    to_coco(tmp_path / "copied", splits)
    to_yolo(tmp_path / "linked", splits, link=True)
    copied, linked = tmp_path / "copied" / "train" / "a.jpg", tmp_path / "linked" / "images" / "train" / "a.jpg"
    assert copied.read_bytes() == linked.read_bytes() == picture.read_bytes()
    assert not copied.samefile(picture)
    assert linked.samefile(picture)


def test_yolo_cannot_mark_crowds(tmp_path: Path) -> None:
    written = to_yolo(tmp_path / "out", read(write_coco(tmp_path / "in")))
    assert written.notes == ["train: 1 crowd regions became ordinary boxes: YOLO cannot mark them"]


def test_pictures_of_one_name_in_several_folders(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][1] |= {"file_name": "night/images/a.jpg"}
    root = write_coco(tmp_path / "in", **content)
    write_picture(root / "train2017" / "night" / "images" / "a.jpg", 20, 50)
    to_yolo(tmp_path / "out", read(root))
    assert [len(record.labels) for record in open_dataset(tmp_path / "out", "train").records] == [2, 0]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    splits = read(write_coco(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: exists already"):
        to_coco(tmp_path / "out", splits)
    (tmp_path / "in" / "train2017" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        to_coco(tmp_path / "new", splits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_what_yolo_cannot_hold_is_refused(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][1]["file_name"] = "a.png"
    root = write_coco(tmp_path / "shared-label", **content)
    write_picture(root / "train2017" / "a.png", 20, 50)
    with pytest.raises(InputError, match=r"a\.png: would share its YOLO label file with .*a\.jpg"):
        to_yolo(tmp_path / "out", read(root))
    splits = read(write_coco(tmp_path / "size"))
    write_picture(tmp_path / "size" / "train2017" / "a.jpg", 30, 40)
    with pytest.raises(InputError, match=r"a\.jpg: is 30x40 upright, but its annotation says 40x30"):
        to_yolo(tmp_path / "out", splits)
    with pytest.raises(InputError, match="split 'holiday'"):
        to_yolo(tmp_path / "out", {"holiday": splits["train"]})
    assert not (tmp_path / "out").exists()


def test_splits_joined_hold_each_picture_once(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\n")
    whole = joined(list(read(tmp_path).values()))
    assert [Path(path).name for path in whole.paths] == ["a.jpg", "b.jpg"]
    assert whole.image_ids.tolist() == [1, 2]
    assert whole.num_boxes == 3


def test_nothing_is_written_beside_the_folder(tmp_path: Path) -> None:
    """Pictures that are named with `..` are called by where they are."""
    names = relative_names([tmp_path / "set" / "a.jpg", tmp_path / "set" / ".." / ".." / tmp_path.name / "b" / "c.jpg"])
    assert [name.as_posix() for name in names] == ["set/a.jpg", "b/c.jpg"]


def test_a_picture_listed_twice_is_linked_once(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set")
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"].append({**content["images"][0], "id": 11})
    file.write_text(json.dumps(content))
    written = to_coco(tmp_path / "out", {"train": open_dataset(root).annotations}, link=True)
    assert len(open_dataset(written.folder)) == 3
    assert (tmp_path / "out" / "train" / "a.jpg").samefile(root / "train2017" / "a.jpg")


def test_names_that_are_no_text_are_written_and_read_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        write_picture(tmp_path / name, 40, 30)
    except OSError:
        pytest.skip("this file system takes names of text alone")
    images = [{"id": 1, "file_name": name, "width": 40, "height": 30}]
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}
    (tmp_path / "train.json").write_text(json.dumps(coco_content(images=images, annotations=[box])))
    written = to_coco(tmp_path / "out", {"train": open_dataset(tmp_path).annotations})
    assert [record.path.name for record in open_dataset(written.folder).records] == [name]
