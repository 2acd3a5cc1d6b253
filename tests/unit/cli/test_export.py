"""`detrove export`: what it writes and prints, what other verbs make of its files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrove.export import exporting, gate
from detrove.export.agreement import SetAgreement
from detrove.export.diagnosis import Difference
from detrove.training.config import TrainingConfig

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A CSV data set of the detector's classes, with a split to train on and one to validate on."""
    folder = tmp_path / "set"
    generator = np.random.default_rng(1)
    for split, count in (("train", 2), ("val", 3)):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
                folder / split / f"{split}{index}.jpg"
            )
            images.append({"id": index + 1, "file_name": f"{split}{index}.jpg", "width": 60, "height": 40})
            box = {"bbox": [10, 5, 30, 30], "area": 900, "iscrowd": 0, "category_id": 3 + 2 * (index % 2)}
            annotations.append({"id": index + 1, "image_id": index + 1, **box})
        categories = [{"id": 3, "name": "cell"}, {"id": 5, "name": "debris"}]
        file = folder / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


@pytest.mark.slow
def test_a_file_is_proven_and_then_taken_like_any_weights(
    detrove_command: Callable, weights: Path, photos: Path, labelled: Path, tmp_path: Path
) -> None:
    output = tmp_path / "toy.onnx"
    answer = detrove_command("export", weights, "--output", output, "--data", labelled)
    assert answer.status == 0, answer.err
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert lines["written"].startswith(f"{output} (")
    assert lines["compared"].split() == ["on", "3", "pictures"]
    assert "detections of both, above a score of 0.05" in answer.out
    assert lines["AP"].endswith("file (it may fall by 0.001)")
    assert max(map(len, answer.out.splitlines())) <= 120

    expected = json.loads(detrove_command("predict", weights, photos, "--threshold", "0", "--json").out)
    found = json.loads(detrove_command("predict", output, photos, "--threshold", "0", "--json").out)
    for one, other in zip(expected["pictures"], found["pictures"], strict=True):
        assert one["counts"] == other["counts"]
        for a, b in zip(one["detections"], other["detections"], strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
            assert a["box_xyxy"] == pytest.approx(b["box_xyxy"], abs=1e-2)

    answer = detrove_command("eval", output, labelled, "--json")
    assert json.loads(answer.out)["ap"] == pytest.approx(
        json.loads(detrove_command("eval", weights, labelled, "--json").out)["ap"], abs=1e-6
    )
    bench = json.loads(detrove_command("bench", output, "--seconds", "0.05", "--json").out)
    assert (bench["engine"], bench["precision"], bench["model"]) == ("onnxruntime", "float32", "detr-nano")
    assert bench["parameters"] > 1e6
    assert list(bench["stages"]) == ["decode", "preprocess", "model", "postprocess"]

    again = detrove_command("export", weights, "--output", output, "--data", labelled)
    assert again.status == 2
    assert "exists already" in again.err
    for arguments in (
        ("convert", output, tmp_path / "a.safetensors"),
        ("predict", output, photos, "--engine", "torch"),
    ):
        answer = detrove_command(*arguments)
        assert answer.status == 2
        assert len(answer.err.splitlines()) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Nothing is written; what `export` was asked for is noted, and a proof comes back."""
    asked: list[dict] = []

    def note(detector, path, form, pictures, calibration=(), margin=None, progress=int):
        names = list(pictures.names)
        sizes = [pictures.read(index).size for index in range(len(pictures))]
        asked.append({"form": form, "names": names, "sizes": sizes, "calibration": len(calibration), "margin": margin})
        proof = gate.Proof(len(pictures), 1, 40, 39, 1e-4, 2e-5, (0.5, 0.4991))
        return exporting.Exported(path, 2_500_000, proof, 0.001, (0.01, 0.02))

    monkeypatch.setattr(exporting, "export", note)
    return asked


def test_pictures_without_labels(detrove_command: Callable, weights: Path, photos: Path, quick: list, tmp_path: Path):
    for data, names in (
        (photos, ["a.jpg", "b.png", "c.jpg"]),
        (photos / "a.jpg", ["a.jpg"]),
        (photos / "*.jpg", ["a.jpg", "c.jpg"]),
    ):
        answer = detrove_command("export", weights, "--output", tmp_path / "a.onnx", "--data", data)
        assert answer.status == 0, answer.err
        assert quick[-1]["names"] == names
    assert quick[0]["sizes"] == [(60, 40), (32, 64), (50, 50)]


def test_what_is_printed(detrove_command: Callable, weights: Path, photos: Path, quick: list, tmp_path: Path) -> None:
    arguments = (
        "export",
        weights,
        "--output",
        tmp_path / "a.xml",
        "--data",
        photos,
        "--size",
        "64",
        "--no-postprocess",
    )
    answer = detrove_command(*arguments)
    assert quick[-1]["form"] == exporting.Form("openvino", "float32", postprocess=False, size=64)
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == [
        f"written {tmp_path / 'a.xml'} (2.5 MB)",
        "compared on 3 pictures, 1 left out, where rounding decides the model's own answer",
        "alike 39 of 40 detections of both, above a score of 0.05",
        "largest apart boxes 0.0001 of the picture's longer side, scores 2e-05",
        "AP 0.5000 model, 0.4991 file (it may fall by 0.001)",
        "fixed size 10.0 ms a batch, 20.0 ms in a file of free size (2.00×)",
    ]
    proof = json.loads(detrove_command(*arguments, "--json").out)
    assert proof["detections_alike"] == 39
    assert proof["ap_file"] == 0.4991
    assert proof["latency_fixed"] == 0.01


def test_a_data_set_its_splits_and_how_many(
    detrove_command: Callable, weights: Path, labelled: Path, quick: list, tmp_path: Path
) -> None:
    arguments = ("export", weights, "--output", tmp_path / "a.onnx", "--data", labelled)
    detrove_command(*arguments, "--precision", "int8", "--margin", "0.02")
    assert quick[-1]["names"] == ["val0.jpg", "val1.jpg", "val2.jpg"]
    assert (quick[-1]["calibration"], quick[-1]["margin"]) == (2, 0.02)
    detrove_command(*arguments, "--split", "train")
    assert quick[-1]["names"] == ["train0.jpg", "train1.jpg"]
    assert quick[-1]["calibration"] == 0
    detrove_command(*arguments, "--pictures", "2")
    assert quick[-1]["names"] == ["val0.jpg", "val1.jpg"]


def test_the_pictures_of_the_run(
    detrove_command: Callable, weights: Path, labelled: Path, quick: list, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(weights.read_bytes())
    config = TrainingConfig(data=str(labelled), output=str(run), model="detr-nano", epochs=1)
    (run / "config.yaml").write_text(config.to_yaml())
    for named in (run, run / "best.safetensors"):
        assert detrove_command("export", named, "--output", tmp_path / "a.onnx").status == 0
        assert quick[-1]["names"] == ["val0.jpg", "val1.jpg", "val2.jpg"]
    labelled.rename(tmp_path / "moved")
    answer = detrove_command("export", run, "--output", tmp_path / "a.onnx")
    assert answer.status == 2
    assert "the run's pictures cannot be opened" in answer.err
    assert "name others with --data" in answer.err


def test_a_refusal_shows_the_worst_pictures(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(detector, path, *_):
        worst = [("a.jpg", SetAgreement(12, 3, 0.31, 0.25)), ("b.png", SetAgreement(9, 9, 1e-5, 2e-6))]
        raise gate.ExportRefused(path, "9 of 21 have no counterpart", worst, Difference("trunk", "values apart"))

    monkeypatch.setattr(exporting, "export", refuse)
    answer = detrove_command("export", weights, "--output", tmp_path / "a.onnx", "--data", photos)
    assert answer.status == 2
    assert answer.out == ""
    *_, header, first, second, last = answer.err.splitlines()
    assert header.split("  ")[0] == "worst pictures"
    assert first.split() == ["a.jpg", "3", "of", "12", "0.31", "0.25"]
    assert second.split()[0] == "b.png"
    assert last == (
        "detrove: error: a.onnx: the export is refused and not kept: 9 of 21 have no counterpart; first difference in "
        "the stage trunk: values apart"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "tells of no pictures to compare the file on; name a data set or pictures with --data"),
        (("--output", "a.pt"), "a.pt: name it NAME.onnx, or NAME.xml for OpenVINO"),
        (("--format", "onxx"), "unknown format 'onxx': did you mean onnx"),
        (("--precision", "float61"), "unknown precision 'float61': did you mean float16"),
        (("--precision", "int8", "--data", "PHOTOS"), "int8 takes its ranges from your own pictures: name a labelled"),
        (("--margin", "2", "--data", "PHOTOS"), "--margin must lie between 0 and 1, got 2"),
        (("--pictures", "-1", "--data", "PHOTOS"), "--pictures must be at least 0, got -1"),
        (("--size", "0", "--data", "PHOTOS"), "size must be at least 1, got 0"),
        (("--data", "nowhere"), "nowhere: no such data set, folder or picture to compare on"),
        (("--data", "none*.jpg"), "no file matches this pattern"),
    ],
)
def test_bad_options(
    detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    arguments = tuple(str(photos) if each == "PHOTOS" else each for each in arguments)
    if "--output" not in arguments:
        arguments = (*arguments, "--output", str(tmp_path / "a.onnx"))
    answer = detrove_command("export", weights, *arguments)
    assert answer.status == 2
    assert message in answer.err
    assert not (tmp_path / "a.onnx").exists()
