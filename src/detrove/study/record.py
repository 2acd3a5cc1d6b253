"""`record`: everything that a detector's attention did in a forward pass, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.losses.matcher import Matches, match
from detrove.models.catalogue import criterion_for
from detrove.nn.backbone import Level
from detrove.nn.recording import DenseAttention, LayerAnchors, LayerInput, Recorder, SampledAttention, recording
from detrove.structures import ImageBatch, Predictions, Targets

PLACE = re.compile(
    r"(?:stacks\.(?P<stack>\d+)\.)?(?P<part>encoder|decoder)\.(?P<layer>\d+)\.(?P<kind>self|cross)_attention"
)


@dataclass(frozen=True)
class Place:
    """What a block's name says: `part` is "encoder" or "decoder", `kind` "self" or "cross"; `stack` of Stacked DETR."""

    part: str
    layer: int
    kind: str
    stack: int | None = None

    @property
    def layer_name(self) -> str:
        """The dotted path of the layer, such as "decoder.2"."""
        return ("" if self.stack is None else f"stacks.{self.stack}.") + f"{self.part}.{self.layer}"


def place_of(name: str) -> Place:
    """Where in a detector the attention block of this dotted path stands.

    >>> place_of("stacks.1.decoder.0.cross_attention")
    Place(part='decoder', layer=0, kind='cross', stack=1)
    """
    found = PLACE.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no attention block of a detector")
    stack = found["stack"]
    return Place(found["part"], int(found["layer"]), found["kind"], None if stack is None else int(stack))


@dataclass
class Recording:
    """The last forward pass inside `record`: its pictures and predictions, and what was handed over, by name.

    Blocks are named by their dotted paths ("encoder.0.self_attention", "decoder.2.cross_attention", in Stacked DETR
    "stacks.1.encoder.0.self_attention"), layers likewise ("decoder.2"). `dense` holds Q, K, V, A and their parts,
    `sampled` deformable attention's points and weights, `layers` content and position as each layer was given them,
    `anchors` where a dense decoder's queries look from. `matches` pairs queries with objects in every decoder layer
    where targets are known, else it is None.
    """

    images: ImageBatch | None = None
    predictions: Predictions | None = None
    dense: dict[str, DenseAttention] = field(default_factory=dict)
    sampled: dict[str, SampledAttention] = field(default_factory=dict)
    layers: dict[str, LayerInput] = field(default_factory=dict)
    anchors: dict[str, LayerAnchors] = field(default_factory=dict)
    matches: Matches | None = None
    shapes: list[tuple[int, int]] = field(default_factory=list)

    def names(self, part: str, kind: str) -> list[str]:
        """The blocks of a part ("encoder", "decoder") and kind ("self", "cross"), in the order in which they ran."""
        places = {name: place_of(name) for name in self._in_order()}
        return [name for name, place in places.items() if (place.part, place.kind) == (part, kind)]

    def shape_of(self, name: str) -> tuple[int, int]:
        """(height, width) of the map whose cells a dense block looks at."""
        num_tokens = self.dense[name].key.shape[2]
        for height, width in self.shapes:
            if height * width == num_tokens:
                return height, width
        raise ValueError(f"{name} looks at {num_tokens} tokens, which are no map of {self.shapes}: at queries?")

    def boxes(self) -> Tensor:
        """Boxes (L, B, Q, 4) cxcywh of every decoder layer."""
        return self.finished().boxes

    def finished(self) -> Predictions:
        """The predictions; an `InputError` where nothing ran inside the block."""
        if self.predictions is None:
            raise InputError("nothing was recorded: call detector.predict(picture) inside `with record(detector):`")
        return self.predictions

    def decoder_anchors(self) -> list[Tensor]:
        """Where each decoder layer's queries look from: L of (B, Q, 2 or 4) in [0, 1] of the picture; none without.

        Those of a deformable decoder are read off its reference points, which lie in the padded picture: with several
        pictures of different sizes in a batch they are shares of the batch's size.
        """
        if self.anchors:
            return [entry.anchors for entry in self.anchors.values()]
        sampled = [self.sampled[name] for name in self.names("decoder", "cross") if name in self.sampled]
        return [entry.reference_points[:, :, 0] for entry in sampled]

    def _in_order(self) -> list[str]:
        return [*self.sampled, *(name for name in self.dense if name not in self.sampled)]

    def _fill(self, recorder: Recorder) -> None:
        self.dense = {entry.name: entry for entry in recorder.dense}
        self.sampled = {entry.name: entry for entry in recorder.sampled}
        self.layers = {entry.name: entry for entry in recorder.layers}
        self.anchors = {entry.name: entry for entry in recorder.anchors}
        self.shapes += [shape for entry in recorder.sampled[:1] for shape in entry.shapes]


def refuse_engine(detector: Detector) -> None:
    """Raise `InputError` for a detector that another engine computes, of which nothing is seen but its answers."""
    if detector.engine is not None:
        raise InputError(
            "an exported or optimised detector hands over neither attention nor queries: study the weights that it "
            "came from, as `load` gives them"
        )


@contextmanager
def record(
    detector: Detector | nn.Module, targets: Sequence[Targets] | None = None, only: Sequence[str] = ()
) -> Iterator[Recording]:
    """Record what a detector's attention does while it looks at pictures inside the block.

    ```python
    with detrove.record(detector) as seen:
        detector.predict("street.jpg")
    seen.dense["encoder.0.self_attention"].attention  # (B, M, T, T)
    ```

    Only the **last** forward pass is kept: maps are large, B · M · T² numbers a block. `only` keeps those blocks whose
    names start so ("encoder.5", "decoder"). Pictures of several tiles or batches are several passes. `targets` of the
    pictures, here or as the model's second argument, give `matches`. What is recorded is what the fused kernels
    computed with; predictions are the same as without.
    """
    model = detector.model if isinstance(detector, Detector) else detector
    if isinstance(detector, Detector):
        refuse_engine(detector)
    seen = Recording()
    with recording(model, only) as recorder, ExitStack() as hooks:

        def begin(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            recorder.clear()
            seen.images, seen.shapes = arguments[0], []

        def see_levels(_: nn.Module, __: tuple[Any, ...], levels: list[Level]) -> None:
            seen.shapes += [level.shape for level in levels if level.shape not in seen.shapes]

        def end(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], answer: Predictions) -> None:
            seen._fill(recorder)
            seen.predictions = answer
            objects = targets if targets is not None else (*arguments[1:], named.get("targets"))[0]
            seen.matches = None if objects is None else _matches(model, answer, objects)

        handles = [
            model.register_forward_pre_hook(begin),
            model.get_submodule("backbone").register_forward_hook(see_levels),
            model.register_forward_hook(end, with_kwargs=True),
        ]
        for handle in handles:
            hooks.callback(handle.remove)
        yield seen


def _matches(model: nn.Module, predictions: Predictions, targets: Sequence[Targets]) -> Matches:
    """The pairs that the model's own criterion would be computed on."""
    if predictions.logits.shape[1] != len(targets):
        raise InputError(f"{predictions.logits.shape[1]} pictures were looked at, targets given for {len(targets)}")
    return match(predictions.logits, predictions.boxes, targets, criterion_for(model).cost)
