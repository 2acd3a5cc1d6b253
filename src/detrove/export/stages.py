"""A detector's stages, in the model and in a file: the values between them, and which they are in a graph.

| value | stage that makes it | what it is |
|---|---|---|
| `trunk.0`, `trunk.1`, … | trunk | its maps (B, C, h, w), finest first |
| `memory` | encoder | what the decoder looks at (B, T, D) |
| `content` | decoder | the queries' content after its last layer (B, Q, D) |
| `logits`, `boxes_cxcywh` | heads | classes (B, Q, C) and boxes (B, Q, 4) in [0, 1] |

In a file they keep these names, so that it can be asked for them; boxes are called `boxes` where they are its answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detrove.inference.bench.stages import decoder_layers
from detrove.structures import ImageBatch

STAGES = ("preprocess", "trunk", "encoder", "decoder", "heads", "postprocess")

TRUNK, MEMORY, CONTENT, LOGITS, BOXES = "trunk", "memory", "content", "logits", "boxes_cxcywh"

_STAGE_OF = {TRUNK: "trunk", MEMORY: "encoder", CONTENT: "decoder", LOGITS: "heads", BOXES: "heads"}


def stage_of(name: str) -> str:
    """The stage that makes the value of that name."""
    return _STAGE_OF[name.partition(".")[0]]


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While active, the trunk's maps, the memory and the decoder's content of the last pass stand in what this gives.

    A detector with several decoders hands over the first one's memory and the last one's content.
    """
    values: dict[str, Tensor] = {}

    def after_trunk(module: nn.Module, inputs: Any, levels: Any) -> None:  # noqa: ARG001
        values.update({f"{TRUNK}.{index}": level.features for index, level in enumerate(levels)})

    def before_decoder(layer: nn.Module, args: Any, kwargs: Any) -> None:
        values[MEMORY] = inspect.signature(layer.forward).bind(*args, **kwargs).arguments["memory"]

    def after_decoder(layer: nn.Module, inputs: Any, content: Tensor) -> None:  # noqa: ARG001
        values[CONTENT] = content

    decoders = decoder_layers(model)
    hooks = [
        model.get_submodule("backbone").register_forward_hook(after_trunk),
        decoders[0][0].register_forward_pre_hook(before_decoder, with_kwargs=True),
        decoders[-1][-1].register_forward_hook(after_decoder),
    ]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def model_stages(model: nn.Module, images: ImageBatch) -> dict[str, Tensor]:
    """Every value of the model's stages for a batch, on the CPU in float32, in their order."""
    parameter = next(model.parameters())
    with watched(model) as values:
        predictions = model(images.to(device=parameter.device, dtype=parameter.dtype))
    values |= {LOGITS: predictions.logits[-1], BOXES: predictions.boxes[-1]}
    return {name: value.float().cpu() for name, value in values.items()}


def largest_values(model: nn.Module, images: ImageBatch) -> dict[str, float]:
    """By stage from trunk to heads, the largest absolute value that one of its modules gives for a batch."""
    parameter = next(model.parameters())
    largest: dict[str, float] = {}
    current = "trunk"

    def note(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            largest[current] = max(largest.get(current, 0.0), output.abs().max().item())

    def enter(stage: str) -> Any:
        def change(*_: Any) -> None:
            nonlocal current
            current = stage

        return change

    decoders = decoder_layers(model)
    hooks = [module.register_forward_hook(note) for module in model.modules() if not list(module.children())]
    hooks += [
        model.get_submodule("backbone").register_forward_hook(enter("encoder")),
        decoders[0][0].register_forward_pre_hook(enter("decoder")),
        decoders[-1][-1].register_forward_hook(enter("heads")),
    ]
    try:
        with torch.inference_mode():
            model(images.to(device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def nodes_before(graph: Any, names: Iterable[str]) -> set[str]:
    """The names of an ONNX graph's nodes that values of these names are computed by."""
    made_by = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found


def trunk_values(names: Iterable[str]) -> list[str]:
    """Those of the trunk's maps among the names of a graph's values."""
    return sorted(name for name in set(names) if name.startswith(f"{TRUNK}."))
