"""The gate: what is the model passes; what is not is refused with the right reason."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detrove.errors import InputError
from detrove.export import gate
from detrove.export.agreement import Tolerance
from detrove.export.gate import ExportRefused, Pictures, prove
from detrove.inference import Detector
from detrove.inference.engines.files import FileEngine
from detrove.inference.exported import KEY
from detrove.structures import ImageBatch, LabelMap

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Computed(FileEngine):
    """The model in a file's place, whose logits are changed."""

    name = "onnxruntime"

    def __init__(self, detector, change=lambda logits: logits, precision="float32") -> None:
        self.detector, self.change, self.precision = detector, change, precision

    input_names = ("pixels", "padding_mask")

    def compute(self, inputs):
        pixels, padding_mask = (torch.from_numpy(inputs[name]) for name in self.input_names)
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
        with torch.no_grad():
            answer = self.detector.model.eval()(ImageBatch(pixels, padding_mask, sizes))
        return {"logits": self.change(answer.logits[-1]), "boxes": answer.boxes[-1]}


@pytest.fixture
def instead(detector, monkeypatch) -> Callable[..., None]:
    """Let the gate read this in the place of a file; where stages part is not looked for."""

    def put(change=lambda logits: logits, precision="float32", **facts) -> None:
        values = {"preprocessing": detector.preprocessing, "label_map": detector.label_map} | facts
        thresholds = values.pop("thresholds", detector.thresholds)
        loaded = Detector(detector.model, thresholds=thresholds, engine=Computed(detector, change, precision), **values)
        monkeypatch.setattr(gate, "load_exported", lambda path: loaded)
        monkeypatch.setattr(gate, "first_difference", lambda *_: None)

    return put


PATH = Path("a.onnx")


def labelled(detector: Detector, pictures: Pictures) -> Pictures:
    """What the detector says is the truth."""
    found = detector.detect([pictures.read(index) for index in range(len(pictures))])
    boxes = [
        entry | {"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
        for index, detections in enumerate(found)
        for entry in detections.select(torch.arange(5)).to_coco(index)
    ]
    truth = {
        "images": [{"id": index} for index in range(len(pictures))],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, start=1)],
        "categories": [entry for entry in detector.label_map.to_json() if entry],
    }
    return dataclasses.replace(pictures, image_ids=range(len(pictures)), ground_truth=truth)


def test_what_is_the_same_passes_with_what_was_compared(detector, pictures, instead) -> None:
    instead()
    told: list[int] = []
    proof = prove(detector, PATH, labelled(detector, pictures), batch_size=2, progress=told.append)
    assert told == [2, 3]
    assert (proof.pictures, proof.unsteady) == (3, 0)
    assert proof.detections == proof.alike > 20
    assert proof.box < 1e-6
    assert proof.score < 1e-6
    assert proof.ap is not None
    assert proof.ap[0] == proof.ap[1] > 0


def test_a_small_difference_is_refused_in_float32_and_allowed_in_int8(detector, pictures, instead) -> None:
    instead(lambda logits: logits + 0.1)
    with pytest.raises(
        ExportRefused, match=r"detections have no counterpart within 0\.001 .* on 3 of 3 pictures"
    ) as caught:
        prove(detector, PATH, pictures)
    names = [name for name, _ in caught.value.worst]
    assert sorted(names) == ["a.jpg", "b.jpg", "c.jpg"]
    assert all(0.001 < one.score < 0.03 and one.box < 1e-4 for _, one in caught.value.worst)
    instead(lambda logits: logits + 0.1, precision="int8")
    assert prove(detector, PATH, pictures).score == pytest.approx(0.025, abs=0.01)


def test_average_precision_may_not_fall_by_more_than_the_margin(detector, pictures, instead, monkeypatch) -> None:
    """The best come last: detections that int8 might be allowed, and yet worse."""
    monkeypatch.setitem(gate.TOLERANCES, "int8", Tolerance(boxes=1.0, scores=1.0, share=0.0))
    instead(lambda logits: -logits, precision="int8")
    truth = labelled(detector, pictures)
    proof = prove(detector, PATH, truth, margin=1.0)
    assert proof.ap is not None
    before, after = proof.ap
    assert after < before - 0.02
    assert prove(detector, PATH, truth, margin=before - after + 1e-6).ap == (before, after)
    with pytest.raises(ExportRefused, match=f"AP falls from {before:.4f} to {after:.4f}, by more than 0.01"):
        prove(detector, PATH, truth)


def test_int8_is_not_judged_by_labels_without_an_object(detector, pictures, instead) -> None:
    truth = labelled(detector, pictures)
    assert truth.ground_truth is not None
    empty = dataclasses.replace(truth, ground_truth={**truth.ground_truth, "annotations": []})
    instead(precision="int8")
    with pytest.raises(InputError, match=r"int8 is judged by .* the 3 pictures hold no labelled object"):
        prove(detector, PATH, empty)
    instead(precision="float32")
    assert prove(detector, PATH, empty).ap is None


def test_an_empty_comparison_is_no_proof(detector, pictures, instead, monkeypatch) -> None:
    instead()
    with pytest.raises(InputError, match="no pictures to compare"):
        prove(detector, PATH, dataclasses.replace(pictures, names=[]))
    monkeypatch.setattr(Detector, "with_engine", lambda detector, engine: gate.load_exported(PATH))
    instead(lambda logits: logits - 50)
    with pytest.raises(InputError, match="on 3 pictures neither the model nor the file sees anything with a score"):
        prove(detector, PATH, pictures)


def test_a_file_that_sees_nothing_is_refused(detector, pictures, instead) -> None:
    for silence in (lambda logits: logits - 50, lambda logits: logits * float("nan")):
        instead(silence)
        with pytest.raises(ExportRefused, match="have no counterpart"):
            prove(detector, PATH, pictures)


def test_pictures_where_the_model_disagrees_with_itself_are_left_out_but_few(detector, pictures, instead) -> None:
    """A chosen query that hangs on the last bit: where the file chooses otherwise, so may the model."""
    calls: list[int] = []

    def once(logits):
        calls.append(0)
        return logits + 0.1 * (len(calls) == 1)

    instead(once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate._Comparison, "_unsteady", lambda self, indices, *_: set(indices))
        proof = prove(detector, PATH, pictures, batch_size=1)
        assert (proof.pictures, proof.unsteady) == (3, 1)
        instead(lambda logits: logits + 0.1)
        with pytest.raises(ExportRefused, match="on 3 of 3 pictures it finds something else"):
            prove(detector, PATH, pictures)
    calls.clear()
    instead(once)  # this model is steady
    with pytest.raises(ExportRefused, match="have no counterpart"):
        prove(detector, PATH, pictures, batch_size=1)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"label_map": LabelMap.numbered(4)}, "its classes are not the model's"),
        ({"thresholds": None}, "its score thresholds are not the model's"),
        ({"thresholds": torch.tensor([0.2, 0.3, 0.4, 0.6])}, "its score thresholds are not the model's"),
    ],
)
def test_what_a_file_says_of_itself_must_be_true(detector, pictures, instead, facts, message) -> None:
    instead(**facts)
    with pytest.raises(ExportRefused, match=message):
        prove(detector, PATH, pictures)


# ---- wrong exports, planted ------------------------------------------------------------------------------------------


def doctored(path: Path, folder: Path, change: Callable) -> Path:
    """A copy of an exported file that was changed after it was written."""
    model = onnx.load(path)
    change(model)
    copied = folder / "wrong.onnx"
    onnx.save(model, copied)
    return copied


def swap_channels(model) -> None:
    """What happens where a program hands pictures over as blue, green, red."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(each for each in model.graph.initializer if each.name == first.input[1])
    values = onnx.numpy_helper.to_array(weight)[:, ::-1].copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def set_preprocessing(**values) -> Callable:
    def change(model) -> None:
        facts = json.loads(model.metadata_props[0].value)
        facts["preprocessing"].update(values)
        onnx.helper.set_model_props(model, {KEY: json.dumps(facts)})

    return change


def scale_boxes(model) -> None:
    """Other boxes at the very end."""
    for node in model.graph.node:
        if "boxes" in node.output:
            node.output[list(node.output).index("boxes")] = "boxes.right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(torch.tensor(0.97).numpy(), "wrong"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["boxes.right", "wrong"], ["boxes"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        (swap_channels, "trunk", "it takes the picture's channels in the reverse order (blue, green, red)"),
        (
            set_preprocessing(longer=64),
            "preprocess",
            "pictures are resized to 64×43 pixels, for the model to 96×64",
        ),
        (
            set_preprocessing(resize_filter="nearest"),
            "preprocess",
            "its resize_filter is nearest, the model's bilinear",
        ),
        (
            set_preprocessing(mean=[0.406, 0.456, 0.485]),
            "preprocess",
            "its mean is (0.406, 0.456, 0.485), the model's (0.485, 0.456, 0.406) (channels in the reverse order)",
        ),
        (scale_boxes, "heads", "values 0.03 of their size apart"),
    ],
    ids=["channels", "size", "filter", "mean", "heads"],
)
def test_a_wrong_file_is_refused_with_its_reason(
    detector, images, exported, tmp_path, change: Callable, stage: str, reason: str
) -> None:
    wrong = doctored(exported(format="onnx", postprocess=False), tmp_path, change)
    with pytest.raises(ExportRefused) as caught:
        prove(detector, wrong, Pictures(["a.jpg"], images.__getitem__))
    assert caught.value.difference.stage == stage
    assert reason in caught.value.difference.reason
    assert str(caught.value).startswith("wrong.onnx: the export is refused and not kept: ")
    assert str(caught.value).count("\n") == 0
    [(name, worst)] = caught.value.worst
    assert name == "a.jpg"
    assert worst.alike < worst.compared


@pytest.mark.slow
def test_other_post_processing_is_told_apart(detector, pictures, exported, tmp_path) -> None:
    wrong = doctored(exported(format="onnx"), tmp_path, scale_boxes)
    with pytest.raises(ExportRefused, match="first difference in the stage postprocess"):
        prove(detector, wrong, pictures)


@pytest.mark.slow
def test_an_overflow_of_float16_is_refused(detector, pictures, exported) -> None:
    """A norm behind a projection takes any scale out again, so float32 does not mind a million.

    On a CPU that computes wider the file sees what it should, and so it does here.
    """
    model = copy.deepcopy(detector.model)
    with torch.no_grad():
        projection = model.levels.projections[0][0]
        projection.weight.mul_(1e6)
        projection.bias.mul_(1e6)
    loud = Detector(model, detector.preprocessing, detector.label_map, detector.thresholds)
    quiet = exported(format="onnx", precision="float16")
    assert prove(detector, quiet, pictures).alike
    with pytest.raises(ExportRefused, match=r"first difference in the stage encoder: values reach .*e\+0.*overflows"):
        prove(loud, quiet, pictures)
