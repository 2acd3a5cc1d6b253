"""`detrove export`: a detector as a file for other programs, proven on real pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.progress import told
from detrove.cli.tables import format_table
from detrove.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from detrove.data import DetectionDataset
    from detrove.export.exporting import Exported
    from detrove.export.gate import ExportRefused, Pictures
    from detrove.structures import LabelMap

FORMAT_OF_SUFFIX = {".onnx": "onnx", ".xml": "openvino"}
CALIBRATION_PICTURES = 128


def export_weights(
    weights: Path,
    /,
    *,
    output: Path,
    format: str | None = None,
    data: str | None = None,
    split: str = "val",
    data_format: str | None = None,
    pictures: int = 200,
    margin: float | None = None,
    precision: str = "float32",
    size: int | None = None,
    batch: int = 1,
    postprocess: bool = True,
    model: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Write an ONNX or OpenVINO file, proven first.

    The file is read back and looks at real pictures beside the model. Their detections must agree, and on labelled
    pictures average precision must not fall; otherwise the export is refused, with the worst pictures and the stage
    where the two part. What passes is used like any other weights: predict, eval, bench and serve take it.

    Parameters
    ----------
    weights
        A run folder, a .safetensors file that detrove saved, an official checkpoint, a Hugging Face folder, or the
        name of a published file or hub model (downloaded).
    output
        The file to write: NAME.onnx, or NAME.xml for OpenVINO, whose weights stand beside it in NAME.bin.
    format
        onnx or openvino. By default what the output's name says.
    data
        A labelled data set to compare on, or pictures: a file, a folder or a pattern. By default the validation
        pictures of the run that the weights belong to. int8 needs a labelled one.
    split
        The part of the data set to compare on.
    data_format
        The format of the data, where its folder holds several: coco, voc, yolo or csv.
    pictures
        Compare on at most so many of them, evenly chosen; 0: on all.
    margin
        By how much average precision may fall, 0 to 1. By default 0.001 in float32, 0.005 in float16, else 0.01.
    precision
        float32, float16, bfloat16 (OpenVINO, on a CPU that has it), or int8, which takes its ranges from the data set's
        training pictures.
    size
        Fix the file to square pictures of so many pixels. By default any size is taken.
    batch
        With a fixed size, how many pictures it takes at once.
    postprocess
        Whether the file gives detections in pixels, or logits and boxes.
    model
        The catalogue's name of the detector, where its file alone cannot tell.
    as_json
        Print the proof as JSON.
    """
    format = format or _format_of(output)
    _check(pictures, margin)
    from detrove.export.exporting import Form, export
    from detrove.export.gate import ExportRefused
    from detrove.inference import load

    form = Form(format, precision, postprocess, size, batch)
    detector = load(weights, model)
    compared, labelled = _pictures(weights, data, split, data_format, pictures, detector.label_map)
    calibration = _calibration(labelled, data, data_format) if precision == "int8" else ()
    print(f"comparing on {len(compared)} pictures", file=sys.stderr)
    try:
        with told("comparing", len(compared)) as tell:
            exported = export(detector, output, form, compared, calibration, margin, tell)
    except ExportRefused as refusal:
        print(_worst_table(refusal), file=sys.stderr)
        raise
    print(json.dumps(_as_json(exported), indent=1) if as_json else _report(exported))


def _format_of(output: Path) -> str:
    if output.suffix.lower() not in FORMAT_OF_SUFFIX:
        raise InputError(f"{output}: name it NAME.onnx, or NAME.xml for OpenVINO")
    return FORMAT_OF_SUFFIX[output.suffix.lower()]


def _check(pictures: int, margin: float | None) -> None:
    if pictures < 0:
        raise InputError(f"--pictures must be at least 0, got {pictures}")
    if margin is not None and not 0 <= margin <= 1:
        raise InputError(f"--margin must lie between 0 and 1, got {margin:g}")


def _pictures(
    weights: Path, data: str | None, split: str, format: str | None, most: int, label_map: LabelMap
) -> tuple[Pictures, DetectionDataset | None]:
    """What to compare on, and the data set where it is one."""
    from detrove.data import open_dataset

    if data is None:
        dataset = _of_the_run(weights)
    elif _is_plain(data):
        return _plain_pictures(data, most), None
    else:
        dataset = open_dataset(data, split, format)
    return _labelled_pictures(dataset, most, label_map), dataset


def _of_the_run(weights: Path) -> DetectionDataset:
    """The validation pictures of the run whose folder, or whose best weights, these are."""
    from detrove.training.config import TrainingConfig
    from detrove.training.held_out import open_splits

    config = (weights if weights.is_dir() else weights.parent) / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{weights}: tells of no pictures to compare the file on; name a data set or pictures with --data"
        )
    trained = TrainingConfig.from_yaml(config)
    try:
        return open_splits(trained)[1]
    except InputError as error:
        raise InputError(f"{config}: the run's pictures cannot be opened ({error}); name others with --data") from None


def _is_plain(data: str) -> bool:
    """Whether these are pictures without labels: one file, a pattern, or a folder that is no data set."""
    from detrove.data import find_splits
    from detrove.pictures import PICTURE_SUFFIXES

    path = Path(data)
    if path.is_dir():
        has_pictures = any(entry.suffix.lower() in PICTURE_SUFFIXES for entry in path.iterdir())
        try:
            return has_pictures and not find_splits(path)
        except InputError:
            return has_pictures
    return path.suffix.lower() in PICTURE_SUFFIXES or not path.exists()


def _plain_pictures(data: str, most: int) -> Pictures:
    from detrove.export.gate import Pictures
    from detrove.inference.sources import expand
    from detrove.pictures import read_picture

    paths = [Path(path) for path in expand(data) or [data]]
    if not paths[0].is_file():
        raise InputError(f"{data}: no such data set, folder or picture to compare on")
    paths = [paths[index] for index in _evenly(len(paths), most)]
    return Pictures([path.name for path in paths], lambda index: read_picture(paths[index]))


def _labelled_pictures(dataset: DetectionDataset, most: int, label_map: LabelMap) -> Pictures:
    """As many of the data set as asked for. Labels count only where one of its classes is one of the detector's."""
    from detrove.evaluation import categories_of_slots
    from detrove.export.gate import Pictures

    chosen = dataset.subset(_evenly(len(dataset), most))
    truth = chosen.ground_truth()
    categories_of_slots(label_map, truth["categories"])
    return Pictures(
        [record.path.name for record in chosen.records],
        lambda index: chosen[index].image,
        [record.image_id for record in chosen.records],
        truth,
    )


def _evenly(count: int, most: int) -> list[int]:
    """At most so many positions, spread over all; 0: all."""
    if not most or count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _calibration(dataset: DetectionDataset | None, data: str | None, format: str | None) -> Sequence[Image.Image]:
    """Pictures to take int8's ranges from: of the training split, where there is one, so that others judge it."""
    from detrove.data import find_splits, open_dataset

    if dataset is None or data is None:
        raise InputError(
            "--precision int8 takes its ranges from your own pictures: name a labelled data set with --data"
        )
    if "train" in find_splits(data, format):
        dataset = open_dataset(data, "train", format)
    return _Read(dataset, _evenly(len(dataset), CALIBRATION_PICTURES))


@dataclass(frozen=True)
class _Read(Sequence["Image.Image"]):
    """Some pictures of a data set, each decoded when it is asked for."""

    dataset: DetectionDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        return self.dataset[self.indices[place]].image


def _as_json(exported: Exported) -> dict[str, Any]:
    proof = exported.proof
    return {
        "written": str(exported.path),
        "bytes": exported.bytes,
        "pictures": proof.pictures,
        "pictures_left_out": proof.unsteady,
        "detections_compared": proof.detections,
        "detections_alike": proof.alike,
        "largest_box_difference": proof.box,
        "largest_score_difference": proof.score,
        "ap_model": None if proof.ap is None else proof.ap[0],
        "ap_file": None if proof.ap is None else proof.ap[1],
        "margin": exported.margin,
        "latency_fixed": None if exported.latency is None else exported.latency[0],
        "latency_free": None if exported.latency is None else exported.latency[1],
    }


def _report(exported: Exported) -> str:
    """What was compared, for people."""
    proof = exported.proof
    left_out = f", {proof.unsteady} left out, where rounding decides the model's own answer" if proof.unsteady else ""
    lines = {
        "written": f"{exported.path} ({exported.bytes / 1e6:.1f} MB)",
        "compared on": f"{proof.pictures} pictures{left_out}",
        "alike": f"{proof.alike} of {proof.detections} detections of both, above a score of 0.05",
        "largest apart": f"boxes {proof.box:.2g} of the picture's longer side, scores {proof.score:.2g}",
    }
    if proof.ap is not None:
        before, after = proof.ap
        lines["AP"] = f"{before:.4f} model, {after:.4f} file (it may fall by {exported.margin:g})"
    if exported.latency is not None:
        fixed, free = (1e3 * seconds for seconds in exported.latency)
        lines["fixed size"] = f"{fixed:.1f} ms a batch, {free:.1f} ms in a file of free size ({free / fixed:.2f}×)"
    return format_table(["", ""], [[name, text] for name, text in lines.items()]).lstrip("\n")


def _worst_table(refusal: ExportRefused) -> str:
    """The pictures on which file and model are furthest apart."""
    rows = [
        [name, f"{one.alike} of {one.compared}", f"{one.box:.2g}", f"{one.score:.2g}"] for name, one in refusal.worst
    ]
    if not rows:
        return str(refusal.why)
    return format_table(["worst pictures", "detections alike", "boxes apart", "scores apart"], rows)
