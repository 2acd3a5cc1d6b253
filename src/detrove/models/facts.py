"""What each detector of the catalogue is made of, read off the built model; and `models/README.md`, made from it.

`python -m detrove.models.facts` prints that page.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detrove.models import catalogue
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, LevelProjection, feature_info
from detrove.nn.conditional_attention import ConditionalCrossAttention, ConditionalDecoderLayer
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.transformer import DecoderLayer, EncoderLayer
from detrove.structures import ImageBatch, Predictions

PICTURE = 480, 640
"""Height and width of the picture whose multiply-adds are counted, before the preset's preprocessing resizes it."""

KINDS: dict[type[nn.Module], str] = {
    MultiHeadAttention: "dense",
    ConditionalCrossAttention: "concatenated",
    DeformableAttention: "deformable",
}


@dataclass(frozen=True)
class Facts:
    """One detector of the catalogue, as plain values.

    `encoder` and `cross_attention` count layers by the kind of their attention; `levels` are the strides of the maps
    that the transformer sees, in its order. `queries` counts what enters the decoder; `boxes` says what a box starts
    from. `parameters` are all of the trunk's and the transformer's, `trainable` those that learn in the published
    recipe (BatchNorm fixed, stem and first stage frozen). `multiply_adds` are counted at `height` × `width`.
    """

    name: str
    paper: str
    differences: str
    backbone: str
    levels: str
    encoder: str
    queries: int
    cross_attention: str
    boxes: str
    loss: str
    parameters: int
    trainable: int
    height: int
    width: int
    multiply_adds: int
    published: str | None
    settings: dict[str, Any]


@functools.cache
def facts(name: str) -> Facts:
    """The facts of one detector; an unknown name raises `InputError`.

    Nothing is computed: the model is built and run on torch's meta device, which knows shapes without numbers.
    """
    preset = catalogue.preset(name)
    settings = catalogue.config_to_json(preset.config)
    with torch.device("meta"):
        model = catalogue.build(preset.config).eval()
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    height, width = preset.preprocessing.target_size(*PICTURE)
    predictions, multiply_adds = count_multiply_adds(model, height, width)
    paper, differences = paper_and_differences(catalogue.file_of(preset.config))
    return Facts(
        name=name,
        paper=paper,
        differences=differences,
        backbone=settings["backbone"] + (" DC5" if settings.get("dilation") else ""),
        levels=_strides(model),
        encoder=_attention(model, "encoder", "self_attention"),
        queries=predictions.logits.shape[2],
        cross_attention=_attention(model, "decoder", "cross_attention"),
        boxes=_boxes(model, settings),
        loss=catalogue.criterion_for(model).class_loss + (", denoising" if getattr(model, "denoising", None) else ""),
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        height=height,
        width=width,
        multiply_adds=multiply_adds,
        published=preset.published,
        settings=settings,
    )


def all_facts() -> list[Facts]:
    """The facts of the whole catalogue, in its order."""
    return [facts(name) for name in catalogue.preset_names()]


# ---- multiply-adds ---------------------------------------------------------------------------------------------------


def count_multiply_adds(model: nn.Module, height: int, width: int) -> tuple[Predictions, int]:
    """What a detector on the meta device answers to one picture of that size, and the multiply-adds that it takes.

    Counted are convolutions, matrix products (the linear layers and both products of dense attention) and the sampling
    of deformable attention: for every sampled number the four corners of its cell and its attention weight. Left out is
    what costs little: norms, activations, softmax, position encodings. A fused multiply and add counts once; papers
    call it a FLOP.

    Equal parts that are given equal shapes are run and counted once. The model is used up: it can no longer learn.
    """
    model.requires_grad_(False)  # the counter follows a module backward, too, where something learns
    sampling = {torch.ops.aten.grid_sampler_2d: _flops_of_sampling}
    counter = FlopCounterMode(display=False, custom_mapping=sampling)
    again = _remember_parts(model, counter)
    picture = ImageBatch(
        torch.empty(1, 3, height, width, device="meta"),
        torch.zeros(1, height, width, dtype=torch.bool, device="meta"),
        torch.zeros(1, 2, dtype=torch.int64, device="meta"),
    )
    with torch.no_grad(), counter:
        answer = model(picture)
    return answer, (counter.get_total_flops() + sum(again)) // 2


def _flops_of_sampling(*_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    return 2 * 5 * math.prod(out_shape)


_KNOWN: dict[tuple[Any, ...], tuple[Any, int]] = {}
"""What a part answered on the meta device, and its flops, by its description and the shapes that it was given."""


def _remember_parts(model: nn.Module, counter: FlopCounterMode) -> list[int]:
    """Let the trunk and every layer look up what an equal one answered; the flops that the counter then misses."""
    again: list[int] = []

    def remember(part: nn.Module) -> None:
        forward, description = part.forward, repr(part)

        def look_up(*arguments: Any, **context: Any) -> Any:
            key = (description, _shapes(arguments), _shapes(context))
            if key in _KNOWN:
                again.append(_KNOWN[key][1])
            else:
                before = counter.get_total_flops()
                answer = forward(*arguments, **context)
                _KNOWN[key] = answer, counter.get_total_flops() - before
            return _KNOWN[key][0]

        part.forward = look_up

    for part in model.modules():
        if isinstance(part, Backbone):
            remember(part.body)
        elif isinstance(part, (EncoderLayer, DecoderLayer, ConditionalDecoderLayer)):
            remember(part)
    return again


def _shapes(value: Any) -> Any:
    """The shapes of all tensors in the arguments of a part, as a key."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((key, _shapes(item)) for key, item in value.items())
    return tuple(_shapes(item) for item in value) if isinstance(value, (list, tuple)) else value


# ---- parts -----------------------------------------------------------------------------------------------------------


def _strides(model: nn.Module) -> str:
    """Strides of the levels in the order in which the transformer sees them; levels beyond the trunk's go on by 2."""
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    reductions = feature_info(backbone.body).reduction()
    strides = [reductions[index] for index in backbone.indices]
    projection = getattr(model, "levels", None)
    if isinstance(projection, LevelProjection):
        strides += [strides[-1] * 2**step for step in range(1, len(projection.projections) - len(strides) + 1)]
    return ", ".join(str(stride) for stride in strides)


def _attention(model: nn.Module, part: str, attention: str) -> str:
    """Layers and kind of the attention of that name in the encoders or decoders, one after the other.

    Heads are named where the encoders or the decoders of one detector differ in them.
    """
    groups: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        owner, _, name = path.rpartition(".")
        if name == attention and part in owner.split("."):
            groups.setdefault(owner.rpartition(".")[0], []).append(module)
    layers = " + ".join(str(len(modules)) for modules in groups.values())
    kinds = "/".join(dict.fromkeys(KINDS[type(modules[0])] for modules in groups.values()))
    heads = [_heads(modules[0]) for modules in groups.values()]
    told = f" ({'/'.join(map(str, heads))} heads)" if len(set(heads)) > 1 else ""
    modulated = ", modulated" if part == "decoder" and getattr(model, "size_head", None) is not None else ""
    return f"{layers} {kinds}{modulated}{told}"


def _heads(attention: nn.Module) -> int:
    heads = attention.num_heads
    assert isinstance(heads, int)
    return heads


def _boxes(model: nn.Module, settings: dict[str, Any]) -> str:
    """What a predicted box starts from; "refined" where every layer goes on from the box of the layer before."""
    anchors = getattr(model, "anchors", None)
    if isinstance(anchors, Tensor):
        return "refined anchor" if anchors.shape[-1] == 4 else "refined point"
    if catalogue.criterion_for(model).encoder_classes != "none":
        return "refined proposal"
    if settings.get("refine"):
        return "refined point"
    has_point = hasattr(model, "reference_points") or hasattr(model, "reference_head")
    return "point" if has_point else "query"


def paper_and_differences(file: ModuleType) -> tuple[str, str]:
    """The paper that a detector's file names, and what the file says it "Differs from DETR in", or nothing."""
    paragraphs = (inspect.getdoc(file) or "").split("\n\n")
    differences = [paragraph for paragraph in paragraphs if paragraph.startswith("Differs from")]
    return paragraphs[0], "\n\n".join(differences)


# ---- models/README.md ------------------------------------------------------------------------------------------------

HEADINGS = {
    "name": "model",
    "backbone": "trunk",
    "levels": "strides",
    "encoder": "encoder",
    "queries": "queries",
    "cross_attention": "cross-attention",
    "boxes": "boxes from",
    "loss": "loss",
    "parameters": "parameters",
    "multiply_adds": "GMACs",
    "published": "published AP",
}


def page() -> str:
    """The text of `models/README.md`."""
    everything = all_facts()
    rows = [[_cell(each, key) for key in HEADINGS] for each in everything]
    lines = [
        "# The detectors",
        "",
        "Made by `python -m detrove.models.facts` from the built models; a test holds it. One page on each: "
        "[docs](../../../docs/README.md).",
        "",
        *(f"| {' | '.join(row)} |" for row in [list(HEADINGS.values()), ["---"] * len(HEADINGS), *rows]),
        "",
        explanation(everything),
        "",
    ]
    for file in catalogue.DETECTORS.values():
        paper, differences = paper_and_differences(file)
        name = file.__name__.rpartition(".")[2]
        lines += [f"## [{name}.py]({name}.py)", "", paper, "", *_markdown(differences)]
    return "\n".join(lines)


def explanation(everything: list[Facts]) -> str:
    """What the columns mean, in a few sentences."""
    sizes: dict[str, list[str]] = {}
    for each in everything:
        sizes.setdefault(f"{each.width}×{each.height}", []).append(each.name)
    sizes = dict(sorted(sizes.items(), key=lambda item: -len(item[1])))
    first, *others = sizes
    at = "; ".join([first, *(f"{size} for {', '.join(sizes[size])}" for size in others)])
    return (
        "Encoder: layers and kind of attention (and heads, where they differ). A box starts from the query alone, from "
        "a point that the query names, or from an anchor or a proposal. Refined, as anchors and proposals are: each "
        "layer goes on from the box of the layer before. Concatenated: content and position side by side; modulated: "
        "that, and scaled by the width and height of the query's box. "
        f"GMACs (10⁹ multiply-adds) are one picture's of {PICTURE[1]}×{PICTURE[0]}, resized as the preset says ({at})."
    )


def _cell(each: Facts, key: str) -> str:
    value = getattr(each, key)
    if key == "published":
        return value or "–"
    return shorten(key, value)


def shorten(key: str, value: Any) -> str:
    """A fact as a table shows it: parameters in millions, multiply-adds in billions."""
    if key in ("parameters", "trainable"):
        return f"{value / 1e6:.1f} M"
    return f"{value / 1e9:.1f}" if key == "multiply_adds" else str(value)


def _markdown(differences: str) -> list[str]:
    """A list needs an empty line before it."""
    return [differences.replace(":\n-", ":\n\n-"), ""] if differences else []


if __name__ == "__main__":
    print(page(), end="")
