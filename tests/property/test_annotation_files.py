"""Whatever stands in annotation files: nothing but an `InputError` is raised, and no box is lost unreported."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detrove.data import DetectionDataset, find_splits, open_dataset, read_leniently
from detrove.errors import InputError

NAMES = ("a.png", "b.png", "gone.png")
words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029"), max_size=8)
numbers = st.one_of(st.integers(-5, 60), st.floats(-10, 70), st.floats(), st.integers(-(10**30), 10**30))
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words), lambda each: st.lists(each, max_size=3), max_leaves=4
)


def mostly(usual: st.SearchStrategy[Any], *others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual, three times of four."""
    return st.integers(0, 3).flatmap(lambda dice: st.one_of(*others) if dice == 0 else usual)


def entries(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with most of these fields, most of them right, or no objects at all."""
    right = {key: mostly(value, junk) for key, value in fields.items()}
    return mostly(st.fixed_dictionaries(right), st.fixed_dictionaries({}, optional=right), junk)


coco_files = st.fixed_dictionaries(
    {
        "images": st.lists(
            entries(id=st.integers(0, 3), file_name=st.sampled_from(NAMES), width=st.just(40), height=st.just(30)),
            max_size=4,
        ),
        "annotations": st.lists(
            entries(
                id=st.integers(0, 9),
                image_id=st.integers(0, 3),
                category_id=st.integers(1, 3),
                bbox=st.lists(mostly(numbers, junk), min_size=4, max_size=4),
                area=numbers,
                iscrowd=st.integers(0, 1),
            ),
            max_size=8,
        ),
        "categories": st.lists(entries(id=st.integers(1, 3), name=st.sampled_from("xyz")), min_size=1, max_size=3),
    }
)


def make_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES[:2]:
        Image.new("RGB", (40, 30)).save(folder / name)


def attempt(action: Callable[..., Any], *arguments: Any) -> Any:
    """What the action gives, or its `InputError`, which must be one line; any other exception passes through."""
    try:
        return action(*arguments)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    return InputError(message)


def hold(root: Path, format: str, num_boxes: int | None) -> None:
    """Opening raises the first fault or none; the lenient reading accounts for every box (None: not to be counted)."""
    reading = attempt(read_leniently, root, format)
    if isinstance(reading, InputError):
        assert isinstance(attempt(open_dataset, root, None, format), InputError)
        return
    splits = attempt(find_splits, root, format)
    opened = (
        {}
        if isinstance(splits, InputError)
        else {split: attempt(open_dataset, root, split, format) for split in splits}
    )
    refused = isinstance(splits, InputError) or any(isinstance(each, InputError) for each in opened.values())
    assert refused == bool(reading.faults)
    for split, written in reading.splits.items():
        kept = DetectionDataset(root, split, format, written)
        if num_boxes is not None:
            assert written.num_boxes + sum(fault.num_boxes for fault in reading.faults) == num_boxes
        assert 0 <= written.num_boxes - len(kept.records.labels) <= sum(kept.problems.values())
        for record in kept.records:
            assert (record.boxes_xyxy[:, :2] < record.boxes_xyxy[:, 2:]).all()
        if not refused:
            assert list(opened[split].annotations.paths) == list(written.paths)


def in_a_folder(test: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        test(Path(folder))


@settings(deadline=None, max_examples=100)
@given(coco_files, st.sampled_from([None, 1]), st.permutations(["images", "annotations", "categories"]))
def test_coco(content: dict[str, Any], indent: int | None, order: list[str]) -> None:
    def test(root: Path) -> None:
        make_pictures(root / "train")
        (root / "annotations").mkdir()
        text = json.dumps({key: content[key] for key in order}, indent=indent)
        (root / "annotations" / "instances_train.json").write_text(text)
        hold(root, "coco", len(content["annotations"]))

    in_a_folder(test)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(
            st.tuples(mostly(st.sampled_from("xy"), words), st.lists(mostly(numbers, words), max_size=4)), max_size=4
        ),
        min_size=1,
        max_size=3,
    ),
    mostly(st.just((40, 30)), st.tuples(numbers, numbers)),
)
def test_voc(files: list[list[tuple[str, list[Any]]]], size: tuple[Any, Any]) -> None:
    def test(root: Path) -> None:
        make_pictures(root / "train")
        for name, objects in zip(NAMES, files, strict=False):
            items = "".join(
                f"<object><name>{escape(label)}</name><bndbox>"
                + "".join(
                    f"<{key}>{escape(str(value))}</{key}>"
                    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
                )
                + "</bndbox></object>\n"
                for label, corners in objects
            )
            text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{items}</annotation>"
            (root / "train" / name).with_suffix(".xml").write_text(text, encoding="utf-8")
        hold(root, "voc", sum(map(len, files)))

    in_a_folder(test)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.lists(mostly(numbers, words), min_size=4, max_size=8), max_size=4), min_size=1, max_size=2),
    mostly(st.just(["x", "y"]), junk, st.dictionaries(junk.map(str), junk)),
)
def test_yolo(files: list[list[list[Any]]], names: Any) -> None:
    def test(root: Path) -> None:
        make_pictures(root / "images")
        (root / "labels").mkdir()
        num_boxes = 0
        for name, lines in zip(NAMES, files, strict=False):
            text = "\n".join(" ".join(map(str, line)) for line in lines)
            num_boxes += sum(bool(line.strip()) for line in text.split("\n"))
            (root / "labels" / name).with_suffix(".txt").write_text(text, encoding="utf-8")
        (root / "data.yaml").write_text(yaml.safe_dump({"names": names, "train": "images"}), encoding="utf-8")
        hold(root, "yolo", num_boxes)

    in_a_folder(test)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            mostly(st.sampled_from(NAMES), words), st.sampled_from("xy") | words, st.lists(mostly(numbers, words))
        ),
        max_size=8,
    )
)
def test_csv(rows: list[tuple[str, str, list[Any]]]) -> None:
    def test(root: Path) -> None:
        make_pictures(root)
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["filename", "class", "x", "y", "w", "h"])
        table.writerows([name, label, *box] for name, label, box in rows)
        (root / "train.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
        hold(root, "csv", sum(any(str(value).strip() for value in box[:4]) for _, _, box in rows))

    in_a_folder(test)


SOUND = {
    "coco": (
        "annotations/instances_train.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
                "categories": [{"id": 1, "name": "x"}],
            },
            indent=1,
        ),
    ),
    "voc": (
        "train/a.xml",
        "<annotation><object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
        "</object></annotation>",
    ),
    "yolo": ("data.yaml", "path: .\ntrain: train\nval: [train]\nnames:\n  0: x\n"),
    "csv": ("train.csv", 'filename,class,xmin,ymin,xmax,ymax\na.png,"x",1,2,3,4\n'),
}


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(SOUND)), st.data())
def test_damaged_bytes(format: str, data: st.DataObject) -> None:
    """A sound file with a piece replaced by anything."""
    name, text = SOUND[format]
    content = text.encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 8)))
    piece = data.draw(st.one_of(st.binary(max_size=6), st.text('"[]{},:<>&-\t\n 019eE', max_size=4).map(str.encode)))

    def test(root: Path) -> None:
        make_pictures(root / "train")
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content[:start] + piece + content[end:])
        hold(root, format, None)

    in_a_folder(test)
