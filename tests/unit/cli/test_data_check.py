"""`detrove data check` on a toy data set: what it prints, writes, and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO set of two pictures; the second box of the first has no width."""
    root = tmp_path / "data set"
    (root / "train").mkdir(parents=True)
    images, annotations = [], []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
        for place in range(2):
            box = [3 + 15 * place, 4, 0 if number == 0 and place else 12, 20]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nut"}]}
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content, indent=1))
    return root


def test_faults_are_the_users_to_mend(detrove_command: Callable[..., Any], data: Path) -> None:
    answer = detrove_command("data", "check", data)
    assert answer.status == 2
    assert "Faults: 1" in answer.out
    assert "annotation 1 is 0 x 20 pixels" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100
    [line] = [line for line in answer.err.splitlines() if "error" in line]
    assert line.startswith(f"detrove: error: faults in {data}: zero-size box (1 box); --fix OUT")


def test_a_cleaned_copy_is_done_and_sound(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    answer = detrove_command("data", "check", data, "--fix", tmp_path / "clean")
    assert answer.status == 0
    assert "3 boxes kept (0 of them mended), 1 left out" in answer.err
    again = detrove_command("data", "check", tmp_path / "clean")
    assert again.status == 0
    assert "Faults: none" in again.out


def test_json_is_json_and_nothing_else(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    answer = detrove_command("data", "check", data, "--json", "--fix", tmp_path / "clean")
    values = json.loads(answer.out)
    assert [fault["kind"] for fault in values["faults"]] == ["zero-size box"]
    assert values["fix"]["boxes_left_out"] == {"zero-size box": 1}


def test_the_page_draws_what_is_at_fault(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "check.html"
    assert detrove_command("data", "check", data, "--output", page).status == 2
    text = page.read_text()
    assert "Zero-size box: 1 box" in text
    assert text.count("<img ") >= 1
    assert "data set" in text


def test_model_and_size_decide_what_fits(detrove_command: Callable[..., Any], data: Path) -> None:
    large = json.loads(detrove_command("data", "check", data, "--json", "--model", "detr-r50").out)
    tiny = json.loads(detrove_command("data", "check", data, "--json", "--size", 16).out)
    assert "small objects" not in [remark["kind"] for remark in large["remarks"]]
    assert "small objects" in [remark["kind"] for remark in tiny["remarks"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "detr-r5"], "did you mean detr-r50"),
        (["--format", "cocoa"], "did you mean coco"),
        (["--size", "0"], "picture size must be positive"),
        (["--fix", "."], "exists already"),
        (["--output", "."], "exists already"),
    ],
)
def test_bad_options(detrove_command: Callable[..., Any], data: Path, options: list[str], message: str) -> None:
    answer = detrove_command("data", "check", data, *options)
    assert answer.status == 2
    assert answer.out == ""
    assert message in answer.err


def test_no_data_set(detrove_command: Callable[..., Any], tmp_path: Path) -> None:
    answer = detrove_command("data", "check", tmp_path)
    assert answer.status == 2
    assert "no annotations found" in answer.err
