"""A step's pictures in parts that are computed at the same time, each by a thread of its own, on a CPU.

The operations of a small detector are short, and two cores that share each of them spend much of their time waiting
for one another. Each with a part of the pictures they hardly meet: a step of `detrove-nano` with four pictures on two
cores took 0.075 s a picture instead of 0.095. The parts' gradients are added in order, so the same threads give the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrove.structures import ImageBatch, Targets
from detrove.training.parts import parts_of

Losses = Callable[[ImageBatch, list[Targets]], tuple[Tensor, dict[str, Tensor]]]
FEWEST_PICTURES = 2
"""In a part: one picture alone keeps a core less busy than it should."""


def possible_parts(model: nn.Module, batch_size: int) -> int:
    """In how many parts this process's threads may compute a step of so many pictures; 1: not at all.

    Random numbers come from one generator in the order of its use, and a live BatchNorm's running means are one: a
    model with either computes its step at once.
    """
    parts = min(torch.get_num_threads(), batch_size // FEWEST_PICTURES)
    return parts if parts > 1 and not any(_has_state(module) for module in model.modules()) else 1


def _has_state(module: nn.Module) -> bool:
    # a part for denoising draws its noise
    return (
        (isinstance(module, nn.Dropout) and module.p > 0)
        or isinstance(module, _BatchNorm)
        or (getattr(module, "denoising", None) is not None)
    )


class SideBySide:
    """`number` threads that share the cores of this process; `close` ends them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._threads = torch.get_num_threads()
        self._each = max(1, self._threads // number)
        self._pool = ThreadPoolExecutor(number, "part", initializer=torch.set_num_threads, initargs=(self._each,))
        all_begun = Barrier(number)  # each thread takes one of the waits, so that all have their number of threads
        for begun in [self._pool.submit(all_begun.wait) for _ in range(number)]:
            begun.result()
        torch.set_num_threads(self._threads)  # each thread that began has set MKL's number for all

    def backward(
        self, compute: Losses, parameters: Sequence[Tensor], images: ImageBatch, targets: list[Targets]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Add the mean of the parts' gradients to each parameter's `grad`; what `compute` gave for each part, detached.

        `compute` gives a part's total loss and its terms, and runs in several threads at once.
        """
        parts = parts_of(images, targets, min(self.number, len(targets)))
        # OpenMP has a number for each thread, MKL one for the process: with the whole process's, each part's products
        # would ask for every core
        torch.set_num_threads(self._each)
        try:
            futures = [self._pool.submit(_gradients, compute, parameters, *part) for part in parts]
            results = [future.result() for future in futures]
        finally:
            torch.set_num_threads(self._threads)
        for parameter, *gradients in zip(parameters, *(result[2] for result in results), strict=True):
            given = [gradient for gradient in gradients if gradient is not None]
            if given:
                mean = sum(given[1:], start=given[0]) / len(results)
                # laid out in memory as the parameter is: fused AdamW pairs elements by their place
                kept = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = kept.detach().add_(mean)
        return [(total, terms) for total, terms, _ in results]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _gradients(
    compute: Losses, parameters: Sequence[Tensor], images: ImageBatch, targets: list[Targets]
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor | None, ...]]:
    total, terms = compute(images, targets)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return total.detach(), {name: value.detach() for name, value in terms.items()}, gradients
