"""Whether a pass is computed at once, by torch itself, and whether oneDNN can be asked for parts of it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_eager() -> bool:
    """Whether no compiler, exporter or transformation of functions is looking: what they see stays torch's.

    Then numbers may be looked at, and operators called that know their own gradients and nothing more.
    """
    return not (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    )


def onednn_computes(x: Tensor) -> bool:
    """Whether torch's oneDNN operators with a last step take this tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    )


def onednn_computes_in_float32(x: Tensor) -> bool:
    """Whether it takes this tensor as it is, and nothing but the numbers is wanted of the pass."""
    return onednn_computes(x) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and is_eager()
