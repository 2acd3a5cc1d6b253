"""Every reader on small folders written here, and on the real sets beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from makers import coco_content, voc_xml, write_coco, write_picture, write_voc, write_yolo

from detrove.data import find_format, find_splits, open_dataset
from detrove.errors import InputError


def test_coco_layout_with_sparse_ids(tmp_path: Path) -> None:
    dataset = open_dataset(write_coco(tmp_path))
    assert (dataset.format, dataset.split) == ("coco", "train")
    assert dataset.label_map.to_json() == [{"id": 5, "name": "ant"}, {"id": 30, "name": "cat"}]
    first, second = dataset.records
    assert (first.image_id, first.width, first.height) == (7, 40, 30)
    np.testing.assert_array_equal(first.boxes_xyxy, [[4, 6, 14, 18], [0, 0, 40, 15]])
    np.testing.assert_array_equal(first.labels, [1, 0])
    np.testing.assert_array_equal(first.is_crowd, [False, True])
    np.testing.assert_array_equal(first.area, [77.5, 600])
    assert second.boxes_xyxy.shape == (0, 4)
    assert dataset.warnings == []


def test_sample_is_normalised_to_the_picture(tmp_path: Path) -> None:
    sample = open_dataset(write_coco(tmp_path))[0]
    assert sample.image.size == (40, 30)
    np.testing.assert_allclose(sample.targets.boxes[0], [9 / 40, 12 / 30, 10 / 40, 12 / 30], rtol=1e-6)
    assert sample.targets.is_crowd is not None
    assert sample.targets.is_crowd.tolist() == [False, True]
    assert sample.targets.original_size == (30, 40)


def test_coco_json_beside_its_pictures(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_picture(tmp_path / split / "a.jpg", 40, 30)
        write_picture(tmp_path / split / "b.jpg", 20, 50)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco_content()))
    assert find_splits(tmp_path) == ("train", "val")
    assert len(open_dataset(tmp_path, "valid")) == 2
    single = open_dataset(tmp_path / "train" / "_annotations.coco.json")
    assert single.split == "all"


def test_coco_two_years_keep_their_names(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2014")
    write_coco(tmp_path, "train2017")
    assert find_splits(tmp_path) == ("train2014", "train2017")
    assert open_dataset(tmp_path, "train2014").split == "train2014"


def test_coco_splits_share_one_label_map(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2017")
    extra = [{"id": 30, "name": "cat"}, {"id": 5, "name": "ant"}, {"id": 6, "name": "bee"}]
    write_coco(tmp_path, "val2017", categories=extra)
    assert open_dataset(tmp_path, "train").label_map.names == ["ant", "bee", "cat"]
    assert open_dataset(tmp_path, "val").label_map == open_dataset(tmp_path, "train").label_map


def test_coco_ground_truth_is_the_file(tmp_path: Path) -> None:
    """Boxes outside the picture and of zero size are left as pycocotools would find them; ids are numbered from 1."""
    boxes = [[-5, 6, 10, 12], [3, 3, 0, 5]]
    annotations = [{"id": i, "image_id": 7, "category_id": 5, "bbox": box} for i, box in enumerate(boxes)]
    dataset = open_dataset(write_coco(tmp_path, annotations=annotations))
    written = dataset.ground_truth()["annotations"]
    assert [entry["bbox"] for entry in written] == boxes
    assert [entry["id"] for entry in written] == [1, 2]
    assert [entry["area"] for entry in written] == [120, 0]
    np.testing.assert_array_equal(dataset.records[0].boxes_xyxy, [[0, 6, 5, 18]])


def test_flaws_are_counted_and_told_with_the_first_of_each(tmp_path: Path) -> None:
    boxes = [[-5, 6, 10, 12], [100, 6, 10, 12], [3, 3, 0, 5], [3, 3, 5, -1], [-0.4, 0, 5, 5], [1, 1, 5, 5]]
    annotations = [{"id": 50 + i, "image_id": 7, "category_id": 5, "bbox": box} for i, box in enumerate(boxes)]
    dataset = open_dataset(write_coco(tmp_path, annotations=annotations))
    assert dataset.problems == {"outside": 2, "zero size": 2}
    assert len(dataset.records[0].labels) == 3
    outside, zero = dataset.warnings
    assert "2 clipped" in outside
    assert "instances_train2017.json, annotation 50" in outside
    assert "2 skipped" in zero
    assert "annotation 52" in zero


def test_voc(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    assert find_splits(root) == ("train", "val")
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert train.label_map == val.label_map
    assert train.label_map.to_json() == [{"id": 1, "name": "bee"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
    np.testing.assert_array_equal(train.records[0].boxes_xyxy, [[4, 6, 14, 18], [1, 2, 3, 4]])
    np.testing.assert_array_equal(train.records[0].labels, [2, 0])
    assert (val.records[0].width, val.records[0].height) == (20, 50)
    assert train.ground_truth()["annotations"][0]["bbox"] == [4, 6, 10, 12]


def test_voc_without_lists_and_beside_its_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 40, 30)
    (tmp_path / "a.xml").write_text(voc_xml([("dog", (4, 6, 14, 18))]))
    dataset = open_dataset(tmp_path)
    assert (dataset.split, len(dataset), dataset.format) == ("all", 1, "voc")


def test_yolo(tmp_path: Path) -> None:
    dataset = open_dataset(write_yolo(tmp_path))
    assert dataset.label_map.to_json() == [{"id": 0, "name": "nut"}, {"id": 1, "name": "bolt"}]
    first, second = dataset.records
    np.testing.assert_allclose(first.boxes_xyxy, [[15, 12, 25, 18], [4, 6, 16, 18]])
    np.testing.assert_array_equal(first.labels, [1, 0])
    assert len(second.labels) == 0


def test_yolo_export_that_points_outside(tmp_path: Path) -> None:
    """Exports write ../train/images and mean the folder beside data.yaml; names may be a mapping."""
    write_picture(tmp_path / "train" / "images" / "a.jpg")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "train" / "labels" / "stray.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("path: /nowhere/at/all\ntrain: ../train/images\nnames: {0: nut}\n")
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.records[0].labels) == 1
    assert "1 label files without a picture" in dataset.warnings[0]


def test_yolo_list_of_pictures(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [nut, bolt]\n")
    assert [len(record.labels) for record in open_dataset(tmp_path).records] == [2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_in_the_annotation_decides_about_exif(tmp_path: Path, orientation: int) -> None:
    """A sideways picture whose annotation says the stored size is used as stored."""
    write_coco(tmp_path)
    path = write_picture(tmp_path / "train2017" / "a.png", 40, 30, orientation)
    stored = np.random.default_rng(1200).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    content = coco_content()
    content["images"][0]["file_name"] = path.name
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(content))
    picture = open_dataset(tmp_path)[0].image
    assert picture.size == (40, 30)
    if orientation in (1, 5, 6, 7, 8):
        np.testing.assert_array_equal(np.asarray(picture), stored)
    if orientation >= 5:
        content["images"][0] |= {"width": 30, "height": 40}
        file.write_text(json.dumps(content))
        assert open_dataset(tmp_path)[0].image.size == (30, 40)


def test_yolo_sizes_are_of_the_upright_picture(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    write_picture(tmp_path / "images" / "train" / "a.jpg", 40, 30, orientation=6)
    dataset = open_dataset(tmp_path)
    assert (dataset.records[0].width, dataset.records[0].height) == (30, 40)
    assert dataset[0].image.size == (30, 40)


def test_opening_decodes_no_picture(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "train2017" / name).write_bytes(b"not a picture")
    dataset = open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"a\.jpg: not a picture"):
        dataset[0]


def test_several_formats_need_a_choice(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_yolo(tmp_path)
    with pytest.raises(InputError, match="--format coco or --format yolo"):
        find_format(tmp_path)
    assert open_dataset(tmp_path, format="yolo").format == "yolo"


def test_describe_is_one_line(tmp_path: Path) -> None:
    text = open_dataset(write_coco(tmp_path)).describe()
    assert "COCO JSON, split train: 2 pictures, 2 boxes, 2 classes (ant, cat)" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "split", "pictures", "boxes", "crowd", "classes"),
    [
        ("bccd", "train", 205, 2804, 0, 3),
        ("bccd", "val", 87, 1137, 0, 3),
        ("bccd", "test", 72, 945, 0, 3),
        ("coco-mini", "train", 337, 2838, 28, 80),
        ("coco-mini", "val", 122, 854, 0, 80),
        ("deeppcb-mini", "train", 300, 2053, 0, 6),
        ("deeppcb-mini", "val", 100, 726, 0, 6),
    ],
)
def test_real_sets(shared: Path, name: str, split: str, pictures: int, boxes: int, crowd: int, classes: int) -> None:
    dataset = open_dataset(shared / "data" / name, split)
    assert len(dataset) == pictures
    assert sum(len(record.labels) for record in dataset.records) == boxes
    assert sum(int(record.is_crowd.sum()) for record in dataset.records) == crowd
    assert len(dataset.label_map) == classes
    assert dataset.label_map == open_dataset(shared / "data" / name, "train").label_map


def test_real_flaws(shared: Path) -> None:
    bccd = [open_dataset(shared / "data" / "bccd", split) for split in ("train", "val", "test")]
    assert sum(dataset.problems["zero size"] for dataset in bccd) == 2
    coco = open_dataset(shared / "data" / "coco-mini", "train")
    assert sum(len(record.labels) == 0 for record in coco.records) == 3


def test_real_ground_truth_is_the_file(shared: Path) -> None:
    """Boxes, areas and crowd flags as in the JSON, whatever their order."""
    written = json.loads((shared / "data" / "coco-mini" / "annotations" / "instances_train2017.json").read_text())

    def rows(annotations: list[dict]) -> list[tuple]:
        keys = ("image_id", "category_id", "iscrowd", "area", "bbox")
        return sorted(tuple(entry[key] for key in keys) for entry in annotations)

    ours = open_dataset(shared / "data" / "coco-mini", "train").ground_truth()
    assert rows(ours["annotations"]) == rows(written["annotations"])
    assert {image["id"] for image in ours["images"]} == {image["id"] for image in written["images"]}


def test_voc_folders_and_lists_of_one_name_are_splits_of_their_own(tmp_path: Path) -> None:
    for name in ("batch1", "batch2"):
        write_picture(tmp_path / "folders" / name / f"{name}.jpg", 40, 30)
        (tmp_path / "folders" / name / f"{name}.xml").write_text(voc_xml([("dog", (4, 6, 14, 18))]))
    assert find_splits(tmp_path / "folders") == ("batch1", "batch2")
    root = write_voc(tmp_path)
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "train2007.txt")
    (lists / "train2012.txt").write_text("b\n")
    assert find_splits(root) == ("val", "train2007", "train2012")
    assert [open_dataset(root, split).records[0].path.name for split in ("train2007", "train2012")] == [
        "a.jpg",
        "b.jpg",
    ]


@pytest.mark.parametrize("names", [("IMG 0", "IMG 1"), ("blood cell (1)", "blood cell (2)")])
def test_voc_lists_of_names_with_spaces(tmp_path: Path, names: tuple[str, str]) -> None:
    """The last word may look like the second column of VOC's lists of a class."""
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    for name, split in zip(names, ("train", "test"), strict=True):
        write_picture(tmp_path / "JPEGImages" / f"{name}.jpg", 40, 30)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(voc_xml([("dog", (4, 6, 14, 18))]))
        (lists / f"{split}.txt").write_text(f"{name}\n\n")
    assert find_splits(tmp_path) == ("train", "test")
    assert [record.path.stem for record in open_dataset(tmp_path, "test").records] == [names[1]]


def test_hidden_files_are_no_annotations(tmp_path: Path) -> None:
    """As macOS leaves them on other systems' disks, and editors in their folders."""
    root = write_coco(tmp_path)
    (root / "annotations" / "._instances_train2017.json").write_bytes(b"\0\5\x16\7")
    (root / ".idea").mkdir()
    (root / ".idea" / "misc.xml").write_text("<project/>")
    assert find_splits(root) == ("train",)
    assert len(open_dataset(root)) == 2


def test_a_missing_coco_picture_is_not_another_of_its_name(tmp_path: Path) -> None:
    content = coco_content()
    for number, entry in enumerate(content["images"], start=1):
        entry["file_name"] = f"cam{number}/1.jpg"
    write_picture(tmp_path / "images" / "cam1" / "1.jpg", 40, 30)
    write_picture(tmp_path / "images" / "1.jpg", 20, 50)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"cam2/1\.jpg: no such picture"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("a.jpg", "sub\\b.jpg"), ("images/a.jpg", "images/sub/b.jpg")),
        (("C:\\x\\cats\\a.jpg", "C:\\x\\b.jpg"), ("images/a.jpg", "images/b.jpg")),
        (("a.jpg", "b.jpg"), ("images/train/a.jpg", "images/b.jpg")),
        (("/home/u/d1/a.jpg", "/home/u/d2/more/b.jpg"), ("images/a.jpg", "images/b.jpg")),
    ],
)
def test_coco_pictures_of_several_depths(tmp_path: Path, names: tuple[str, ...], files: tuple[str, ...]) -> None:
    content = coco_content()
    for entry, name, file in zip(content["images"], names, files, strict=True):
        entry["file_name"] = name
        write_picture(tmp_path / file, entry["width"], entry["height"])
    (tmp_path / "train.json").write_text(json.dumps(content))
    found = [record.path.relative_to(tmp_path).as_posix() for record in open_dataset(tmp_path).records]
    assert found == list(files)


def test_no_coco_picture_is_two(tmp_path: Path) -> None:
    """In a folder that was flattened one has overwritten the other."""
    content = coco_content()
    for number, entry in enumerate(content["images"], start=1):
        entry["file_name"] = f"/data/cam{number}/1.jpg"
    write_picture(tmp_path / "images" / "1.jpg", 40, 30)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"cam2/1\.jpg: no such picture"):
        open_dataset(tmp_path)


def test_two_coco_files_of_one_name(tmp_path: Path) -> None:
    root = write_coco(tmp_path, "train")
    (root / "annotations" / "train.json").write_text((root / "annotations" / "instances_train.json").read_text())
    assert find_splits(root) == ("train", "instances_train")
    assert len(open_dataset(root, "instances_train")) == 2


@pytest.mark.parametrize("written", ["images\\{}", "/data/upload/1/{}", "C:\\set\\images\\{}", "images/{}"])
def test_coco_paths_of_another_machine(tmp_path: Path, written: str) -> None:
    content = coco_content()
    for entry in content["images"]:
        write_picture(tmp_path / "images" / entry["file_name"], entry["width"], entry["height"])
        entry["file_name"] = written.format(entry["file_name"])
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert [record.path.name for record in open_dataset(tmp_path).records] == ["a.jpg", "b.jpg"]
