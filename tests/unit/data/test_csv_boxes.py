"""CSV of boxes: the headers that tools write, splits, pictures in any folder, and faults with their lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import write_picture

from detrove.data import find_splits, open_dataset, read_leniently
from detrove.errors import InputError


def write_csv(root: Path, text: str, name: str = "boxes.csv") -> Path:
    for picture in ("a.jpg", "b.jpg"):
        write_picture(root / "images" / picture)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.jpg,40,30,ant,4,6,14,18"),
        ("class;x1;y1;x2;y2;image", "ant;4;6;14;18;a.jpg"),
        ("Path\tLabel\tX\tY\tW\tH", "C:\\\\data\\\\images\\\\a.jpg\tant\t4\t6\t10\t12"),
        ("image_path,x,y,width,height,name", "/home/other/images/a.jpg,4,6,10,12,ant"),
        ('"image_name","bbox_x","bbox_y","bbox_width","bbox_height","label_name"', '"a.jpg",4,6,10,12,"ant"'),
        (" file_name , left , top , right , bottom , category ", " a.jpg , 4 , 6 , 14 , 18 , ant "),
    ],
)
def test_headers(tmp_path: Path, header: str, row: str) -> None:
    dataset = open_dataset(write_csv(tmp_path, f"\ufeff{header}\n{row}\n"))
    assert (dataset.format, dataset.split, dataset.label_map.names) == ("csv", "all", ["ant"])
    [record] = dataset.records
    assert (record.width, record.height) == (40, 30)
    np.testing.assert_array_equal(record.boxes_xyxy, [[4, 6, 14, 18]])
    assert "CSV of boxes" in dataset.describe()


def test_the_picture_size_as_written_is_taken(tmp_path: Path) -> None:
    dataset = open_dataset(write_csv(tmp_path, "image,width,height,class,x1,y1,x2,y2\na.jpg,80,60,ant,4,6,70,50\n"))
    assert (dataset.records[0].width, dataset.records[0].height) == (80, 60)


def test_empty_numbers_are_a_picture_without_boxes(tmp_path: Path) -> None:
    dataset = open_dataset(write_csv(tmp_path, "image,x1,y1,x2,y2,class\na.jpg,1,2,3,4,ant\nb.jpg,,,,,\n"))
    assert [len(record.labels) for record in dataset.records] == [1, 0]


def test_a_file_per_split_with_one_numbering(tmp_path: Path) -> None:
    header = "image,x1,y1,x2,y2,class\n"
    write_csv(tmp_path, f"{header}a.jpg,1,2,3,4,cat\n", "train_labels.csv")
    write_csv(tmp_path, f"{header}b.jpg,1,2,3,4,ant\n", "test_labels.csv")
    assert find_splits(tmp_path) == ("train", "test")
    assert open_dataset(tmp_path, "test").label_map.names == ["ant", "cat"]
    assert open_dataset(tmp_path, "train").records[0].labels.tolist() == [1]


def test_an_export_with_a_file_among_each_splits_pictures(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_picture(tmp_path / split / f"{split}.jpg")
        text = f"filename,width,height,class,xmin,ymin,xmax,ymax\n{split}.jpg,40,30,ant,1,2,3,4\n"
        (tmp_path / split / "_annotations.csv").write_text(text)
    assert find_splits(tmp_path) == ("train", "val")
    assert open_dataset(tmp_path, "val").records[0].path.name == "valid.jpg"


def test_a_column_divides_a_file(tmp_path: Path) -> None:
    root = write_csv(tmp_path, "image,x1,y1,x2,y2,class,split\na.jpg,1,2,3,4,ant,train\nb.jpg,1,2,3,4,ant,valid\n")
    assert find_splits(root) == ("train", "val")
    assert [record.path.name for record in open_dataset(root, "val").records] == ["b.jpg"]


def test_an_unknown_header_is_told_with_those_known(tmp_path: Path) -> None:
    root = write_csv(tmp_path, "photo,species,u,v\na.jpg,ant,1,2\n")
    for arguments in ((root, None, None), (root, None, "csv"), (root / "boxes.csv", None, None)):
        with pytest.raises(InputError, match=r"its header is 'photo, species, u, v'; known are, .*filename.*xmin"):
            open_dataset(*arguments)


def test_a_table_that_is_no_data_set_disturbs_no_other(tmp_path: Path) -> None:
    write_csv(tmp_path, "image,x1,y1,x2,y2,class\na.jpg,1,2,3,4,ant\n")
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2\n")
    assert open_dataset(tmp_path).split == "all"


def test_faults_have_their_lines(tmp_path: Path) -> None:
    rows = ["a.jpg,1,2,3,4,ant", "a.jpg,1,x,3,4,ant", "gone.jpg,1,2,3,4,ant", "", ",1,2,3,4,ant", "b.jpg,1,2,3,4,"]
    root = write_csv(tmp_path, "image,x1,y1,x2,y2,class\n" + "\n".join([*rows, "b.jpg,1,2"]))
    reading = read_leniently(root)
    assert [(fault.kind, fault.line, fault.entry, fault.num_boxes) for fault in reading.faults] == [
        ("unknown picture", 6, "line 6", 1),
        ("bad box", 3, "line 3", 1),
        ("missing picture", None, "line 4", 1),
        ("unknown category", 7, "line 7", 1),
        ("bad box", 8, "line 8", 1),
    ]
    with pytest.raises(InputError, match=r"boxes\.csv:6: names no picture"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("written", "splits"),
    [
        (("fold0", "fold1"), {"fold0": 1, "fold1": 1}),
        (("Train", "train "), {"train": 2}),
        (("val", "Validation"), {"val": 2}),
        (("train2017", "train"), {"train2017": 1, "train": 1}),
    ],
)
def test_no_value_of_a_split_column_is_lost(tmp_path: Path, written: tuple[str, ...], splits: dict[str, int]) -> None:
    rows = "".join(f"{name},ant,4,6,14,18,{split}\n" for name, split in zip(("a.jpg", "b.jpg"), written, strict=True))
    root = write_csv(tmp_path, f"image,class,x1,y1,x2,y2,split\n{rows}")
    assert set(find_splits(root)) == set(splits)
    assert {split: len(open_dataset(root, split)) for split in splits} == splits


def test_folders_with_a_file_each_are_splits_of_their_own(tmp_path: Path) -> None:
    for name in ("batch1", "batch2"):
        write_picture(tmp_path / name / f"{name}.jpg")
        (tmp_path / name / "_annotations.csv").write_text(f"image,class,x1,y1,x2,y2\n{name}.jpg,ant,4,6,14,18\n")
    assert find_splits(tmp_path) == ("batch1", "batch2")
    assert open_dataset(tmp_path, "batch2").records[0].path.name == "batch2.jpg"
