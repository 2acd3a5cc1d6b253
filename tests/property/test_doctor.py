"""The doctor over arbitrary annotation files: it never crashes, and its cleaned copy accounts for every box."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detrove.data.doctor import check, clean
from detrove.data.doctor.page import make_page
from detrove.data.doctor.telling import WIDEST, in_full, in_short
from detrove.errors import InputError
from detrove.structures import Preprocessing

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)
NUMBER = st.one_of(st.floats(-20, 80), st.integers(-5, 70), st.sampled_from([0, 1e300, -1e9]))


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, usual, ODD)


ANNOTATION = st.fixed_dictionaries(
    {
        "id": mostly(st.integers(0, 20)),
        "image_id": mostly(st.integers(0, 3)),
        "category_id": mostly(st.integers(0, 3)),
        "bbox": mostly(st.lists(NUMBER, min_size=4, max_size=4)),
    },
    optional={"iscrowd": mostly(st.integers(0, 1)), "area": mostly(NUMBER)},
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(40, 30), (30, 40), (64, 64)]):
        Image.effect_noise(size, 60).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"\x89PNG\r\n")
    return folder


def examine_all(root: Path) -> tuple[int, dict[str, int]] | None:
    """Everything that the doctor does; the boxes kept and left out."""
    diagnosis = check(root, preprocessing=Preprocessing(longer=32), num_queries=3)
    assert max(map(len, in_full(diagnosis).splitlines())) <= WIDEST or " " not in str(root)
    assert bool(in_short(diagnosis)) == bool(diagnosis.of("fault"))
    json.dumps(diagnosis.to_json(), ensure_ascii=True)
    make_page(diagnosis)
    try:
        cleaned = clean(diagnosis)
    except InputError:
        return None
    return cleaned.kept, dict(cleaned.left_out)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    annotations=st.lists(mostly(ANNOTATION), max_size=12),
    sizes=st.lists(mostly(st.sampled_from([(40, 30), (30, 40), (64, 64)])), min_size=4, max_size=4),
    spaced=st.booleans(),
)
def test_coco_entries(pictures: Path, annotations: list[Any], sizes: list[Any], spaced: bool) -> None:
    images = [
        {"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
        if isinstance(size, tuple)
        else {"id": number, "file_name": f"{number}.png", "width": size, "height": 30}
        for number, size in enumerate(sizes)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for picture in pictures.iterdir():
            (root / picture.name).symlink_to(picture)
        (root / "train.json").write_text(json.dumps(content, indent=1 if spaced else None))
        found = examine_all(root)
    if found is not None:
        kept, left_out = found
        assert kept + sum(left_out.values()) == len(annotations)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 20), format=st.sampled_from(["coco", "yolo", "voc"]))
def test_files_with_changed_bytes(seed: int, num_changes: int, format: str) -> None:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = write_small_set(root, format)
        for _ in range(num_changes):
            file = generator.choice(files)
            data = bytearray(file.read_bytes())
            if not data:
                continue
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 3)] = bytes(generator.choices(range(256), k=generator.randint(0, 3)))
            file.write_bytes(data)
        with contextlib.suppress(InputError):  # there may be no data set left to read
            examine_all(root)


def write_small_set(root: Path, format: str) -> list[Path]:
    """A picture with two boxes in a format; gives all its files."""
    folder = root / {"coco": "train", "yolo": "images", "voc": "JPEGImages"}[format]
    folder.mkdir()
    Image.effect_noise((40, 30), 60).save(folder / "a.jpg")
    if format == "coco":
        (root / "annotations").mkdir()
        boxes = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [3 + n, 4, 20, 20]} for n in range(2)]
        image = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
        content = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "nut"}]}
        (root / "annotations" / "instances_train.json").write_text(json.dumps(content, indent=1))
    elif format == "yolo":
        (root / "labels").mkdir()
        (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.2\n0 0.2 0.2 0.25 0.2\n")
        (root / "data.yaml").write_text("train: images\nnames: [nut]\n")
    else:
        (root / "Annotations").mkdir()
        corners = "<xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>22</ymax>"
        box = f"<object><name>nut</name><bndbox>{corners}</bndbox></object>"
        size = "<size><width>40</width><height>30</height></size>"
        (root / "Annotations" / "a.xml").write_text(f"<annotation>{size}{box}{box}</annotation>")
    return sorted(file for file in root.rglob("*") if file.is_file())
