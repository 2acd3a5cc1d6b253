"""`export`: files of every form answer as the model, tell what they are, and load like any other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import detrove
from detrove.errors import InputError
from detrove.export import exporting
from detrove.export.exporting import Form, export
from detrove.inference import Detector
from detrove.inference.exported import KEY, FileFacts, load_exported
from detrove.nn.recording import recording
from detrove.structures import ImageBatch
from detrove.tiling import Tiling

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

FORMS = [
    {"format": "onnx"},
    {"format": "onnx", "postprocess": False},
    {"format": "openvino"},
    {"format": "openvino", "postprocess": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_file_is_a_detector_like_any_other(detector, images, exported: Callable[..., Path], form) -> None:
    loaded = detrove.load(exported(**form))
    assert loaded.label_map == detector.label_map
    assert loaded.preprocessing == detector.preprocessing
    assert loaded.name == detector.name
    assert torch.equal(loaded.thresholds, detector.thresholds)
    for one, other in zip(detector.predict(images, 0.0), loaded.predict(images, 0.0), strict=True):
        assert len(one) == len(other) == 28
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-3)
        assert torch.equal(one.labels, other.labels)
    shown = detector.predict(images[0])
    assert 0 < len(shown) < 28
    assert loaded.predict(images[0]).names == shown.names


@pytest.mark.slow
def test_fixed_sizes_take_any_batch_and_pad(detector, images, pictures, tmp_path) -> None:
    made = export(detector, tmp_path / "fixed.onnx", Form(size=64, batch=2), pictures)
    assert list(tmp_path.iterdir()) == [made.path]
    assert made.bytes == made.path.stat().st_size
    assert made.latency is not None
    assert min(made.latency) > 0
    loaded = load_exported(made.path)
    assert loaded.preprocessing.longer == 64
    assert loaded.engine.shape == (2, 64, 64)
    padded = ImageBatch.from_images([loaded.preprocessing(picture) for picture in images] + [torch.zeros(3, 64, 64)])
    with torch.no_grad():
        wanted = detector.model.eval()(padded)
    three = ImageBatch(padded.pixels[:3], padded.padding_mask[:3], padded.sizes[:3])
    answer = loaded.engine(three)
    assert answer.logits.shape == (1, 3, 28, 5)
    best = wanted.logits[-1, :3].sigmoid().flatten(1).sort(descending=True).values
    torch.testing.assert_close(answer.logits[0].softmax(-1)[..., :-1].amax(-1), best, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="come at 65×1 pixels, but the file is fixed to 64×64"):
        loaded.engine(ImageBatch.from_images([torch.zeros(3, 1, 65)]))


@pytest.mark.slow
@pytest.mark.parametrize("form", [{"format": "onnx"}, {"format": "openvino"}], ids=str)
def test_float16_is_smaller_and_int8_computes_in_int8(exported: Callable[..., Path], form) -> None:
    pytest.importorskip("nncf")
    whole, half, quantised = (exported(**form, precision=name) for name in ("float32", "float16", "int8"))

    def size(path: Path) -> int:
        return (path.with_suffix(".bin") if form["format"] == "openvino" else path).stat().st_size

    assert size(half) < 0.75 * size(whole)
    assert [load_exported(path).engine.precision for path in (whole, half, quantised)] == ["float32", "float16", "int8"]
    steps = quantised.read_bytes()
    assert (b"QuantizeLinear" if form["format"] == "onnx" else b'type="FakeQuantize"') in steps


def test_metadata_survives_being_written(detector) -> None:
    facts = FileFacts.of(detector, "float16", postprocess=True)
    again = FileFacts.from_text(facts.to_text(), Path("a.onnx"))
    assert again.to_text() == facts.to_text()
    assert again.label_map.names[1] == "Zelle »a«"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a.onnx: was not written by detrove export"),
        ("{", "a.onnx: its metadata is damaged"),
        (json.dumps({"format_version": 1}), "a.onnx: its metadata is damaged"),
        (json.dumps({"format_version": 9}), "format version 9 is newer than this detrove reads"),
    ],
)
def test_metadata_of_others(text, message) -> None:
    with pytest.raises(InputError, match=message):
        FileFacts.from_text(text, Path("a.onnx"))


@pytest.mark.slow
def test_what_an_exported_file_cannot_do(exported: Callable[..., Path], pictures, images, tmp_path) -> None:
    path = exported(format="onnx")
    loaded = detrove.load(path)
    with pytest.raises(InputError, match="leave out the model 'detr-nano'"):
        detrove.load(path, model="detr-nano")
    with pytest.raises(InputError, match="weights cannot be saved"):
        detrove.save(loaded, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="computes as it was exported"):
        detrove.optimize(loaded)
    with pytest.raises(InputError, match="is exported already"):
        export(loaded, tmp_path / "again.onnx", Form(), pictures)
    with recording(loaded.model), pytest.raises(InputError, match="hands over no attention"):
        loaded.predict(images[0])


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_files_that_cannot_be_read_are_named(tmp_path, suffix) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(InputError, match=f"a{suffix}: no such file"):
        detrove.load(path)
    path.write_bytes(b"<net>" if suffix == ".xml" else b"\x08\x07 and nothing more")
    with pytest.raises(InputError, match=f"a{suffix}: .* cannot read it"):
        detrove.load(path)


@pytest.mark.slow
def test_another_programs_file_is_told_apart(file) -> None:
    with pytest.raises(InputError, match=r"toy\.onnx: was not written by detrove export"):
        detrove.load(file)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"format": "onxx"}, "unknown format 'onxx': did you mean onnx"),
        ({"precision": "int4"}, "unknown precision 'int4': did you mean int8"),
        ({"precision": "bfloat16"}, "next to nothing in bfloat16"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"batch": 2}, "a batch is fixed together with a size"),
    ],
)
def test_forms_that_cannot_be(form, message) -> None:
    with pytest.raises(InputError, match=message):
        Form(**form)


def test_what_is_known_beforehand_is_said_beforehand(detector, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exporting, "_write", lambda *_: pytest.fail("went on"))
    (tmp_path / "taken.onnx").touch()
    (tmp_path / "taken.bin").touch()
    cases = {
        "a.xml: the name of a file in the format onnx ends in .onnx": (tmp_path / "a.xml", Form()),
        "taken.onnx: exists already": (tmp_path / "taken.onnx", Form()),
        "taken.bin: exists already": (tmp_path / "taken.xml", Form("openvino")),
        "nowhere: no such folder": (tmp_path / "nowhere" / "a.onnx", Form()),
        "int8 takes its ranges from your own pictures": (tmp_path / "a.onnx", Form(precision="int8")),
    }
    for message, (path, form) in cases.items():
        with pytest.raises(InputError, match=message):
            export(detector, path, form, pictures)


def test_a_refused_file_leaves_nothing_behind(detector, pictures, tmp_path, monkeypatch) -> None:
    def refuse(detector, path, *_, **__):
        assert path.name == "a.onnx"
        raise InputError("not the same")

    monkeypatch.setattr(exporting, "_write", lambda detector, path, *_: path.write_text("half a file"))
    monkeypatch.setattr(exporting, "prove", refuse)
    with pytest.raises(InputError, match="not the same"):
        export(detector, tmp_path / "a.onnx", Form(), pictures)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_metadata_is_where_other_programs_look(exported: Callable[..., Path]) -> None:
    onnx = pytest.importorskip("onnx")
    openvino = pytest.importorskip("openvino")
    props = {entry.key: entry.value for entry in onnx.load(exported(format="onnx")).metadata_props}
    assert list(props) == [KEY]
    model = openvino.Core().read_model(exported(format="openvino"))
    for text in (props[KEY], model.get_rt_info(KEY).astype(str)):
        facts = json.loads(text)
        assert facts["labels"][1] == {"id": 3, "name": "Zelle »a«"}
        assert facts["preprocessing"]["longer"] == 96
        assert facts["config"]["detector"] == "deformable"


def test_ranges_are_taken_from_what_the_detector_looks_at(detector) -> None:
    """Tiles of a large picture, not the picture made small; and no picture is kept."""
    pictures = [Image.new("RGB", (200, 100)) for _ in range(6)]
    form = Form(precision="int8")
    shapes = {batch["pixels"].shape for batch in exporting._calibration_batches(detector, form, pictures)}
    assert len(shapes) == 1
    tiled = Detector(detector.model, detector.preprocessing, detector.label_map, tiling=Tiling(64))
    of_tiles = [batch["pixels"].shape[2:] for batch in exporting._calibration_batches(tiled, form, pictures)]
    assert len(of_tiles) == 6
    squares = [shape for shape in of_tiles if shape[0] == shape[1]]
    assert len(squares) >= 5
