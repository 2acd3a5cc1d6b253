"""`detrove predict`: everything asked for is written, and nothing is lost to one bad picture."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrove.checkpoints import save
from detrove.data import open_dataset
from detrove.inference import load
from detrove.tiling import Tiling


def test_a_table_of_counts(detrove_command: Callable, weights: Path, photos: Path) -> None:
    answer = detrove_command("predict", weights, photos)
    assert (answer.status, answer.err) == (0, "")
    header, *rows = answer.out.splitlines()
    assert header.split()[0] == "picture"
    assert {*header.split()[1:]} <= {"cell", "debris"}
    assert [row.split()[0] for row in rows] == [str(photos / name) for name in ("a.jpg", "b.png", "c.jpg")] + ["total"]
    assert sum(int(number) for number in rows[-1].split()[1:]) == 18


def test_json_holds_every_detection(detrove_command: Callable, weights: Path, photos: Path) -> None:
    answer = detrove_command("predict", weights, photos / "a.jpg", "--json", "--threshold", 0)
    content = json.loads(answer.out)
    [picture] = content["pictures"]
    assert (picture["width"], picture["height"]) == (60, 40)
    assert len(picture["detections"]) == 6 == sum(picture["counts"].values())
    for detection in picture["detections"]:
        x1, y1, x2, y2 = detection["box_xyxy"]
        assert 0 <= x1 <= x2 <= 60
        assert 0 <= y1 <= y2 <= 40
    assert content["unreadable"] == []


def test_everything_that_can_be_saved(detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "found"
    everything = "pictures,coco,csv,coco-labels,yolo"
    answer = detrove_command("predict", weights, photos, "--output", output, "--save", everything)
    assert (answer.status, answer.err) == (0, "")
    assert f"written to {output}" in answer.out
    assert sorted(path.name for path in (output / "pictures").iterdir()) == ["a.jpg", "b.png", "c.jpg"]
    assert len(json.loads((output / "coco-results.json").read_text())) == 18
    with (output / "counts.csv").open() as file:
        assert [row["total"] for row in csv.DictReader(file)] == ["6", "6", "6"]
    for kind in ("coco-labels", "yolo"):
        dataset = open_dataset(output / kind, split="train")
        assert len(dataset) == 3
        assert dataset.label_map.names == ["cell", "debris"]


def test_only_what_was_asked_for(detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path) -> None:
    detrove_command("predict", weights, photos, "--output", tmp_path / "found", "--save", "csv")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["counts.csv"]


def test_the_same_picture_named_twice_is_done_once(detrove_command: Callable, weights: Path, photos: Path) -> None:
    answer = detrove_command("predict", weights, photos / "a.jpg", photos / "*.jpg", "--json")
    assert [Path(picture["path"]).name for picture in json.loads(answer.out)["pictures"]] == ["a.jpg", "c.jpg"]


def test_nothing_found(detrove_command: Callable, weights: Path, photos: Path) -> None:
    answer = detrove_command("predict", weights, photos / "a.jpg", "--threshold", 1)
    assert answer.status == 0
    assert "nothing found" in answer.out


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_bad_picture_is_named_and_the_rest_is_done(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path, batch_size: int
) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:300])
    (photos / "d.jpg").write_text("no picture")
    output = tmp_path / "found"
    answer = detrove_command("predict", weights, photos, "--output", output, "--batch-size", batch_size)
    assert answer.status == 2
    [line] = answer.err.splitlines()
    assert line.startswith("detrove: error: 2 of 4 pictures could not be read, the others are done: ")
    assert str(photos / "b.png") in line
    assert str(photos / "d.jpg") in line
    assert sorted(path.name for path in (output / "pictures").iterdir()) == ["a.jpg", "c.jpg"]
    assert str(photos / "c.jpg") in answer.out


def test_an_output_that_holds_something_is_never_touched(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "found"
    output.mkdir()
    assert detrove_command("predict", weights, photos, "--output", output).status == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    answer = detrove_command("predict", weights, photos, "--output", output)
    assert answer.status == 2
    assert answer.err.startswith(f"detrove: error: {output}: exists already")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "pictures,yollo"], "did you mean yolo?"),
        (["--threshold", "1.5"], "between 0 and 1"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
    ],
)
def test_bad_options(detrove_command: Callable, weights: Path, photos: Path, options: list[str], message: str) -> None:
    answer = detrove_command("predict", weights, photos, *options)
    assert answer.status == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1


def test_two_pictures_with_one_label_file(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    answer = detrove_command("predict", weights, photos, "--output", tmp_path / "found", "--save", "yolo")
    assert answer.status == 2
    assert "share its YOLO label file" in answer.err
    assert not (tmp_path / "found").exists()


def test_large_pictures_in_tiles(detrove_command: Callable, weights: Path, photos: Path) -> None:
    whole = json.loads(detrove_command("predict", weights, photos / "a.jpg", "--json").out)["pictures"][0]
    answer = detrove_command("predict", weights, photos / "a.jpg", "--tiles", 32, "--tile-overlap", 0.25, "--json")
    assert answer.status == 0
    assert answer.err == "looking at tiles of 32 pixels that overlap by 25%, and the whole picture\n"
    tiled = json.loads(answer.out)["pictures"][0]
    assert len(tiled["detections"]) > len(whole["detections"])
    same = detrove_command("predict", weights, photos / "a.jpg", "--tiles", 60, "--json")
    assert json.loads(same.out)["pictures"][0] == whole


def test_a_detector_trained_on_tiles_says_that_it_looks_at_them(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path
) -> None:
    detector = load(weights)
    detector.tiling = Tiling(32)
    save(detector, tmp_path / "tiled.safetensors")
    answer = detrove_command("predict", tmp_path / "tiled.safetensors", photos / "a.jpg")
    assert "tiles of 32 pixels" in answer.err
    assert "--tiles 0" in answer.err
    assert detrove_command("predict", tmp_path / "tiled.safetensors", photos / "a.jpg", "--tiles", 0).err == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tiles", 5], "at least 16"),
        (["--tiles", 64, "--tile-overlap", 1], "0 to 0.8"),
        (["--tile-overlap", 0], "--tiles"),
    ],
)
def test_tiles_that_cannot_be(
    detrove_command: Callable, weights: Path, photos: Path, options: list, words: str
) -> None:
    answer = detrove_command("predict", weights, photos, *options)
    assert answer.status == 2
    [line] = answer.err.splitlines()
    assert words in line


def test_a_video_is_drawn_and_told(detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "walk.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in (0, 120, 240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), "rgb24")))
        container.mux(stream.encode())
    output = tmp_path / "found"
    answer = detrove_command("predict", weights, tmp_path / "walk.avi", photos / "a.jpg", "--output", output)
    assert answer.status == 0
    assert "a.jpg" in answer.out
    assert re.search(r"walk.avi +3 +5 ", answer.out)
    assert len(json.loads((output / "videos" / "walk.json").read_text())["frames"]) == 3
    assert (output / "videos" / "walk.mp4").stat().st_size > 500
    (tmp_path / "walk.mkv").write_bytes((tmp_path / "walk.avi").read_bytes())
    both = tmp_path / "both"
    detrove_command("predict", weights, tmp_path / "walk.avi", tmp_path / "walk.mkv", "--output", both)
    assert {path.name for path in (both / "videos").iterdir()} == {
        "walk.avi.json",
        "walk.avi.mp4",
        "walk.mkv.json",
        "walk.mkv.mp4",
    }
    alone = json.loads(detrove_command("predict", weights, tmp_path / "walk.avi", "--json").out)
    assert alone["pictures"] == []
    assert alone["videos"][0]["frames"] == 3


def test_originals_are_never_drawn_over(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources above the present folder: what is drawn stays below the output."""
    here = tmp_path / "project" / "scripts"
    here.mkdir(parents=True)
    (photos / "b.png").rename(here / "b.png")
    before = (photos / "a.jpg").read_bytes()
    monkeypatch.chdir(here)
    found = tmp_path / "found"
    assert detrove_command("predict", weights, "b.png", "../../photos/a.jpg", "--output", found).status == 0
    assert (photos / "a.jpg").read_bytes() == before
    drawn = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert {"pictures/photos/a.jpg", "pictures/project/scripts/b.png"} <= drawn


def test_hidden_files_are_no_pictures(detrove_command: Callable, weights: Path, photos: Path) -> None:
    (photos / "._a.jpg").write_bytes(b"\0\5\x16\7")
    assert detrove_command("predict", weights, photos).status == 0


def test_names_that_are_no_text(detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (photos / "a.jpg").rename(photos / name)
    except OSError:
        pytest.skip("this file system takes names of text alone")
    answer = detrove_command("predict", weights, photos, "--output", tmp_path / "found", "--save", "coco,csv")
    assert answer.status == 0
    assert "caf\\udce9.jpg" in answer.out
    results = json.loads((tmp_path / "found" / "coco-results.json").read_text(encoding="utf-8"))
    assert name in {entry["file_name"] for entry in results}
    assert (tmp_path / "found" / "counts.csv").exists()
