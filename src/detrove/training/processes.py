"""The processes that train together, one for each device, and what they tell each other.

Who launched them does not matter (`detrove train --devices`, torchrun, accelerate launch, a cluster's own launcher):
accelerate reads it from the environment. Alone, every word to the others costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from detrove.errors import InputError

Value = TypeVar("Value")

_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


class ProcessLost(InputError):
    """Another process of the training has gone, so this one cannot go on."""


class Processes:
    """All processes of a training, seen from one of them: this is the `index`-th of `number`."""

    def __init__(self) -> None:
        on_cpu = is_launched() and not (torch.cuda.is_available() or torch.xpu.is_available())
        views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # gradients are held once, not twice
        self.accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[views])
        self.number, self.index = self.accelerator.num_processes, self.accelerator.process_index
        self.device = self.accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.index == 0

    def of_main(self, *values: float) -> list[float]:
        """The numbers that the main process has here."""
        if self.number == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(told, 0)
        return told.tolist()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, element by element, without gradient."""
        values = values.detach()
        if self.number > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
            values /= self.number
        return values

    def same(self, value: Value) -> Value:
        """Whatever the main process has here; it must be possible to pickle it."""
        return broadcast_object_list([value])[0] if self.number > 1 else value

    def gathered(self, value: Value) -> list[Value]:
        """What each process has here, in their order."""
        return gather_object([value]) if self.number > 1 else [value]

    @torch.no_grad()
    def align(self, module: nn.Module) -> None:
        """Give a module the weights and buffers that it has in the main process."""
        if self.number > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Go on when all have come here."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def explained_deaths(self) -> Iterator[None]:
        """What comes of another process that was killed, or gave up, becomes one clear `ProcessLost`."""
        try:
            yield
        except RuntimeError as error:
            if self.number == 1 or not _LOST.search(str(error)):
                raise
            raise ProcessLost(
                f"process {self.index + 1} of {self.number}: another process of this training has ended (see what it "
                "said last; if nothing, it was killed, most often for want of memory); continue the run with --resume"
            ) from error


def processes_here() -> int:
    """How many processes of the training share this machine, as far as their launcher tells."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1
