"""Why a detector answered a box, and where its layers look, as plain numbers for a page to draw."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrove.boxes import cxcywh_to_xyxy, pairwise_iou_xyxy
from detrove.inference import Detector
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.conditional_attention import ConditionalCrossAttention
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.recording import SampledAttention
from detrove.serving.refusals import Refusal
from detrove.serving.schemas import AttentionOut, BlockOut, Colours, Explained, LayerOut, Maps, Samples
from detrove.structures import ImageBatch
from detrove.study.record import Recording, record

MOST_ROWS = 768
"""Cells of a map whose looks are told; of a larger map, every second, third, … in both directions."""

STRIDES = (4, 8, 16, 32, 64, 128)
"""Pixels from cell to cell: of a trunk's levels, and of coarser ones made from them."""


@dataclass(frozen=True)
class Anatomy:
    """The attention blocks of a detector that can be looked into, in the order in which they run."""

    decoder: list[BlockOut]
    encoder: list[BlockOut]


def anatomy(model: Any) -> Anatomy:
    """Read off the built model; empty for one that is no module, as an exported file's."""
    named = list(model.named_modules()) if isinstance(model, nn.Module) else []
    blocks = [(name, block) for name, block in named if _is_attention(block)]
    return Anatomy(
        decoder=[_describe(name, block) for name, block in blocks if name.endswith(".cross_attention")],
        encoder=[
            _describe(name, block)
            for name, block in blocks
            if name.endswith(".self_attention") and "encoder" in name.split(".")
        ],
    )


def explain(detector: Detector, picture: Image.Image, bbox: Sequence[float] | None, category: int | None) -> Explained:
    """The query behind a box (x, y, width, height in pixels) of a category id, layer by layer.

    Without a box, the surest detection; without a category, whatever the box is. The picture is seen whole.
    """
    blocks = anatomy(detector.model).decoder
    if not blocks:
        raise Refusal(409, "this detector hands over no attention: serve the run folder or .safetensors it came from")
    slots = _slots(detector, category)
    seen = _look(detector, picture, [block.name for block in blocks])
    scores, boxes = _scores(seen.finished().logits[:, 0], detector), seen.boxes()[:, 0]
    query, slot, overlap = _choose(scores[-1], boxes[-1], slots, bbox, picture)
    anchors = _anchors(seen, query, len(blocks))
    layers = [
        LayerOut(
            name=block.name,
            anchor=_to_pixels(anchor, picture),
            bbox=_to_pixels(boxes[index, query].tolist(), picture) or [],
            score=float(scores[index, query, slot]),
            **_sight(seen, block.name, query, picture),
        )
        for index, (block, anchor) in enumerate(zip(blocks, anchors, strict=True))
    ]
    entry = detector.label_map.entries[slot]
    assert entry is not None
    return Explained(
        query=query,
        num_queries=boxes.shape[1],
        category_id=entry.id,
        category=entry.name,
        overlap=overlap,
        layers=layers,
    )


def attention(detector: Detector, picture: Image.Image, layer: int, head: int, level: int) -> AttentionOut:
    """One head of one encoder layer: Q, K, V as colours, and where each cell looks."""
    blocks = anatomy(detector.model).encoder
    if not blocks:
        raise Refusal(409, "this detector has no attention between the cells of a picture that could be shown")
    if layer >= len(blocks):
        raise Refusal(422, f"layer {layer}: this detector has {len(blocks)}, counted from 0")
    block = blocks[layer]
    if head >= block.num_heads:
        raise Refusal(422, f"head {head}: this layer has {block.num_heads}, counted from 0")
    seen = _look(detector, picture, [block.name])
    if block.name in seen.dense:
        return _dense_layer(seen, block.name, head)
    record = seen.sampled[block.name]
    if level >= len(record.shapes):
        raise Refusal(422, f"level {level}: this layer has {len(record.shapes)}, counted from 0")
    return _sampled_layer(block.name, record, head, level)


def _is_attention(block: nn.Module) -> bool:
    return isinstance(block, (MultiHeadAttention, ConditionalCrossAttention, DeformableAttention))


def _describe(name: str, block: Any) -> BlockOut:
    return BlockOut(
        name=name,
        kind="deformable" if isinstance(block, DeformableAttention) else "dense",
        num_heads=block.num_heads,
        content_and_position=isinstance(block, ConditionalCrossAttention),
    )


def _look(detector: Detector, picture: Image.Image, names: Sequence[str]) -> Recording:
    """The model's answer, and what the named blocks handed over on the way; no others, which could take gigabytes."""
    images = ImageBatch.from_images([detector.preprocessing(picture)])
    parameter = next(detector.model.parameters())
    # Anchors are handed over in the name of a layer, not of its block.
    with torch.inference_mode(), record(detector.model, only=[name.rpartition(".")[0] for name in names]) as seen:
        detector.model(images.to(device=parameter.device, dtype=parameter.dtype))
    return seen


def _slots(detector: Detector, category: int | None) -> list[int]:
    """The class slots that may be meant: those of the category, or all that mean something."""
    entries = detector.label_map.entries
    if category is None:
        return [slot for slot, entry in enumerate(entries) if entry is not None]
    slot = detector.label_map.slot_of_id(category)
    if slot is None:
        known = ", ".join(str(entry.id) for entry in entries[:10] if entry)
        raise Refusal(422, f"category_id {category}: unknown; this detector has {known}")
    return [slot]


def _scores(logits: Tensor, detector: Detector) -> Tensor:
    """(L, Q, C) logits as scores, "no object" left out."""
    config: Any = detector.model.config
    logits = logits.float()
    return logits.softmax(-1)[..., :-1] if config.scores == "softmax" else logits.sigmoid()


def _choose(
    scores: Tensor, boxes: Tensor, slots: list[int], bbox: Sequence[float] | None, picture: Image.Image
) -> tuple[int, int, float | None]:
    """Query, class slot, and IoU with the box asked for; of equal boxes the surest one's query."""
    best, which = scores[:, slots].max(dim=-1)
    if bbox is None:
        query = int(best.argmax())
        return query, slots[int(which[query])], None
    x, y, width, height = bbox
    if not (width > 0 and height > 0):
        raise Refusal(422, f"bbox: width and height must be above 0, got {width:g} and {height:g}")
    scale = torch.tensor([picture.width, picture.height] * 2, dtype=torch.float64)
    corners = (cxcywh_to_xyxy(boxes.cpu().double()) * scale).clamp(min=0).minimum(scale)
    asked = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
    overlaps = pairwise_iou_xyxy(asked, corners)[0].nan_to_num(0)
    query = int((overlaps.round(decimals=3) + 1e-4 * best.cpu()).argmax())
    return query, slots[int(which[query])], float(overlaps[query])


def _anchors(seen: Recording, query: int, num_layers: int) -> list[list[float] | None]:
    """Where the query stands before each layer: x, y (, w, h) in [0, 1]; None where the detector has no such thing."""
    anchors = seen.decoder_anchors()
    return [layer[0, query].tolist() for layer in anchors] if anchors else [None] * num_layers


def _to_pixels(values: Sequence[float] | None, picture: Image.Image) -> list[float] | None:
    """cx, cy in [0, 1] as a point in pixels; cx, cy, w, h as x, y, w, h in pixels, inside the picture or not."""
    if values is None:
        return None
    if len(values) == 2:
        return [values[0] * picture.width, values[1] * picture.height]
    cx, cy, width, height = values
    return [
        (cx - width / 2) * picture.width,
        (cy - height / 2) * picture.height,
        width * picture.width,
        height * picture.height,
    ]


def _sight(seen: Recording, name: str, query: int, picture: Image.Image) -> dict[str, Any]:
    """What one query looks at in one layer."""
    if name in seen.sampled:
        record = seen.sampled[name]
        size = torch.tensor([picture.width, picture.height], device=record.locations.device)
        places, weights = record.locations[0, query].float() * size, record.weights[0, query].float()
        return {"samples": Samples(points=_rounded(torch.cat([places, weights[..., None]], dim=-1)))}
    record, shape = seen.dense[name], seen.shape_of(name)
    sight = {"attention": _maps(record.attention[0, :, query].unflatten(-1, shape), seen)}
    parts = record.parts
    if parts is not None and parts.concatenated:
        scale = record.query.shape[-1] ** -0.5
        for word, asks, answers in (
            ("content", parts.query_content, parts.key_content),
            ("position", parts.query_position, parts.key_position),
        ):
            scores = (asks[0, :, query, None] * answers[0]).sum(-1) * scale
            sight[word] = _maps(scores.softmax(-1).unflatten(-1, shape), seen)
    return sight


def _dense_layer(seen: Recording, name: str, head: int) -> AttentionOut:
    record, shape = seen.dense[name], seen.shape_of(name)
    rows = _raster(*shape)
    looks = record.attention[0, head][rows].unflatten(-1, shape)
    return AttentionOut(
        name=name,
        kind="dense",
        num_levels=1,
        height=shape[0],
        width=shape[1],
        rows=rows,
        query=_colours(record.query[0, head]),
        key=_colours(record.key[0, head]),
        value=_colours(record.value[0, head]),
        attention=_maps(looks, seen),
    )


def _sampled_layer(name: str, record: SampledAttention, head: int, level: int) -> AttentionOut:
    height, width = record.shapes[level]
    start = sum(rows * columns for rows, columns in record.shapes[:level])
    rows = _raster(height, width)
    cells = [start + row for row in rows]
    places, weights = record.locations[0, cells, head].float(), record.weights[0, cells, head].float()
    samples = torch.cat([places, weights[..., None]], dim=-1)
    return AttentionOut(
        name=name,
        kind="deformable",
        num_levels=len(record.shapes),
        height=height,
        width=width,
        rows=rows,
        value=_colours(record.value[0, start : start + height * width, head]),
        samples=_base64(samples.numpy(force=True).astype("<f4")),
        num_points=samples.shape[-2],
    )


def _raster(height: int, width: int) -> list[int]:
    """All cells of a map, row by row, or so many of a raster that they are not too many."""
    step = 1
    while -(-height // step) * -(-width // step) > MOST_ROWS:
        step += 1
    return [row * width + column for row in range(step // 2, height, step) for column in range(step // 2, width, step)]


def _maps(values: Tensor, seen: Recording) -> Maps:
    """Non-negative maps (N, h, w) in bytes, each relative to its own largest value."""
    array = values.float().numpy(force=True)
    peaks = array.max(axis=(1, 2))
    relative = array / np.maximum(peaks, np.finfo(np.float32).tiny)[:, None, None]
    return Maps(
        height=array.shape[1],
        width=array.shape[2],
        covers=_covers(seen, array.shape[1], array.shape[2]),
        peaks=peaks.tolist(),
        values=_base64(np.round(relative * 255).astype(np.uint8)),
    )


def _covers(seen: Recording, rows: int, columns: int) -> list[float]:
    """Width and height of a map in shares of the picture: the last row and column of cells may stick out of it."""
    assert seen.images is not None
    height, width = seen.images.sizes[0].tolist()
    for stride in STRIDES:
        if (-(-height // stride), -(-width // stride)) == (rows, columns):
            return [columns * stride / width, rows * stride / height]
    return [1.0, 1.0]


def _colours(values: Tensor) -> Colours:
    """Vectors (T, d) as colours: three principal components, each from its 1st to its 99th percentile, and norms."""
    array = values.double().numpy(force=True)
    centred = array - array.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary: the largest entry is made positive, so that colours do not flip by chance.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    components = np.zeros((len(array), 3))
    components[:, : directions.shape[1]] = centred @ directions
    low, high = np.percentile(components, (1, 99), axis=0)
    rgb = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    norms = np.linalg.norm(array, axis=1)
    largest = float(norms.max())
    return Colours(
        rgb=_base64(np.round(rgb * 255).astype(np.uint8)),
        norm=_base64(np.round(norms / max(largest, 1e-12) * 255).astype(np.uint8)),
        largest_norm=largest,
    )


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _rounded(points: Tensor) -> list[list[list[list[float]]]]:
    return np.round(points.double().numpy(force=True), 4).tolist()
