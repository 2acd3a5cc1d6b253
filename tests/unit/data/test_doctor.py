"""The doctor finds what is planted in toy data sets, says where, and calls sound ones sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import voc_xml
from PIL import Image, ImageFilter

from detrove.data.doctor import Diagnosis, Finding, check
from detrove.data.doctor.boxes import SAME, copies
from detrove.data.doctor.findings import KINDS, MOST_PLACES, Place, make_finding, merged
from detrove.data.doctor.telling import WIDEST, in_full, in_short
from detrove.structures import Preprocessing

WIDTH, HEIGHT = 64, 48


def smooth_picture(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), exif: int = 0) -> Path:
    """A picture like no other of another seed, and still like itself when it is made smaller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
    note = Image.Exif()
    if exif:
        note[0x0112] = exif
    picture.save(path, exif=note)
    return path


def sound_content(first: int = 0, pictures: int = 4) -> dict[str, Any]:
    """COCO entries of pictures with three boxes each, of two classes."""
    images, annotations = [], []
    generator = np.random.default_rng(first)
    for number in range(pictures):
        id = first + number
        images.append({"id": id, "file_name": f"{id}.jpg", "width": WIDTH, "height": HEIGHT})
        for place in range(3):
            x, y = generator.uniform(1, 8, 2)
            w, h = generator.uniform(9, 11, 2)
            box = [round(float(value), 2) for value in (x + 17 * place, y + 12 * place, w, h)]
            entry = {"id": 10 * id + place, "image_id": id, "category_id": 1 + place % 2, "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


class Toy:
    """A sound COCO data set, train and val, to plant faults in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train, self.val = sound_content(0), sound_content(50)
        for split, content in (("train", self.train), ("val", self.val)):
            for image in content["images"]:
                smooth_picture(root / split / image["file_name"], image["id"])

    def write(self) -> Path:
        (self.root / "annotations").mkdir(exist_ok=True)
        for split, content in (("train", self.train), ("val", self.val)):
            file = self.root / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(content, indent=1))
        return self.root

    def check(self, **options: Any) -> Diagnosis:
        return check(self.write(), **options)

    def text_at(self, place: Place) -> str:
        assert place.line
        return "\n".join(place.file.read_text().splitlines()[place.line - 1 : place.line + 3])


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def only_fault(diagnosis: Diagnosis) -> Finding:
    [finding] = diagnosis.of("fault")
    return finding


def kinds(diagnosis: Diagnosis) -> set[str]:
    return {finding.kind for finding in diagnosis.findings}


def test_a_sound_set_has_no_faults(toy: Toy) -> None:
    diagnosis = toy.check(preprocessing=Preprocessing(longer=WIDTH), num_queries=3)
    assert diagnosis.of("fault") == []
    assert kinds(diagnosis) == {"rare class"}
    assert (diagnosis.num_pictures, diagnosis.num_looked, diagnosis.num_boxes) == (8, 8, 24)
    assert in_short(diagnosis) == []


@pytest.mark.parametrize(
    ("kind", "box"),
    [
        ("zero-size box", [5, 5, 0, 9]),
        ("zero-size box", [5, 5, 9, -3]),
        ("box outside", [50, 5, 20, 9]),
        ("box outside", [-4, 5, 20, 9]),
        ("box outside", [500, 5, 20, 9]),
        ("absurd box", [5, 5, 1e9, 9]),
        ("absurd box", [5, 5, 0.2, 9]),
        ("absurd box", [0, 20, WIDTH, 1.1]),
        ("absurd box", [0, 0, WIDTH, HEIGHT]),
        ("bad box", [5, 5, 9]),
        ("bad box", [5, None, 9, 9]),
    ],
)
def test_a_bad_box(toy: Toy, kind: str, box: list[Any]) -> None:
    # Alone among many, so that no doubt falls on the format, and a box over all stands out.
    more = sound_content(100, 35)
    for key in ("images", "annotations"):
        toy.train[key] += more[key]
    for image in more["images"]:
        smooth_picture(toy.root / "train" / image["file_name"], image["id"])
    toy.train["annotations"][7]["bbox"] = box
    finding = only_fault(toy.check())
    assert (finding.kind, finding.count) == (kind, 1)
    [place] = finding.places
    assert place.entry == f"annotation {toy.train['annotations'][7]['id']}"
    assert f'"id": {toy.train["annotations"][7]["id"]},' in toy.text_at(place)
    assert str(place).startswith(f"{place.file}:{place.line}: ")
    assert place.entry in place.note


def test_boxes_may_touch_the_edge(toy: Toy) -> None:
    toy.train["annotations"][0]["bbox"] = [0, 0, 10, 10]
    toy.train["annotations"][1]["bbox"] = [WIDTH - 10.5, HEIGHT - 10, 11, 10]
    assert toy.check().of("fault") == []


def test_a_duplicate_and_a_conflict(toy: Toy) -> None:
    first, second = toy.train["annotations"][:2]
    toy.train["annotations"] += [{**first, "id": 900}, {**second, "id": 901, "category_id": 1}]
    diagnosis = toy.check()
    finding = only_fault(diagnosis)
    assert (finding.kind, [place.entry for place in finding.places]) == ("duplicate box", ["annotation 900"])
    [remark] = [finding for finding in diagnosis.findings if finding.kind == "one box, two classes"]
    assert "annotation 901 is cat" in remark.places[0].note


def test_crowded_objects_are_no_duplicates(toy: Toy) -> None:
    x, y, w, h = toy.train["annotations"][0]["bbox"]
    toy.train["annotations"].append({**toy.train["annotations"][0], "id": 900, "bbox": [x + 0.3, y, w, h]})
    assert toy.check().of("fault") == []


def test_files_that_cannot_be_decoded(toy: Toy) -> None:
    pictures = [toy.root / "train" / f"{number}.jpg" for number in range(3)]
    pictures[0].write_bytes(b"no picture")
    pictures[1].write_bytes(pictures[1].read_bytes()[:-300])
    pictures[2].unlink()
    found = {finding.kind: finding.places[0].file for finding in toy.check().of("fault")}
    assert found == {
        "unreadable picture": pictures[0],
        "truncated picture": pictures[1],
        "missing picture": pictures[2],
    }


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_a_picture_on_its_side(toy: Toy, orientation: int) -> None:
    smooth_picture(toy.root / "train" / "1.jpg", 1, exif=orientation)
    finding = only_fault(toy.check())
    assert finding.kind == "rotated labels"
    assert '"file_name": "1.jpg"' in toy.text_at(finding.places[0])


def test_upright_labels_of_a_turned_picture_are_sound(toy: Toy) -> None:
    smooth_picture(toy.root / "train" / "1.jpg", 1, size=(HEIGHT, WIDTH), exif=6)
    assert toy.check().of("fault") == []


def test_an_orientation_that_sizes_cannot_tell_is_a_remark(toy: Toy) -> None:
    smooth_picture(toy.root / "train" / "1.jpg", 1, exif=3)
    diagnosis = toy.check()
    assert diagnosis.of("fault") == []
    assert "orientation note" in kinds(diagnosis)


def test_another_size(toy: Toy) -> None:
    smooth_picture(toy.root / "train" / "1.jpg", 1, size=(WIDTH + 8, HEIGHT))
    finding = only_fault(toy.check())
    assert finding.kind == "size mismatch"
    assert finding.places[0].note == "1.jpg is 72x48, labelled as 64x48"


def test_a_picture_in_two_splits(toy: Toy) -> None:
    picture = Image.open(toy.root / "train" / "2.jpg")
    picture.resize((WIDTH * 2, HEIGHT * 2)).save(toy.root / "val" / "copy.png")
    toy.val["images"].append({"id": 99, "file_name": "copy.png", "width": WIDTH * 2, "height": HEIGHT * 2})
    finding = only_fault(toy.check())
    assert finding.kind == "leaked picture"
    assert (finding.places[0].picture, finding.places[0].other) == (
        toy.root / "val" / "copy.png",
        toy.root / "train" / "2.jpg",
    )


def test_one_file_in_two_splits(toy: Toy) -> None:
    toy.val["images"].append({"id": 99, "file_name": "../train/2.jpg", "width": WIDTH, "height": HEIGHT})
    assert "leaked picture" in kinds(toy.check())


def test_a_picture_listed_twice(toy: Toy) -> None:
    toy.train["images"].append({**toy.train["images"][0], "id": 99})
    assert only_fault(toy.check()).kind == "repeated picture"


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("corners (x1, y1, x2, y2) in pixels", lambda x, y, w, h: [x, y, x + w, y + h]),
        (
            "corner and size (x, y, width, height) in fractions of the picture",
            lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT],
        ),
        (
            "corners (x1, y1, x2, y2) in fractions of the picture",
            lambda x, y, w, h: [x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT],
        ),
    ],
)
def test_coco_boxes_in_another_format(toy: Toy, name: str, write: Any) -> None:
    for annotation in toy.train["annotations"]:
        annotation["bbox"] = write(*annotation["bbox"])
    diagnosis = toy.check()
    finding = only_fault(diagnosis)
    assert (finding.kind, finding.count) == ("wrong box format", 12)
    assert name in [reading.name for reading in diagnosis.readings["train"]]
    assert "val" not in diagnosis.readings


def test_sloppy_boxes_are_no_other_format(toy: Toy) -> None:
    for annotation in toy.train["annotations"]:
        annotation["bbox"] = [-9, *annotation["bbox"][1:]]
    assert only_fault(toy.check()).kind == "box outside"


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (lambda cx, cy, w, h: (cx * WIDTH, cy * HEIGHT, w * WIDTH, h * HEIGHT), "wrong box format"),
        (lambda cx, cy, w, h: (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), "wrong box format"),
        (lambda *box: box, None),
    ],
)
def test_yolo_in_another_format(tmp_path: Path, convert: Any, kind: str | None) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "labels").mkdir()
    for number in range(8):
        smooth_picture(tmp_path / "images" / f"{number}.jpg", number)
        boxes = np.column_stack((generator.uniform(0.15, 0.85, (4, 2)), generator.uniform(0.1, 0.25, (4, 2))))
        lines = [f"0 {' '.join(map(str, convert(*box)))}" for box in boxes.tolist()]
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [nut]\n")
    assert [finding.kind for finding in check(tmp_path).of("fault")] == ([kind] if kind else [])


@pytest.mark.parametrize(("first", "strays"), [(1, 2), (0, 0)])
def test_yolo_classes_counted_from_one(tmp_path: Path, first: int, strays: int) -> None:
    (tmp_path / "labels").mkdir()
    for number in range(2):
        smooth_picture(tmp_path / "images" / f"{number}.jpg", number)
        lines = [f"{first} 0.3 0.3 0.2 0.2", f"{first + 1} 0.7 0.7 0.2 0.2"]
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [nut, bolt]\n")
    faults = check(tmp_path).of("fault")
    assert [(finding.kind, finding.count) for finding in faults] == ([("shifted class numbers", strays)] * bool(first))
    if faults:
        place = faults[0].places[0]
        assert (place.file, place.line) == (tmp_path / "labels" / "0.txt", 2)


def test_voc_corners_that_are_sizes(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    for number in range(4):
        smooth_picture(tmp_path / "JPEGImages" / f"{number}.jpg", number)
        objects = [("nut", (40.0 - number, 30.0, 12.0, 13.0)), ("bolt", (30.0 + number, 25.0, 9.0, 10.0))]
        (tmp_path / "Annotations" / f"{number}.xml").write_text(voc_xml(objects, size))
    [reading] = check(tmp_path).readings["all"]
    assert reading.name == "corner and size (x, y, width, height) in pixels"
    assert reading.xywh[0].tolist() == [40, 30, 12, 13]


def test_queries_and_sizes(toy: Toy) -> None:
    diagnosis = toy.check(preprocessing=Preprocessing(longer=32), num_queries=2)
    by_kind = {finding.kind: finding for finding in diagnosis.findings}
    assert by_kind["too few queries"].count == 8
    assert by_kind["small objects"].severity == "remark"
    assert by_kind["small objects"].count == 24
    assert "100.0% of all boxes at a longer side of 32" in by_kind["small objects"].remedy


def test_crowd_regions_need_no_query(toy: Toy) -> None:
    toy.train["annotations"][0]["iscrowd"] = toy.train["annotations"][3]["iscrowd"] = 1
    places = {place.picture for finding in toy.check(num_queries=2).of("fault") for place in finding.places}
    assert toy.root / "train" / "0.jpg" not in places
    assert toy.root / "train" / "2.jpg" in places


def test_remarks(toy: Toy) -> None:
    toy.train["categories"] += [{"id": 0, "name": "Cat "}, {"id": 9, "name": "yak"}]
    toy.train["images"].append({"id": 33, "file_name": "33.jpg", "width": WIDTH, "height": HEIGHT})
    smooth_picture(toy.root / "train" / "33.jpg", 33)
    toy.val["annotations"][0]["category_id"] = 9
    toy.train["annotations"][1]["id"] = toy.train["annotations"][0]["id"]
    diagnosis = toy.check()
    assert diagnosis.of("fault") == []
    assert kinds(diagnosis) == {
        "empty picture",
        "unused class",
        "untrained class",
        "rare class",
        "id gaps",
        "ids from zero",
        "repeated ids",
        "repeated class name",
    }


def test_imbalance(toy: Toy) -> None:
    for annotation in toy.train["annotations"][1:]:
        annotation["category_id"] = 1
    toy.train["annotations"][0]["category_id"] = 2
    assert "class imbalance" in kinds(toy.check())


def test_a_split_without_boxes(toy: Toy) -> None:
    toy.train["annotations"] = []
    finding = only_fault(toy.check())
    assert finding.kind == "no boxes"


def test_a_split_that_repeats_others_is_no_leak(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for number in range(4):
        smooth_picture(tmp_path / "JPEGImages" / f"{number}.jpg", number)
        corners = (5.0, 5.0, 5.0 if number == 3 else 25.0, 20.0)
        (tmp_path / "Annotations" / f"{number}.xml").write_text(voc_xml([("nut", corners)]))
    for name, numbers in (("train", "0 1"), ("val", "2 3"), ("trainval", "0 1 2 3")):
        (lists / f"{name}.txt").write_text("\n".join(numbers.split()))
    diagnosis = check(tmp_path)
    assert list(diagnosis.splits) == ["train", "val"]
    assert (only_fault(diagnosis).kind, only_fault(diagnosis).count) == ("zero-size box", 1)


def test_a_broken_file_leaves_the_other_split(toy: Toy) -> None:
    toy.write()
    (toy.root / "annotations" / "instances_train.json").write_text('{"images": [\n{"id": 1,,')
    diagnosis = check(toy.root)
    finding = only_fault(diagnosis)
    assert (finding.kind, finding.places[0].line) == ("broken file", 2)
    assert list(diagnosis.splits) == ["val"]


def test_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{")
    diagnosis = check(tmp_path)
    assert only_fault(diagnosis).kind == "broken file"
    assert "nothing can be read" in in_full(diagnosis)


def test_the_text_fits_and_tells_faults_first(toy: Toy) -> None:
    toy.train["annotations"][0]["bbox"] = [5, 5, 0, 9]
    lines = in_full(toy.check(), width=300).splitlines()
    assert max(map(len, lines)) <= WIDEST
    text = "\n".join(lines)
    assert "annotations/instances_train.json:" in text
    assert text.index("Faults: 1") < text.index("zero-size box") < text.index("Remarks: 1") < text.index("rare class")


def test_json_says_everything(toy: Toy) -> None:
    toy.train["annotations"][0]["bbox"] = [5, 5, 0, 9]
    values = json.loads(json.dumps(toy.check().to_json()))
    [fault] = values["faults"]
    assert (fault["kind"], fault["count"], fault["unit"]) == ("zero-size box", 1, "boxes")
    assert fault["meaning"]
    assert fault["remedy"]
    place = fault["places"][0]
    assert (place["entry"], place["split"], place["boxes"]) == ("annotation 0", "train", [[5, 5, 5, 14]])
    assert values["splits"]["train"] == {"pictures": 4, "boxes": 12}


def test_findings_of_a_kind_are_merged_and_their_places_bounded() -> None:
    place = Place(Path("a"), "x")
    first, second = make_finding("duplicate box", [place] * MOST_PLACES), make_finding("duplicate box", [place] * 5)
    remark = make_finding("id gaps", [place])
    [fault, other] = merged([remark, first, second, make_finding("absurd box", [])])
    assert (fault.count, len(fault.places), other.kind) == (MOST_PLACES + 5, MOST_PLACES, "id gaps")
    assert fault.amount == "1,005 boxes"


def test_every_kind_is_complete() -> None:
    for kind in KINDS:
        finding = make_finding(kind, [Place(Path("a"), "x")])
        assert finding.amount.startswith("1 ")
        assert finding.meaning.endswith((".", "?"))
        assert finding.remedy.endswith(".")


def test_boxes_of_a_picture_of_another_size_are_not_outside_for_it(toy: Toy) -> None:
    toy.train["images"][0]["width"] -= 20
    assert only_fault(toy.check()).kind == "size mismatch"
    toy.train["annotations"][0]["bbox"] = [WIDTH - 2, 5, 20, 9]
    assert kinds(toy.check()) >= {"size mismatch", "box outside"}


def test_copies_are_those_of_comparing_all_with_all(toy: Toy) -> None:
    generator = np.random.default_rng(0)
    for number, annotation in enumerate(list(toy.train["annotations"])):
        for copy in range(4):
            box = (np.array(annotation["bbox"]) + generator.normal(0, 0.03, 4)).tolist()
            toy.train["annotations"].append({**annotation, "id": 1000 + 10 * number + copy, "bbox": box})
    annotations = toy.check().splits["train"]
    expected = []
    for a in range(annotations.num_boxes):
        for b in range(a + 1, annotations.num_boxes):
            same = annotations.picture_of(a) == annotations.picture_of(b)
            if same and plain_iou(*annotations.xywh[[a, b]].tolist()) >= SAME:
                expected.append([a, b])
    assert len(expected) > 20
    assert copies(annotations).tolist() == expected


def plain_iou(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
