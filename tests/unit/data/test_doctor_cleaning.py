"""The cleaned copy: sound when examined again, every box accounted for, the original untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_doctor import HEIGHT, WIDTH, Toy, smooth_picture

from detrove.data.doctor import check, clean, write_cleaned
from detrove.data.doctor.cleaning import turn_boxes
from detrove.errors import InputError


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "toy")


def plant(toy: Toy) -> None:
    """One of each fault that may be cleaned, in the training split but for the leak."""
    entries = toy.train["annotations"]
    entries[0]["bbox"] = [5, 5, 0, 9]
    entries[1]["bbox"] = [50, 5, 20, 9]
    entries[2]["bbox"] = [5, 5, 1e7, 9]
    entries.append({**entries[3], "id": 900})
    entries.append({**entries[3], "id": 901, "image_id": 12345})
    smooth_picture(toy.root / "train" / "2.jpg", 2, exif=6)
    (toy.root / "train" / "3.jpg").write_bytes(b"")
    Image.open(toy.root / "train" / "1.jpg").save(toy.root / "val" / "leak.png")
    toy.val["images"].append({"id": 99, "file_name": "leak.png", "width": WIDTH, "height": HEIGHT})


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_the_copy_is_sound_and_the_original_untouched(toy: Toy, tmp_path: Path) -> None:
    plant(toy)
    before = contents(toy.write())
    cleaned = write_cleaned(check(toy.root), tmp_path / "clean")
    assert contents(toy.root) == before
    again = check(tmp_path / "clean")
    assert again.of("fault") == []
    assert again.num_boxes == cleaned.kept
    assert cleaned.pictures == {"unreadable picture": 1, "leaked picture": 1}
    assert cleaned.mended == {"box outside": 1, "rotated labels": 3}
    assert cleaned.left_out == {
        "zero-size box": 1,
        "absurd box": 1,
        "unknown picture": 1,
        "unreadable picture": 3,
        "leaked picture": 4,  # with the duplicate, which was in it
    }
    content = json.loads((tmp_path / "clean" / "annotations" / "instances_train.json").read_text())
    clipped = next(entry for entry in content["annotations"] if entry["id"] == 1)
    assert clipped["bbox"] == [50, 5, 14, 9]
    assert clipped["area"] == 14 * 9


def test_every_box_is_kept_or_left_out(toy: Toy) -> None:
    plant(toy)
    toy.write()
    cleaned = clean(check(toy.root))
    written = len(toy.train["annotations"]) + len(toy.val["annotations"])
    assert cleaned.kept + sum(cleaned.left_out.values()) == written


def test_duplicates_are_kept_once(toy: Toy) -> None:
    first = toy.train["annotations"][0]
    toy.train["annotations"] += [{**first, "id": 900 + number} for number in range(3)]
    cleaned = clean(toy.check())
    assert cleaned.left_out == {"duplicate box": 3}


def test_a_doubted_format_is_read_in_the_other_way(toy: Toy) -> None:
    meant = [annotation["bbox"] for annotation in toy.train["annotations"]]
    for annotation in toy.train["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    cleaned = clean(toy.check())
    np.testing.assert_allclose(cleaned.splits["train"].xywh, meant, atol=1e-9)
    assert cleaned.mended == {"wrong box format": 12}


def test_guessing_is_refused(toy: Toy) -> None:
    for annotation in toy.train["annotations"] + toy.val["annotations"]:
        annotation["category_id"] += 1
    with pytest.raises(InputError, match=r"class 3 is not in 1\.\.2, and no box has 1: .* correct that first"):
        clean(toy.check())


def test_nothing_sound_is_left(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(InputError, match="nothing sound is left"):
        write_cleaned(check(tmp_path), tmp_path / "clean")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_as_pillow_turns_the_picture(orientation: int) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[10:17, 30:50] = 255
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture)) > 0
    rows, columns = np.flatnonzero(upright.any(axis=1)), np.flatnonzero(upright.any(axis=0))
    found = [columns[0], rows[0], len(columns), len(rows)]
    turned = turn_boxes(np.array([[30.0, 10.0, 20.0, 7.0]]), (WIDTH, HEIGHT), orientation)
    assert turned.tolist() == [found]
