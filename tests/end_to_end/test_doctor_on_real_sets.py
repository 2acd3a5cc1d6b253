"""The doctor on real pictures: no fault is invented, and every fault planted in a copy is found where it was put."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrove.data.doctor import Diagnosis, check, write_cleaned
from detrove.structures import Preprocessing

SIZE = Preprocessing(longer=320)


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return target


def faults(diagnosis: Diagnosis) -> dict[str, int]:
    return {finding.kind: finding.count for finding in diagnosis.of("fault")}


def places(diagnosis: Diagnosis, kind: str) -> list[tuple[str, int | None]]:
    [finding] = [finding for finding in diagnosis.findings if finding.kind == kind]
    return [(place.file.name, place.line) for place in finding.places]


@pytest.mark.parametrize(
    ("name", "expected"), [("coco-mini", {}), ("deeppcb-mini", {}), ("bccd", {"zero-size box": 2})]
)
def test_no_fault_is_invented(shared: Path, name: str, expected: dict[str, int]) -> None:
    diagnosis = check(shared / "data" / name, preprocessing=SIZE, num_queries=100)
    assert faults(diagnosis) == expected
    assert diagnosis.num_looked == diagnosis.num_pictures > 300


def test_bccd_names_its_two_boxes(shared: Path) -> None:
    diagnosis = check(shared / "data" / "bccd")
    for place in diagnosis.of("fault")[0].places:
        assert place.line
        lines = place.file.read_text().splitlines()
        assert "<object>" in lines[place.line - 1]
        numbers = [
            int(number) for line in lines[place.line - 1 : place.line + 11] for number in re.findall(r">(\d+)<", line)
        ]
        x1, y1, x2, y2 = numbers[-4:]
        assert x1 == x2 or y1 == y2


class CocoCopy:
    """coco-mini, copied, its training file open for planting."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "annotations" / "instances_train2017.json"
        self.content = json.loads(self.file.read_text())

    @property
    def boxes(self) -> list[dict[str, Any]]:
        return self.content["annotations"]

    @boxes.setter
    def boxes(self, entries: list[dict[str, Any]]) -> None:
        self.content["annotations"] = entries

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.content["images"]

    def picture(self, index: int) -> Path:
        return self.root / "train2017" / self.images[index]["file_name"]

    def check(self) -> Diagnosis:
        self.file.write_text(json.dumps(self.content, indent=1))
        return check(self.root, preprocessing=SIZE, num_queries=100)


@pytest.fixture
def coco(shared: Path, tmp_path: Path) -> CocoCopy:
    return CocoCopy(copy(shared / "data" / "coco-mini", tmp_path / "coco"))


@pytest.mark.slow
def test_faults_planted_in_coco(coco: CocoCopy) -> None:
    images = coco.images
    later = {image["id"] for image in images[50:]}
    # The first pictures are for faults of files, which take their boxes with them.
    boxes = coco.boxes = sorted(coco.boxes, key=lambda entry: entry["image_id"] not in later)
    for number, entry in enumerate(boxes):
        entry["id"] = number + 1
    boxes[10]["bbox"][0] += 5000
    boxes[20]["bbox"][2] = 0
    boxes[30]["bbox"] = [10, 10, 1e6, 1e6]
    boxes[40]["bbox"] = [1, 2, 3]
    boxes[50]["category_id"] = 777
    boxes[60]["image_id"] = -5
    boxes.append({**boxes[70], "id": 9001})
    coco.picture(0).write_bytes(b"not a picture")
    coco.picture(1).write_bytes(coco.picture(1).read_bytes()[:9000])
    coco.picture(2).unlink()
    images[3]["width"] += 31
    turned = next(index for index in range(4, 30) if images[index]["width"] != images[index]["height"])
    note = Image.Exif()
    note[0x0112] = 8
    Image.open(coco.picture(turned)).save(coco.picture(turned), exif=note)
    with Image.open(coco.picture(40)) as picture:
        leak = picture.convert("RGB").resize((picture.width * 2 // 3, picture.height * 2 // 3))
    victim = sorted((coco.root / "val2017").iterdir())[0]
    size = Image.open(victim).size
    leak.resize(size).save(victim, quality=80)
    diagnosis = coco.check()
    assert faults(diagnosis) == {
        "unreadable picture": 1,
        "truncated picture": 1,
        "missing picture": 1,
        "unknown picture": 1,
        "unknown category": 1,
        "bad box": 1,
        "rotated labels": 1,
        "size mismatch": 1,
        "zero-size box": 1,
        "box outside": 1,
        "absurd box": 1,
        "duplicate box": 1,
        "leaked picture": 1,
    }
    for kind, id in (
        ("box outside", 11),
        ("zero-size box", 21),
        ("absurd box", 31),
        ("bad box", 41),
        ("unknown category", 51),
        ("unknown picture", 61),
        ("duplicate box", 9001),
    ):
        [finding] = [finding for finding in diagnosis.findings if finding.kind == kind]
        assert finding.places[0].entry == f"annotation {id}"
        assert finding.places[0].file == coco.file
        assert finding.places[0].line
    assert places(diagnosis, "unreadable picture") == [(coco.picture(0).name, None)]
    assert places(diagnosis, "truncated picture") == [(coco.picture(1).name, None)]
    lines = coco.file.read_text().splitlines()
    for kind, index in (("size mismatch", 3), ("rotated labels", turned)):
        [(_, line)] = places(diagnosis, kind)
        assert line
        assert images[index]["file_name"] in lines[line - 1]


@pytest.mark.slow
def test_a_cleaned_copy_of_planted_coco_is_sound(coco: CocoCopy, tmp_path: Path) -> None:
    coco.boxes[20]["bbox"][2] = 0
    coco.boxes[21]["bbox"][0] -= 200
    coco.picture(1).write_bytes(coco.picture(1).read_bytes()[:9000])
    cleaned = write_cleaned(coco.check(), tmp_path / "clean")
    again = check(tmp_path / "clean", preprocessing=SIZE, num_queries=100)
    assert faults(again) == {}
    assert again.num_boxes == cleaned.kept == 2838 + 854 - sum(cleaned.left_out.values())


def as_corners(box: list[float], width: int, height: int) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def as_fractions(box: list[float], width: int, height: int) -> list[float]:
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


@pytest.mark.slow
@pytest.mark.parametrize("convert", [as_corners, as_fractions])
def test_coco_in_another_box_format(coco: CocoCopy, convert: Callable[..., list[float]]) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco.images}
    meant = {entry["id"]: entry["bbox"] for entry in coco.boxes}
    for entry in coco.boxes:
        entry["bbox"] = convert(entry["bbox"], *sizes[entry["image_id"]])
    diagnosis = coco.check()
    assert faults(diagnosis) == {"wrong box format": 2838}
    [reading] = diagnosis.readings["train"]
    ids = diagnosis.splits["train"].entries.tolist()
    assert all(reading.xywh[index].tolist() == pytest.approx(meant[id]) for index, id in enumerate(ids))


def change_labels(root: Path, change: Callable[[int, list[float]], tuple[int, list[float]]]) -> None:
    for file in root.glob("labels/*/*.txt"):
        lines = []
        for line in file.read_text().splitlines():
            name, *numbers = line.split()
            number, box = change(int(name), [float(number) for number in numbers])
            lines.append(" ".join([str(number), *map(str, box)]))
        file.write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda c, b: (c, [value * 640 for value in b]), "wrong box format"),
        (lambda c, b: (c, [b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2]), "wrong box format"),
        (lambda c, b: (c + 1, b), "shifted class numbers"),
    ],
)
def test_yolo_written_otherwise(shared: Path, tmp_path: Path, change: Any, kind: str) -> None:
    root = copy(shared / "data" / "deeppcb-mini", tmp_path / "pcb")
    change_labels(root, change)
    assert set(faults(check(root))) == {kind}


@pytest.mark.slow
def test_faults_planted_in_voc(shared: Path, tmp_path: Path) -> None:
    root = copy(shared / "data" / "bccd", tmp_path / "bccd")
    names = (root / "ImageSets" / "Main" / "train.txt").read_text().split()
    first, second, third = (root / "Annotations" / f"{name}.xml" for name in names[:3])
    first.write_text(re.sub(r"<xmax>\d+</xmax>", "<xmax>999</xmax>", first.read_text(), count=1))
    second.write_text(second.read_text().replace("<width>640</width>", "<width>600</width>"))
    third.write_text(third.read_text()[:300])
    shutil.copyfile(root / "JPEGImages" / f"{names[4]}.jpg", root / "JPEGImages" / "again.jpg")
    shutil.copyfile(root / "Annotations" / f"{names[4]}.xml", root / "Annotations" / "again.xml")
    with (root / "ImageSets" / "Main" / "val.txt").open("a") as file:
        file.write("\nagain\n")
    diagnosis = check(root)
    assert faults(diagnosis) == {
        "broken file": 1,
        "size mismatch": 1,
        "zero-size box": 2,
        "box outside": 1,
        "leaked picture": 1,
    }
    assert places(diagnosis, "broken file")[0][0] == third.name
    [(name, line)] = places(diagnosis, "box outside")
    assert name == first.name
    assert line
    assert "<object>" in first.read_text().splitlines()[line - 1]
    [(name, line)] = places(diagnosis, "size mismatch")
    assert name == second.name
    assert line
    assert "<size>" in second.read_text().splitlines()[line - 1]
