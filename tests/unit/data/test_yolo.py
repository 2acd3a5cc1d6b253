"""The variants of YOLO data sets that people have (the usual one is in test_readers)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import write_picture, write_yolo

from detrove.data import find_splits, open_dataset
from detrove.errors import InputError


def add(root: Path, picture: str, labels: str | None) -> None:
    write_picture(root / picture)
    if labels is not None:
        (root / labels).parent.mkdir(parents=True, exist_ok=True)
        (root / labels).write_text("0 0.5 0.5 0.5 0.5\n")


@pytest.mark.parametrize(
    "names", ["names: [nut, bolt]\n", "names:\n  0: nut\n  1: bolt\n", "names: {1: bolt, 0: nut}\n"]
)
def test_names(tmp_path: Path, names: str) -> None:
    assert open_dataset(write_yolo(tmp_path, names)).label_map.names == ["nut", "bolt"]


@pytest.mark.parametrize(
    "train", ["[images/one, images/two]", "[one.txt, images/two]", "\n  - images/one\n  - images/two"]
)
def test_a_split_of_several_places(tmp_path: Path, train: str) -> None:
    add(tmp_path, "images/one/a.jpg", "labels/one/a.txt")
    add(tmp_path, "images/two/b.jpg", None)
    (tmp_path / "one.txt").write_text("images/one/a.jpg\n")
    (tmp_path / "data.yaml").write_text(f"names: [nut]\ntrain: {train}\n")
    assert [len(record.labels) for record in open_dataset(tmp_path, "train").records] == [1, 0]


@pytest.mark.parametrize("line", ["/home/other/set/images/one/a.jpg", "./a.jpg", "D:\\\\set\\\\images\\\\one\\\\a.jpg"])
def test_a_list_that_another_machine_wrote(tmp_path: Path, line: str) -> None:
    add(tmp_path, "images/one/a.jpg", "labels/one/a.txt")
    (tmp_path / "images" / "one" / "list.txt").write_text(line)
    (tmp_path / "data.yaml").write_text("path: /home/other/set\ntrain: images/one/list.txt\nnames: [nut]\n")
    [record] = open_dataset(tmp_path).records
    assert (record.path.name, len(record.labels)) == ("a.jpg", 1)


def test_a_folder_of_another_machine(tmp_path: Path) -> None:
    add(tmp_path, "train/images/a.jpg", "train/labels/a.txt")
    (tmp_path / "data.yaml").write_text("train: /content/data/train/images\nnames: [nut]\nval: ''\n")
    assert find_splits(tmp_path) == ("train",)
    assert len(open_dataset(tmp_path).records[0].labels) == 1


@pytest.mark.parametrize(
    ("places", "splits"),
    [
        ([("images/train", "labels/train"), ("images/val", "labels/val")], ("train", "val")),
        ([("train/images", "train/labels"), ("valid/images", "valid/labels")], ("train", "val")),
        ([("images", "labels")], ("all",)),
        ([("train", "train"), ("test", "test")], ("train", "test")),
        ([(".", ".")], ("all",)),
    ],
)
@pytest.mark.parametrize("described", ["classes.txt", "labels/classes.txt", "data.yaml"])
def test_splits_by_folders(tmp_path: Path, places: list[tuple[str, str]], splits: tuple, described: str) -> None:
    for number, (pictures, labels) in enumerate(places):
        add(tmp_path, f"{pictures}/{number}.jpg", f"{labels}/{number}.txt")
    (tmp_path / described).parent.mkdir(exist_ok=True)
    (tmp_path / described).write_text("names: [nut]\n" if described == "data.yaml" else "nut\n")
    assert find_splits(tmp_path) == splits
    for number, split in enumerate(find_splits(tmp_path)):
        dataset = open_dataset(tmp_path, split)
        assert (dataset.format, dataset.label_map.names) == ("yolo", ["nut"])
        assert [len(record.labels) for record in dataset.records] == [1], number
        assert dataset.warnings == []


def test_a_class_beyond_the_names_is_told_with_the_file_of_the_names(tmp_path: Path) -> None:
    add(tmp_path, "images/a.jpg", "labels/a.txt")
    (tmp_path / "labels" / "a.txt").write_text("3 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("nut\n")
    with pytest.raises(InputError, match=r"a\.txt:1: class 3 has no name in classes\.txt"):
        open_dataset(tmp_path)


def test_pictures_and_names_without_labels_are_no_data_set(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "classes.txt").write_text("nut\n")
    with pytest.raises(InputError, match="no annotations found"):
        open_dataset(tmp_path)


def test_folders_of_days_are_splits_of_their_own(tmp_path: Path) -> None:
    for day, count in (("day1", 2), ("day2", 3)):
        for number in range(count):
            add(tmp_path, f"images/{day}/{number}.jpg", f"labels/{day}/{number}.txt")
    (tmp_path / "classes.txt").write_text("nut\n")
    assert find_splits(tmp_path) == ("day1", "day2")
    assert [len(open_dataset(tmp_path, day)) for day in ("day1", "day2")] == [2, 3]


def test_two_keys_of_one_meaning_are_two_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        add(tmp_path, f"images/{split}/{split}.jpg", f"labels/{split}/{split}.txt")
    places = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "valid"))
    (tmp_path / "data.yaml").write_text(f"names: [nut]\n{places}")
    assert find_splits(tmp_path) == ("train", "val", "valid")
    assert open_dataset(tmp_path, "val").records[0].path.name == "val.jpg"


@pytest.mark.parametrize("line", ["0 0.7 0.7 0.2 0.2 0.65 0.65 0.75 0.75", "0 0.7 0.7 0.2 0.2"])
def test_keypoints_behind_a_box_are_left_out(tmp_path: Path, line: str) -> None:
    write_picture(tmp_path / "images" / "a.jpg", 100, 100)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(line)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [nut]\nkpt_shape: [2, 2]\n")
    np.testing.assert_allclose(open_dataset(tmp_path).records[0].boxes_xyxy, [[60, 60, 80, 80]])
    (tmp_path / "labels" / "a.txt").write_text("0 0.7 0.7 0.2 0.2 0.65 0.65")
    with pytest.raises(InputError, match=r"a\.txt:1: expected 'class cx cy width height' and 4 numbers of keypoints"):
        open_dataset(tmp_path)
