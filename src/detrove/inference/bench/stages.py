"""Where the time of a prediction goes: a clock with named laps, and a model that calls it between its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from detrove.inference.bench.machine import synchronise

STAGES = ("decode", "preprocess", "trunk", "encoder", "decoder", "model", "postprocess")
"""In their order. "model" stands for trunk, encoder and decoder where an engine does not let them be told apart.

The trunk ends with its maps. The encoder goes from there to the decoder's first layer: projections, positions, its
layers, and the proposals and choice of queries where there are any. The decoder ends with the boxes.
"""
PARTS = ("trunk", "encoder", "decoder")


class Timeline:
    """A clock whose every lap belongs to a stage; laps of one stage add up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Forget all laps; the first begins now."""
        synchronise(self.device)
        self.seconds = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap was this stage's."""
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@contextmanager
def watch_model(model: nn.Module | None, timeline: Timeline) -> Iterator[Callable[[], str]]:
    """While active, the model's forward pass laps the timeline after its trunk and its encoder.

    Gives a function that says whose the time from the last lap to the pass's end is: "decoder", or "model" where the
    pass cannot be told apart (there is no module to watch, or its parts are not called as modules).
    """
    handles = []
    if model is not None:
        # by name: an engine's copy of a model keeps the names and has other modules under them
        for path, module in model.named_modules():
            if path == "backbone":
                handles.append(module.register_forward_hook(lambda *_: timeline.lap("trunk")))
        for layers in decoder_layers(model):
            handles.append(layers[0].register_forward_pre_hook(lambda *_: timeline.lap("encoder")))
            handles.append(layers[-1].register_forward_hook(lambda *_: timeline.lap("decoder")))
    try:
        yield lambda: "decoder" if set(PARTS) <= timeline.seconds.keys() else "model"
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: nn.Module) -> list[nn.ModuleList]:
    """The decoders' layers; Stacked DETR has two decoders."""
    return [
        module
        for path, module in model.named_modules()
        if path.rpartition(".")[2] == "decoder" and isinstance(module, nn.ModuleList) and len(module)
    ]
