"""The gate: an exported file is handed out only when it finds in real pictures what its model finds.

The file is read back as anybody would read it and looks at the pictures through its own preprocessing, beside the
model. What both find is compared as sets, and where the pictures are labelled, by average precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detrove.errors import InputError
from detrove.evaluation import coco_metrics, coco_results
from detrove.export.agreement import FLOOR, SetAgreement, Tolerance, agreement_of_sets
from detrove.export.diagnosis import Difference, first_difference, overflow
from detrove.inference import Detector
from detrove.inference.engines.files import FileEngine, Shape, fitted
from detrove.inference.exported import load_exported
from detrove.structures import Detections, ImageBatch, Predictions

TOLERANCES = {
    "float32": Tolerance(boxes=1e-3, scores=1e-4, share=1.0),
    "float16": Tolerance(boxes=1e-2, scores=2e-2, share=0.95),
    "bfloat16": Tolerance(boxes=2e-2, scores=5e-2, share=0.85),
    "int8": Tolerance(boxes=5e-2, scores=2e-1, share=0.5),
}
"""What a detection of the file may differ from the model's, by precision. int8 is judged by its average precision."""

MARGINS = {"float32": 0.001, "float16": 0.005, "bfloat16": 0.01, "int8": 0.01}
"""By how much average precision may fall, where nothing else is asked for."""

UNSTEADY_SHARE = 0.1
"""The part of the pictures on which the model may disagree with itself (`_Comparison._unsteady`); one at least may."""

ROUNDING = 1e-5
"""About the size of what other orders of summation change, in normalised pixels."""

WORST_SHOWN = 5
OVERFLOW_PICTURES = 16
"""On so many pictures it is looked whether the model's values fit into float16."""


@dataclass(frozen=True)
class Pictures:
    """Real pictures to compare on: `names` for people, `read` gives each upright in RGB, by its position.

    Where they are labelled, `ground_truth` is theirs as a COCO dict and `image_ids` are in the order of the names.
    """

    names: Sequence[str]
    read: Callable[[int], Image.Image]
    image_ids: Sequence[Any] | None = None
    ground_truth: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far model and file are apart.

    `detections` of both sides were compared, `alike` of them had a counterpart; `box`, in parts of the picture's longer
    side, and `score` are the largest differences. `unsteady` pictures were left out, because the model disagrees there
    with itself. `ap` are the model's and the file's average precision on the labelled pictures, else None.
    """

    pictures: int
    unsteady: int
    detections: int
    alike: int
    box: float
    score: float
    ap: tuple[float, float] | None


class ExportRefused(InputError):
    """The file is not what its model is: `why` in a phrase, the `worst` pictures, where they part first."""

    def __init__(self, path: Path, why: str, worst: Sequence[tuple[str, SetAgreement]], difference: Difference | None):
        place = f"; first difference in the stage {difference.stage}: {difference.reason}" if difference else ""
        super().__init__(f"{path.name}: the export is refused and not kept: {why}{place}")
        self.why, self.worst, self.difference = why, worst, difference


def prove(
    detector: Detector,
    path: Path,
    pictures: Pictures,
    margin: float | None = None,
    batch_size: int = 4,
    progress: Callable[[int], object] = int,  # tells nobody
) -> Proof:
    """Compare the file at `path` with the detector that it was exported from, on real pictures.

    `margin` is how much average precision may fall; None: as `MARGINS` says for the file's precision. `progress` hears
    how many pictures are done. Raises `ExportRefused` where the file is something else, and `InputError` where there is
    nothing to compare.
    """
    if not len(pictures):
        raise InputError("no pictures to compare the exported file on: name a data set or pictures with --data")
    loaded = load_exported(path)
    engine = loaded.engine
    assert isinstance(engine, FileEngine)
    _refuse_other_facts(detector, loaded, path)
    was_training = detector.model.training
    detector.model.eval()
    try:
        _refuse_overflow(detector, engine, path, pictures)
        comparison = _Comparison(detector, loaded, engine, pictures)
        for start in range(0, len(pictures), batch_size):
            comparison.add(range(start, min(start + batch_size, len(pictures))))
            progress(min(start + batch_size, len(pictures)))
        return comparison.judge(path, MARGINS[engine.precision] if margin is None else margin)
    finally:
        detector.model.train(was_training)


class _Comparison:
    """What both find, picture by picture."""

    def __init__(self, detector: Detector, loaded: Detector, engine: FileEngine, pictures: Pictures) -> None:
        self.detector, self.loaded, self.engine, self.pictures = detector, loaded, engine, pictures
        self.tolerance = TOLERANCES[engine.precision]
        self.model = detector.with_engine(_Model(detector, engine.shape))
        self.shaken = detector.with_engine(_Model(detector, engine.shape, ROUNDING))
        self.agreements: dict[int, SetAgreement] = {}
        self.unsteady: set[int] = set()
        self.found: tuple[dict[Any, Detections], dict[Any, Detections]] = {}, {}

    def add(self, indices: Sequence[int]) -> None:
        """Let both look at these pictures, as one batch."""
        images = [self.pictures.read(index) for index in indices]
        wanted, given = self.model.detect(images), self.loaded.detect(images)
        for index, image, one, other in zip(indices, images, wanted, given, strict=True):
            self.agreements[index] = self._compare(one, other, image)
            for found, detections in zip(self.found, (one, other), strict=True):
                found[self._id(index)] = detections
        differ = [index for index in indices if self.agreements[index].alike < self.agreements[index].compared]
        if differ and self.tolerance.share == 1.0:
            self.unsteady |= self._unsteady(indices, images, wanted) & set(differ)

    def _compare(self, one: Detections, other: Detections, image: Image.Image) -> SetAgreement:
        config: Any = self.detector.model.config
        return agreement_of_sets(one, other, max(image.size), self.tolerance, config.num_detections)

    def _unsteady(self, indices: Sequence[int], images: list[Image.Image], wanted: list[Detections]) -> set[int]:
        """Those of a batch's pictures to which the model itself answers otherwise as soon as they change by rounding.

        A two-stage detector chooses among cells; where two score alike, rounding decides which, in a file as well.
        """
        again = [
            self._compare(one, other, image)
            for one, other, image in zip(wanted, self.shaken.detect(images), images, strict=True)
        ]
        return {index for index, one in zip(indices, again, strict=True) if one.alike < one.compared}

    def _id(self, index: int) -> Any:
        return index if self.pictures.image_ids is None else self.pictures.image_ids[index]

    def judge(self, path: Path, margin: float) -> Proof:
        """The proof, or the refusal."""
        steady = {index: one for index, one in self.agreements.items() if index not in self.unsteady}
        compared, alike = (sum(getattr(one, name) for one in steady.values()) for name in ("compared", "alike"))
        may_be_unsteady = max(1, round(UNSTEADY_SHARE * len(self.pictures)))
        if len(self.unsteady) > may_be_unsteady:
            self._refuse(path, f"on {len(self.unsteady)} of {len(self.pictures)} pictures it finds something else")
        if not compared:
            raise InputError(
                f"{path.name}: nothing to compare, so the export is refused: on {len(self.pictures)} pictures neither "
                f"the model nor the file sees anything with a score above {FLOOR:g}; name pictures of its classes with "
                "--data, or train it longer"
            )
        if alike < self.tolerance.share * compared:
            self._refuse(path, self._disagreement(compared, alike))
        if self.detector.preprocessing != self.loaded.preprocessing:
            self._refuse(path, "its preprocessing is not the model's")
        precision = self._average_precision()
        is_int8 = self.loaded.engine is not None and self.loaded.engine.precision == "int8"
        if is_int8 and precision is None and self.pictures.ground_truth is not None:
            raise InputError(
                f"{path.name}: int8 is judged by average precision, so the export is refused: the {len(self.pictures)} "
                "pictures hold no labelled object of its classes; name others with --data and --split, or more with "
                "--pictures"
            )
        if precision is not None and not precision[1] >= precision[0] - margin:
            before, after = precision
            self._refuse(path, f"AP falls from {before:.4f} to {after:.4f}, by more than {margin:g}")
        return Proof(
            len(self.pictures),
            len(self.unsteady),
            compared,
            alike,
            max(one.box for one in steady.values()),
            max(one.score for one in steady.values()),
            precision,
        )

    def _disagreement(self, compared: int, alike: int) -> str:
        allowed = self.tolerance
        others = sum(one.alike < one.compared for one in self.agreements.values())
        return (
            f"{compared - alike} of {compared} detections have no counterpart within {allowed.boxes:g} of the "
            f"picture's longer side and {allowed.scores:g} of score, on {others} of {len(self.pictures)} pictures "
            f"({allowed.share:.0%} must have one)"
        )

    def _average_precision(self) -> tuple[float, float] | None:
        truth = self.pictures.ground_truth
        if truth is None:
            return None
        one, other = (coco_metrics(truth, coco_results(found, truth)).ap for found in self.found)
        return None if one is None or other is None else (one, other)

    def _refuse(self, path: Path, why: str) -> None:
        order = sorted(self.agreements, key=lambda index: _badness(self.agreements[index]), reverse=True)
        worst = [(self.pictures.names[index], self.agreements[index]) for index in order[:WORST_SHOWN]]
        difference = first_difference(self.detector, self.loaded, path, self.pictures.read(order[0]))
        raise ExportRefused(path, why, worst, difference)


def _badness(one: SetAgreement) -> tuple[float, float]:
    """The part of a picture's detections without a counterpart, then the largest difference."""
    return 1 - one.alike / max(one.compared, 1), max(one.box, one.score)


class _Model:
    """The model's own answers to batches as a file gets them: padded to its fixed shape, if it has one.

    `noise` is added to every pixel of the pictures.
    """

    name, precision = "model", "float32"

    def __init__(self, detector: Detector, shape: Shape | None, noise: float = 0.0) -> None:
        self.model, self.shape, self.noise = detector.model, shape, noise

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> Predictions:
        if self.noise:
            random = torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(0))
            shaken = images.pixels + self.noise * random
            images = ImageBatch(
                shaken.masked_fill(images.padding_mask[:, None], 0.0), images.padding_mask, images.sizes
            )
        count = len(images)
        parameter = next(self.model.parameters())
        answers = [
            self.model(part.to(device=parameter.device, dtype=parameter.dtype))
            for part in ([images] if self.shape is None else fitted(images, self.shape))
        ]
        logits, boxes = (torch.cat([getattr(one, name) for one in answers], dim=1) for name in ("logits", "boxes"))
        return Predictions(logits[:, :count], boxes[:, :count])


def _refuse_other_facts(detector: Detector, loaded: Detector, path: Path) -> None:
    """What a file says of itself must be what the detector says; preprocessing is judged by what comes of it."""
    if loaded.label_map != detector.label_map:
        raise ExportRefused(path, "its classes are not the model's", [], None)
    one, other = detector.thresholds, loaded.thresholds
    if (one is None) != (other is None) or (one is not None and other is not None and not torch.allclose(one, other)):
        raise ExportRefused(path, "its score thresholds are not the model's", [], None)
    if loaded.tiling != detector.tiling:
        raise ExportRefused(path, "it does not look at large pictures as the model does", [], None)


def _refuse_overflow(detector: Detector, engine: FileEngine, path: Path, pictures: Pictures) -> None:
    """float16 is made for machines that compute in it; on a CPU it may be computed wider, and overflows be missed."""
    if engine.precision != "float16":
        return
    for index in range(min(len(pictures), OVERFLOW_PICTURES)):
        images = ImageBatch.from_images([detector.preprocessing(pictures.read(index))])
        difference = overflow(detector, images)
        if difference is not None:
            worst = [(pictures.names[index], SetAgreement(0, 0, 0.0, 0.0))]
            raise ExportRefused(path, "the model's values do not fit into float16", worst, difference)
