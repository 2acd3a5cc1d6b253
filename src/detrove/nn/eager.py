"""Whether a pass is computed at once, by torch itself."""

from __future__ import annotations

import torch


def is_eager() -> bool:
    """Whether no compiler, exporter or transformation of functions is looking: what they see stays torch's.

    Then numbers may be looked at, and operators called that know their own gradients and nothing more.
    """
    return not (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    )
