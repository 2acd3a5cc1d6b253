"""What every query of a detector does over a whole data set: whom it answers for, layer by layer, and where it lives.

A query that is meant for one kind of place and size answers in every picture for what is there. Three things are told:
how far the layers agree about which query answers for which object (DN-DETR, Li et al. 2022, §3.2, asks this of
epochs), how many queries answer for the same object, and which places and sizes each query says (Carion et al. 2020,
figure 7).
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrove.boxes import cxcywh_to_xyxy
from detrove.checkpoints.files import write_atomically
from detrove.data import DetectionDataset
from detrove.data.batching import evaluation_batch
from detrove.data.dataset import evenly_spaced
from detrove.errors import InputError
from detrove.evaluation.matching import BoxTable
from detrove.evaluation.matching import match as match_boxes
from detrove.evaluation.queries import (
    as_many_as_objects,
    changed_share,
    duplicates_per_object,
    layer_changes,
    of_all_pictures,
    queries_of_objects,
)
from detrove.inference import Detector
from detrove.losses import match
from detrove.models.catalogue import criterion_for
from detrove.structures import ImageBatch, LabelMap, Predictions, Targets
from detrove.study.record import refuse_engine

PICTURES = 200
"""Pictures looked at unless somebody asks for more: shares are then known to a few hundredths."""
PLACES = ("query_positions", "queries", "anchors")
LEARNED = (*PLACES, "contents", "patterns")
"""What a query has learned, its place first, by the names that the family's files give it."""

SMALL_AREA = 32 * 32 / (640 * 480)
"""The share of a picture below which a box is called small: COCO's 32×32 pixels in its usual 640×480."""


@dataclass(frozen=True, eq=False)
class QueryStudy:
    """What Q queries did in N pictures with O objects, in each of L decoder layers.

    `boxes` (N, Q, 4) cxcywh in [0, 1] of the picture and `scores` (N, Q), the best class's, are the last layer's.
    `answers` (L, O) is the query that training's matching assigns to an object, -1 where there are more objects than
    queries. `found` (L, O) says whether the object is found, `duplicates` (L, O) by how many queries too many; each
    picture shows as many answers as it has objects, the surest ones (`evaluation.queries`). `pictures` (O,) says in
    which picture an object is, `image_ids` (N,) which these are, `objects` (O, 4) the true boxes, cxcywh. `placed` says
    whether queries have learned where to look (`have_places`); else a query's number means nothing beyond its picture.
    """

    boxes: np.ndarray
    scores: np.ndarray
    answers: np.ndarray
    found: np.ndarray
    duplicates: np.ndarray
    pictures: np.ndarray
    objects: np.ndarray
    image_ids: np.ndarray
    placed: bool = True

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.boxes.shape[1]

    def changed(self) -> list[float | None]:
        """For each layer but the first, the share of objects that change their query on the way into it."""
        return layer_changes(torch.from_numpy(self.answers))

    def found_share(self) -> list[float | None]:
        """For each layer, the share of objects that it finds; None without objects."""
        return [float(found.mean()) if len(found) else None for found in self.found]

    def duplicate_rates(self) -> list[float | None]:
        """For each layer, duplicates for each object that it finds; None where it finds none."""
        counts = self.found.sum(axis=1).tolist()
        return [
            float(spare.sum() / count) if count else None for spare, count in zip(self.duplicates, counts, strict=True)
        ]

    def uses(self) -> np.ndarray:
        """(Q,) how many objects each query answers for in the last layer."""
        last = self.answers[-1]
        return np.bincount(last[last >= 0], minlength=self.num_queries)

    def used_half(self) -> float:
        """The share of queries that answer for half of the objects: 0.5 where all are used alike; nan without any."""
        uses = np.sort(self.uses())[::-1]
        if not uses.sum():
            return float("nan")
        return float(np.searchsorted(np.cumsum(uses), uses.sum() / 2) + 1) / len(uses)

    def home(self) -> np.ndarray:
        """(Q,) how far a query's boxes lie from their mean centre: root mean square, in widths and heights of pictures.

        Small where a query has a place of its own; 0.41 is what boxes anywhere would give. A single picture gives 0.
        """
        centres = self.boxes[..., :2]
        away = np.square(centres - centres.mean(axis=0)).sum(axis=-1).sum(axis=0)
        return np.sqrt(away / max(1, len(centres) - 1))

    def save(self, path: Path) -> None:
        """As numpy's .npz."""
        file = io.BytesIO()
        np.savez_compressed(file, **vars(self))
        write_atomically(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> QueryStudy:
        """The inverse of `save`; nothing is unpickled. `InputError` where the file is no such study."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values: dict[str, Any] = {entry.name: arrays[entry.name] for entry in dataclasses.fields(cls)}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: no study of queries of this version ({error}); make it anew") from None
        return cls(**{**values, "placed": bool(values["placed"])})


def changed_between(first: QueryStudy, second: QueryStudy) -> list[float | None]:
    """For each layer, the share of objects whose query differs between two states of a detector, as two epochs'.

    Both must have looked at the same pictures.
    """
    if first.answers.shape != second.answers.shape or not np.array_equal(first.objects, second.objects):
        raise InputError("two studies of queries can be compared where pictures and number of layers are the same")
    pairs = zip(torch.from_numpy(first.answers), torch.from_numpy(second.answers), strict=True)
    return [changed_share(before, after) for before, after in pairs]


def learned_queries(model: nn.Module) -> list[str]:
    """The names of the parameters that are the queries; none where the encoder proposes all of them."""
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[2] in LEARNED]


def have_places(model: nn.Module) -> bool:
    """Whether the queries have learned where to look, and do not get that from the picture as in DINO."""
    return any(name.rpartition(".")[2] in PLACES for name in learned_queries(model))


def study_queries(
    detector: Detector,
    dataset: DetectionDataset,
    limit: int = PICTURES,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> QueryStudy:
    """What the detector's queries do in the pictures of a data set, or in `limit` of them, evenly chosen.

    Pictures are looked at whole. Classes are joined by name, objects of other classes and crowd regions left out.
    `progress` is called with the pictures done and their total. Raises `InputError` where there is no picture, or no
    class that both know.
    """
    refuse_engine(detector)
    if not len(dataset):
        raise InputError(f"{dataset.path}: split {dataset.split} has no pictures")
    indices = evenly_spaced(len(dataset), limit)
    slots = _slots(dataset.label_map, detector.label_map)
    if not (slots >= 0).any():
        known, asked = (", ".join(filter(None, one.label_map.names)) for one in (detector, dataset))
        raise InputError(f"{dataset.path}: of its classes ({asked}) the detector knows none ({known})")
    parts: list[_Part] = []
    for start in range(0, len(indices), batch_size):
        samples = (dataset[index] for index in indices[start : start + batch_size])
        images, targets = evaluation_batch(samples, detector.preprocessing)
        parts.append(_look(detector, images, [_known(objects, slots) for objects in targets]))
        if progress is not None:
            progress(start + len(targets), len(indices))
    boxes = of_all_pictures([part.boxes for part in parts])
    scores = of_all_pictures([part.scores for part in parts], blank=-1.0)
    classes = of_all_pictures([part.classes for part in parts])
    targets = [target for part in parts for target in part.targets]
    found, duplicates = found_and_duplicates(boxes, scores, classes, targets)
    counts = [len(target) for target in targets]
    return QueryStudy(
        boxes=boxes[-1].numpy(),
        scores=scores[-1].numpy(),
        answers=torch.cat([part.answers for part in parts], dim=1).numpy(),
        found=found,
        duplicates=duplicates,
        pictures=np.repeat(np.arange(len(counts)), counts),
        objects=torch.cat([target.boxes for target in targets]).numpy(),
        image_ids=np.array([str(dataset.records[index].image_id) for index in indices]),
        placed=have_places(detector.model),
    )


@dataclass(frozen=True)
class _Part:
    """A batch's answers: `boxes` (L, B, Q, 4), the best class's `scores` and `classes` (L, B, Q), `answers` (L, O)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    answers: Tensor
    targets: list[Targets]


def _slots(of_data: LabelMap, of_detector: LabelMap) -> Tensor:
    """The detector's class slot for each of the data set's, -1 where it does not know the class."""
    slots = [of_detector.slot_of_name(name) if name else None for name in of_data.names]
    return torch.tensor([-1 if slot is None else slot for slot in slots], dtype=torch.int64)


def _known(targets: Targets, slots: Tensor) -> Targets:
    """The objects of classes that the detector knows, with its labels."""
    targets = dataclasses.replace(targets, labels=slots[targets.labels])
    return targets.select(targets.labels >= 0)


@torch.inference_mode()
def _look(detector: Detector, images: ImageBatch, targets: list[Targets]) -> _Part:
    model: Any = detector.model.eval()
    parameter = next(model.parameters())
    predictions: Predictions = model(images.to(device=parameter.device, dtype=parameter.dtype))
    logits, boxes = predictions.logits.float().cpu(), predictions.boxes.float().cpu()
    all_scores = logits.sigmoid() if model.config.scores == "sigmoid" else logits.softmax(dim=-1)[..., :-1]
    scores, classes = all_scores.max(dim=-1)
    matches = match(logits, boxes, targets, criterion_for(model).cost)
    answers = queries_of_objects(matches, sum(len(target) for target in targets))
    return _Part(boxes, scores, classes, answers, targets)


def found_and_duplicates(
    boxes: Tensor, scores: Tensor, classes: Tensor, targets: Sequence[Targets]
) -> tuple[np.ndarray, np.ndarray]:
    """(L, O) whether each object is found, and (L, O) by how many queries too many.

    `boxes` (L, N, Q, 4) cxcywh, `scores` and `classes` (L, N, Q) of every query's best class; below 0 there is none.
    """
    counts = [len(target) for target in targets]
    truth = _table(
        np.repeat(np.arange(len(counts)), counts),
        torch.cat([target.labels for target in targets]),
        torch.cat([target.boxes for target in targets]),
        torch.ones(sum(counts)),
    )
    pictures = np.repeat(np.arange(len(counts)), boxes.shape[2])
    found = np.zeros((len(boxes), len(truth)), dtype=bool)
    duplicates = np.zeros((len(boxes), len(truth)), dtype=np.int64)
    for layer in range(len(boxes)):
        said = _table(pictures, classes[layer].flatten(), boxes[layer].flatten(0, 1), scores[layer].flatten())
        said = said.select(np.flatnonzero(said.scores >= 0))
        shown = as_many_as_objects(truth, said)
        hits = match_boxes(truth, shown).truth_of
        found[layer, hits[hits >= 0]] = True
        duplicates[layer] = duplicates_per_object(truth, shown)
    return found, duplicates


def _table(pictures: np.ndarray, classes: Tensor, boxes: Tensor, scores: Tensor) -> BoxTable:
    """Boxes (n, 4) cxcywh as a table; shares of the picture do as well as pixels, IoU is the same."""
    corners = cxcywh_to_xyxy(boxes.double()).numpy()
    return BoxTable(pictures, classes.numpy(), corners, scores.double().numpy(), np.zeros(len(pictures), dtype=bool))


# ---- figures ---------------------------------------------------------------------------------------------------------

SHAPES = (("small", "#0072B2"), ("wide", "#E69F00"), ("tall", "#009E73"))
"""Kinds of boxes and their colours, of Okabe and Ito's."""


def shapes_of(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) cxcywh in [0, 1] to (...): 0 small, 1 wide, 2 tall; in shares of the picture, as the detector sees."""
    width, height = boxes[..., 2], boxes[..., 3]
    return np.where(width * height < SMALL_AREA, 0, np.where(width >= height, 1, 2))


def draw_usage(study: QueryStudy, num_queries: int = 20, columns: int = 5) -> Any:
    """The queries that answer most, one small picture each, as a matplotlib figure: a dot for every box that it says.

    A dot stands at the box's centre, in every picture of the data set; its colour says the box's shape (`SHAPES`), and
    it is stronger where the query is sure of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    uses = study.uses()
    shown = np.argsort(-uses, kind="stable")[: min(num_queries, study.num_queries)]
    rows = -(-len(shown) // columns)
    # As wide as the figures of a study: its letters can be read on a telephone.
    figure = Figure(figsize=(1.04 * columns, 1.2 * rows + 0.3), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    all_axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).flatten()
    colours = np.array([to_rgba(colour) for _, colour in SHAPES])[shapes_of(study.boxes)]  # (N, Q, 4)
    colours[..., 3] = np.clip(study.scores, 0.15, 0.9)
    for axes, query in zip(all_axes, shown.tolist(), strict=False):
        x, y = study.boxes[:, query, :2].T
        axes.scatter(x, y, s=9, c=colours[:, query], linewidths=0)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"query {query}: {uses[query]}", fontsize=8.5, pad=3)
    for axes in all_axes[len(shown) :]:
        axes.set_visible(False)
    dots = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in SHAPES]
    figure.legend(handles=dots, loc="outside lower left", ncols=len(SHAPES), frameon=False, fontsize=9)
    return figure
