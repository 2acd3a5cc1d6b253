"""Losses and gradients that are no numbers: which picture and which box they come from, and whether to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrove.data import DetectionDataset
from detrove.errors import InputError, NotFiniteError
from detrove.structures import ImageBatch, Targets

MOST_IN_A_ROW = 10
"""Steps that may be skipped one after the other: more are not the fault of single pictures."""
MOST_BOXES = 100
"""Boxes of a picture that are tried one by one."""

LossOf = Callable[[ImageBatch, list[Targets]], Tensor]


@dataclass(frozen=True)
class Failure:
    """A picture that yields no number by itself: its place in the batch, and what was found about it, in words."""

    index: int
    about: str


class Finiteness:
    """What becomes of a step whose loss or gradient is no number: `on_nonfinite` is "stop" or "skip".

    `dataset` is what the pictures come from, to name their files; `learning_rate` the one to advise a lower than.
    Among several processes pictures are not tried one by one, because losses are counted over all processes; and
    skipping raises `InputError`.
    """

    def __init__(
        self, on_nonfinite: str, dataset: DetectionDataset, learning_rate: float, num_processes: int = 1
    ) -> None:
        self.skips = on_nonfinite == "skip"
        self._alone = num_processes == 1
        if self.skips and not self._alone:
            raise InputError("on_nonfinite=skip works in one process only: leave it out, or train in one")
        self._dataset = dataset
        self._learning_rate = learning_rate
        self._in_a_row = self._skipped = 0
        self._told: set[str] = set()

    def keep_buffers(self, model: nn.Module) -> Callable[[], None]:
        """Gives a function that puts the model's buffers back: a forward pass moves the means of a live BatchNorm.

        Costs a copy of them where steps may be skipped, else nothing: a training that stops needs them no more.
        """
        return _buffers_kept(model) if self.skips else lambda: None

    def told_of_epoch(self) -> dict[str, int]:
        """What a line of metrics.jsonl says of the steps since the last one: how many were skipped, if any."""
        skipped, self._skipped = self._skipped, 0
        return {"skipped": skipped} if skipped else {}

    def state(self) -> dict[str, int]:
        """What `restore` needs, in the midst of an epoch: plain numbers."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from an earlier part of the run."""
        self._skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def passed(self) -> None:
        """A step went well."""
        self._in_a_row = 0

    def failed(
        self, what: str, step: int, model: nn.Module, loss_of: LossOf, images: ImageBatch, targets: list[Targets]
    ) -> str | None:
        """A step failed: `what` became no number ("the loss became nan"), in `step`, on this batch.

        Raises `InputError` where the training is to stop. Else what to tell, or None where it was told before.
        """
        fault = self._explain(f"{what} in step {step}", model, loss_of, images, targets)
        self._in_a_row += 1
        if not self.skips:
            raise InputError(fault)
        if self._in_a_row > MOST_IN_A_ROW:
            raise InputError(f"{fault} ({MOST_IN_A_ROW} steps in a row were skipped: it is not a single picture)")
        self._skipped += 1
        pictures = " ".join(str(target.image_id) for target in targets)
        if pictures in self._told:
            return None
        self._told.add(pictures)
        return f"skipped: {fault}"

    def _explain(self, when: str, model: nn.Module, loss_of: LossOf, images: ImageBatch, targets: list[Targets]) -> str:
        lower = f"lower the rate (--set learning_rate={self._learning_rate / 4:g})"
        broken = next((name for name, value in model.named_parameters() if not value.isfinite().all()), None)
        if broken is not None:
            return f"{when}: the weights are no numbers any more ({broken}): {lower}"
        ids = ", ".join(str(target.image_id) for target in targets)
        if not self._alone:
            return f"{when}, on the pictures with the ids {ids}: {lower}, or look at their boxes"
        failures = find_failures(model, loss_of, images, targets, self._dataset.label_map.names)
        if not failures:
            return f"{when}, on the pictures with the ids {ids} together and on none of them alone: {lower}"
        if len(failures) == len(targets) > 1 and not any(failure.about for failure in failures):
            return f"{when}, on the pictures with the ids {ids}, each of them: {lower}, or look at their boxes"
        named = "; ".join(self._name(targets[failure.index]) + failure.about for failure in failures)
        remedy = "correct or remove it" if any(failure.about for failure in failures) else lower
        skip = "" if self.skips else ", or leave such steps out (--set on_nonfinite=skip)"
        return f"{when}, on {named}: {remedy}{skip}"

    def _name(self, target: Targets) -> str:
        """The picture's file and id."""
        ids = self._dataset.annotations.image_ids.tolist()
        if target.image_id not in ids:
            return f"the picture with the id {target.image_id}"
        return f"{self._dataset.annotations.path(ids.index(target.image_id))} (id {target.image_id})"


def find_failures(
    model: nn.Module, loss_of: LossOf, images: ImageBatch, targets: Sequence[Targets], class_names: Sequence[str]
) -> list[Failure]:
    """The pictures of a batch that yield no finite loss, or no finite gradient, each by itself.

    `loss_of(images, targets)` is a step's loss. The model's buffers and the random state are as before afterwards.
    """
    put_back = _buffers_kept(model)
    devices = [images.pixels.device] if images.pixels.device.type == "cuda" else []
    failures = []
    with torch.random.fork_rng(devices):
        for index, target in enumerate(targets):
            alone = one_picture(images, index)
            if not _is_finite(model, loss_of, alone, target):
                failures.append(Failure(index, _about(model, loss_of, alone, target, class_names)))
    put_back()
    return failures


def _buffers_kept(model: nn.Module) -> Callable[[], None]:
    """Copies the model's buffers, and gives a function that puts them back."""
    kept = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def put_back() -> None:
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)

    return put_back


def one_picture(images: ImageBatch, index: int) -> ImageBatch:
    """A picture of a batch as a batch of its own, without padding."""
    height, width = images.sizes[index].tolist()
    window = (slice(index, index + 1), slice(0, height), slice(0, width))
    pixels = images.pixels[window[0], :, window[1], window[2]]
    return ImageBatch(pixels, images.padding_mask[window], images.sizes[index : index + 1])


def _is_finite(model: nn.Module, loss_of: LossOf, images: ImageBatch, target: Targets) -> bool:
    try:
        loss = loss_of(images, [target])
    except NotFiniteError:
        return False
    if not loss.isfinite() or not loss.requires_grad:
        return bool(loss.isfinite())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    return all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def _about(model: nn.Module, loss_of: LossOf, images: ImageBatch, target: Targets, class_names: Sequence[str]) -> str:
    """What is unusual about a picture: its pixels, a box that cannot be, a box that fails by itself; "" if nothing."""
    if not images.pixels.isfinite().all():
        return ": its pixels are no numbers"
    strange = [(number, why) for number, box in enumerate(target.boxes.tolist()) if (why := _strange(box))]
    if not strange and len(target) > 1:
        strange = [
            (number, "fails by itself")
            for number in range(min(len(target), MOST_BOXES))
            if not _is_finite(model, loss_of, images, target.select(torch.tensor([number], device=target.boxes.device)))
        ]
        if len(strange) == len(target):
            return ""
    if not strange:
        return ""
    number, why = strange[0]
    label, box = int(target.labels[number]), ", ".join(f"{value:.4g}" for value in target.boxes[number].tolist())
    name = class_names[label] if 0 <= label < len(class_names) else f"class {label}"
    return f": box {number + 1} of {len(target)} ({name}; centre and size {box} of the view) {why}"


def _strange(box: Sequence[float]) -> str:
    """Why a box (cxcywh, of the picture's size) cannot be, or ""."""
    if not all(math.isfinite(value) for value in box):
        return "is no box"
    if box[2] <= 0 or box[3] <= 0:
        return "has no width or no height"
    if not all(-1 <= value <= 2 for value in box):
        return "lies far outside"
    return ""
