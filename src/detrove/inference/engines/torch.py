"""The torch engine: a copy of the model, made for nothing but answering."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from detrove.errors import InputError
from detrove.nn.fused import fuse
from detrove.nn.recording import active_recorder
from detrove.structures import ImageBatch, Predictions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """A model's copy on its device, its blocks swapped for faster ones; the model itself is left alone.

    `precision` is what convolutions and products are computed in; everything between them stays float32. `compiled`
    hands the copy to `torch.compile`, which needs a compiler, takes minutes for the first picture of a kind, and again
    for the first of another size.
    """

    name = "torch"

    def __init__(self, model: nn.Module, precision: str = "float32", compiled: bool = False) -> None:
        self.device = next(model.parameters()).device
        refuse_impossible_precision(precision, self.device)
        self.precision, self.compiled = precision, compiled
        self.model = fuse(copy.deepcopy(model).eval().float().requires_grad_(False), DTYPES[precision])
        self._forward: Any = torch.compile(self.model) if compiled else self.model

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> Predictions:
        """The last layer's logits (1, B, Q, C) and boxes (1, B, Q, 4); refuses to be recorded."""
        if active_recorder() is not None:
            raise InputError("an optimised detector hands over no attention: record the detector that `load` gives")
        try:
            predictions = self._forward(images.to(device=self.device, dtype=torch.float32))
        except Exception as error:
            if self.compiled and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise InputError(
                    f"torch.compile does not work here ({_reason(error)}): leave `compiled` out"
                ) from error
            raise
        return Predictions(predictions.logits[-1:], predictions.boxes[-1:])


def refuse_impossible_precision(precision: str, device: torch.device) -> None:
    """Raise `InputError` where this device does not compute in that precision."""
    if precision not in DTYPES:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(DTYPES)}")
    if device.type == "cpu" and precision == "float16":
        raise InputError("float16 is for CUDA: on a CPU choose float32 or bfloat16")
    if device.type == "cpu" and precision == "bfloat16" and not cpu_computes_bfloat16():
        raise InputError("this CPU has no bfloat16 arithmetic, which would make it slower: choose float32")
    if device.type == "cuda" and precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise InputError("this GPU has no bfloat16 arithmetic: choose float16")


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 by itself (AVX-512 BF16 or AMX)."""
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, ask, bool)() for ask in asks)


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
