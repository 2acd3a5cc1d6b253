"""Near-duplicates are found through what exports do to pictures, and pictures of one kind are not taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detrove.data.similar import frames_in_sequence, near_duplicates, thumbnails


def test_a_picture_saved_again(shared: Path, tmp_path: Path) -> None:
    originals = sorted((shared / "data" / "coco-mini" / "val2017").glob("*.jpg"))[:12]
    copies = []
    for path in originals:
        picture = Image.open(path).convert("RGB")
        changed = {
            "half": picture.resize((picture.width // 2, picture.height // 2)),
            "coarse": picture,
            "bright": ImageEnhance.Brightness(picture).enhance(1.15),
        }
        for name, copy in changed.items():
            copies.append(tmp_path / f"{path.stem}-{name}.jpg")
            copy.save(copies[-1], quality=30 if name == "coarse" else 90)
    pairs = near_duplicates(thumbnails([*originals, *copies]))
    found = {copy - len(originals) for original, copy in pairs if original < len(originals)}
    assert all(b < len(originals) or (b - len(originals)) // 3 == (a if a < 12 else (a - 12) // 3) for a, b in pairs)
    assert len(found) == len(copies)


def test_pictures_of_one_kind_are_not_the_same(shared: Path) -> None:
    paths = sorted((shared / "data" / "bccd" / "JPEGImages").glob("*.jpg"))[:150]
    thumbs = thumbnails(paths)
    assert near_duplicates(thumbs) == []
    [(first, second)] = frames_in_sequence(paths, thumbs)  # these two overlap: the slide was moved a little
    assert (paths[first].stem, paths[second].stem) == ("BloodImage_00037", "BloodImage_00038")


def test_blank_and_broken_pictures_are_like_no_other(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "white").save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    assert near_duplicates(thumbnails([tmp_path / name for name in ("a.png", "b.png", "c.png", "gone.png")])) == []


def test_many_equal_pictures_make_a_chain() -> None:
    thumbs = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8), 40, axis=0)
    assert {later for _, later in near_duplicates(thumbs)} == set(range(1, 40))


@pytest.mark.slow
def test_frames_of_a_video_that_moves(shared: Path, tmp_path: Path) -> None:
    """A window that wanders over a picture: neighbours look alike, the first and the last do not."""
    picture = Image.open(sorted((shared / "data" / "coco-mini" / "val2017").glob("*.jpg"))[3]).convert("RGB")
    picture = picture.resize((1280, 480))
    paths = []
    for number in range(0, 640, 8):
        paths.append(tmp_path / f"clip_{number // 8}.png")
        picture.crop((number, 0, number + 480, 480)).save(paths[-1])
    paths.append(tmp_path / "other.png")
    picture.save(paths[-1])
    assert frames_in_sequence(paths, thumbnails(paths)) == [(i, i + 1) for i in range(79)]
