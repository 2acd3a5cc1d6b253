from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detrove.cli.main import run
from detrove.data.scenes import make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder / "data", {"train": 3, "val": 2})
    return folder / "data"


def test_it_writes_a_sheet(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    assert run(["data", "show", str(scenes), "--output", str(output), "--count", "2", "--size", "160"]) == 0
    assert "2 of 3 pictures of split train" in capsys.readouterr().out
    with Image.open(output) as sheet:
        assert sheet.width > 300
    assert run(["data", "show", str(scenes), "--output", str(output), "--split", "val", "--no-augment"]) == 0
    assert "2 of 2 pictures of split val" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count must be at least 1"),
        (["--output", "sheet.doc"], "--output sheet.doc: name a picture"),
        (["--output", "nowhere/sheet.png"], "there is no folder nowhere"),
        (["--model", "detr-r5O"], "detr-r50"),
        (["--set", "mosaic=2"], "mosaic must be from 0 to 1"),
        (["--split", "tset"], "no split 'tset'"),
    ],
)
def test_bad_input_is_one_line(
    scenes: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "show", str(scenes), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
