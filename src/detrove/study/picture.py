"""`study_picture`: one detector, one picture, one query and one cell, with everything recorded that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy
from detrove.errors import InputError
from detrove.inference import Detector
from detrove.inference.sources import read_source
from detrove.structures import ImageBatch
from detrove.study.layers import QueryPath, queries_by_score, query_path, query_scores
from detrove.study.record import Place, Recording, place_of, record, refuse_engine

SHOWN_QUERIES = 8
"""At most so many detections are shown beside the query that is studied."""


@dataclass(frozen=True)
class Study:
    """What `study_picture` looked at, and the recording of it.

    `picture` upright RGB; `query` the query that is followed; `pixel` x, y in the picture, whose cell is followed
    through the encoder; `encoder` and `cross`, `decoder_self` the names of the recorded blocks that are shown (the
    encoder's may be several, one per stack); `head` the one that is shown by itself, or None for the mean of all.
    """

    detector: Detector
    picture: Image.Image
    seen: Recording
    query: int
    pixel: tuple[float, float]
    encoders: list[str]
    cross: str
    decoder_self: str
    head: int | None

    @property
    def config(self) -> Any:
        """The detector's config."""
        return self.detector.model.config

    @property
    def place(self) -> tuple[float, float]:
        """The pixel as x, y in [0, 1]."""
        return self.pixel[0] / self.picture.width, self.pixel[1] / self.picture.height

    @property
    def path(self) -> QueryPath:
        """The query through the decoder's layers."""
        return query_path(self.seen, self.query, self.config.scores)

    def last_boxes(self) -> Tensor:
        """The last layer's boxes (Q, 4) xyxy in pixels of the picture."""
        width, height = self.picture.size
        return cxcywh_to_xyxy(self.seen.boxes()[-1, 0].float()) * torch.tensor([width, height, width, height])

    def answers(self, queries: Sequence[int]) -> list[dict[str, Any]]:
        """What these queries say at last: query, name of the class, score, box xyxy in pixels."""
        best, labels = query_scores(self.seen.finished(), self.config.scores)
        names, boxes = self.detector.label_map.names, self.last_boxes()
        return [
            {
                "query": query,
                "name": names[int(labels[-1, 0, query])],
                "score": float(best[-1, 0, query]),
                "box": [round(value, 1) for value in boxes[query].tolist()],
            }
            for query in queries
        ]

    def shown_queries(self) -> list[int]:
        """The query that is studied, then the surest of the others that would be shown as detections."""
        best, labels = query_scores(self.seen.finished(), self.config.scores)
        thresholds = self.detector.thresholds
        least = 0.5 if thresholds is None else thresholds[labels[-1, 0]]
        reach = best[-1, 0] >= least
        others = [q for q in queries_by_score(self.seen, self.config.scores) if reach[q] and q != self.query]
        return [self.query, *others[: SHOWN_QUERIES - 1]]


def study_picture(
    detector: Detector,
    picture: Any,
    *,
    layer: int = -1,
    head: int | None = None,
    query: int | None = None,
    pixel: tuple[float, float] | None = None,
) -> Study:
    """Let a detector look at one picture and record it.

    `picture` is anything that `Detector.predict` takes as one picture; it is seen as a whole, never in tiles. `layer`
    counts from 0, or from the end; a part that has fewer layers shows its last. `head` is shown by itself, by default
    the mean of all. `query` is by default the surest; `pixel` (x, y) by default the middle of its box. Raises
    `InputError` for what the detector or the picture does not have, with what there is.
    """
    refuse_engine(detector)
    given = read_source(picture)
    config: Any = detector.model.config
    blocks = [name for name, _ in detector.model.named_modules() if name.endswith("_attention")]
    encoders = _encoders(blocks, layer)
    cross = _layer_of(blocks, "decoder", "cross", layer)
    decoder_self = cross.replace("cross_attention", "self_attention")
    decoders = {name.rpartition("decoder.")[0] + "decoder" for name in blocks if place_of(name).part == "decoder"}
    with record(detector, only=[*encoders, *decoders]) as seen:
        _look(detector, given)
    if query is None:
        query = queries_by_score(seen, config.scores)[0]
    _check(seen.boxes().shape[2], query, "query", "queries")
    width, height = given.size
    if pixel is None:
        x, y = seen.boxes()[-1, 0, query, :2].clamp(0, 1).tolist()
        pixel = min(x * width, width - 1), min(y * height, height - 1)
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise InputError(f"pixel {pixel[0]:g},{pixel[1]:g} lies outside the picture of {width}×{height} pixels")
    if head is not None:
        _check(_num_heads(seen, cross), head, "head", "heads")
    return Study(detector, given, seen, query, pixel, encoders, cross, decoder_self, head)


def _look(detector: Detector, picture: Image.Image) -> None:
    """One picture as a whole through the model, in evaluation mode, on its device and in its type."""
    parameter = next(detector.model.parameters())
    images = ImageBatch.from_images([detector.preprocessing(picture)])
    was_training = detector.model.training
    detector.model.eval()
    try:
        with torch.no_grad():
            detector.model(images.to(device=parameter.device, dtype=parameter.dtype))
    finally:
        detector.model.train(was_training)


def _encoders(blocks: Sequence[str], layer: int) -> list[str]:
    """The block of the asked layer, and in Stacked DETR the last one of every other stack before it."""
    chosen = _layer_of(blocks, "encoder", "self", layer)
    last: dict[int | None, str] = {}
    for name in blocks:
        place = place_of(name)
        if place.part == "encoder":
            last[place.stack] = name
    return [*(name for stack, name in last.items() if stack != place_of(chosen).stack), chosen]


def _layer_of(blocks: Sequence[str], part: str, kind: str, layer: int) -> str:
    """The block of that layer, the last one where there are fewer; none of the detector's parts has more than asked."""
    places: dict[str, Place] = {name: place_of(name) for name in blocks}
    names = [name for name, place in places.items() if (place.part, place.kind) == (part, kind)]
    most = max(
        sum(place.part == other for place in places.values() if place.kind == "self")
        for other in ("encoder", "decoder")
    )
    if not -most <= layer < most:
        raise InputError(f"layer {layer}: this detector has layers 0 to {most - 1} (-1 is the last)")
    return names[min(layer, len(names) - 1)] if layer >= 0 else names[max(layer, -len(names))]


def _num_heads(seen: Recording, name: str) -> int:
    return seen.dense[name].query.shape[1] if name in seen.dense else seen.sampled[name].weights.shape[2]


def _check(count: int, value: int, what: str, several: str) -> None:
    if not 0 <= value < count:
        raise InputError(f"{what} {value}: this detector has {several} 0 to {count - 1}")


def parse_pixel(text: str) -> tuple[float, float]:
    """ "120,80" as x, y.

    >>> parse_pixel("120,80")
    (120.0, 80.0)
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"pixel {text!r}: give x,y in pixels of the picture, such as 120,80") from None
    if not np.isfinite([x, y]).all():
        raise InputError(f"pixel {text!r}: give x,y in pixels of the picture, such as 120,80")
    return x, y


def title_of(picture: Any) -> str:
    """What to call the picture: its file's name, or "a picture"."""
    return Path(picture).name if isinstance(picture, (str, Path)) else "a picture"
