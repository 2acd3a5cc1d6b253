"""What each detector of the catalogue is made of, read off the built model; and `models/README.md`, made from it.

`python -m detrove.models.facts` prints that page.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detrove.models import catalogue
from detrove.models.preset import Preset
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, Level
from detrove.nn.conditional_attention import ConditionalCrossAttention
from detrove.nn.deformable_attention import DeformableAttention
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
    levels, in_trunk = _trunk(model, settings.get("dilation", False), height, width)
    predictions, after_trunk = _transformer(model, levels, height, width)
    paper, differences = _docstring(preset)
    return Facts(
        name=name,
        paper=paper,
        differences=differences,
        backbone=settings["backbone"] + (" DC5" if settings.get("dilation") else ""),
        levels=_strides(model, levels, height),
        encoder=_attention(model, "encoder", "self_attention"),
        queries=predictions.logits.shape[2],
        cross_attention=_attention(model, "decoder", "cross_attention"),
        boxes=_boxes(model, settings),
        loss=catalogue.criterion_for(model).class_loss,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        height=height,
        width=width,
        multiply_adds=in_trunk + after_trunk,
        published=preset.published,
        settings=settings,
    )


def all_facts() -> list[Facts]:
    """The facts of the whole catalogue, in its order."""
    return [facts(name) for name in catalogue.preset_names()]


# ---- multiply-adds ---------------------------------------------------------------------------------------------------


def count_multiply_adds(module: nn.Module, images: ImageBatch) -> tuple[Any, int]:
    """What a module answers to pictures, and the multiply-adds that it took.

    Counted are convolutions, matrix products (the linear layers and both products of dense attention) and the sampling
    of deformable attention: for every sampled number the four corners of its cell and its attention weight. Left out is
    what costs little: norms, activations, softmax, position encodings. A fused multiply and add counts once; papers
    call it a FLOP.
    """
    sampling = {torch.ops.aten.grid_sampler_2d: _flops_of_sampling}
    module.requires_grad_(False)  # the counter follows the modules backward, too, wherever something learns
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=sampling) as counter:
        answer = module(images)
    return answer, counter.get_total_flops() // 2


def _flops_of_sampling(*_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    return 2 * 5 * math.prod(out_shape)


def _picture(height: int, width: int) -> ImageBatch:
    """One picture without padding and without numbers."""
    return ImageBatch(
        torch.empty(1, 3, height, width, device="meta"),
        torch.zeros(1, height, width, dtype=torch.bool, device="meta"),
        torch.zeros(1, 2, dtype=torch.int64, device="meta"),
    )


_KNOWN_TRUNKS: dict[tuple[Any, ...], tuple[list[Level], int]] = {}


def _trunk(model: nn.Module, dilation: bool, height: int, width: int) -> tuple[list[Level], int]:
    """The trunk's levels and multiply-adds, counted once for all detectors on the same trunk: it is half of the work"""
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    key = (backbone.name, backbone.strides, dilation, height, width)
    if key not in _KNOWN_TRUNKS:
        _KNOWN_TRUNKS[key] = count_multiply_adds(backbone, _picture(height, width))
    return _KNOWN_TRUNKS[key]


class _Given(nn.Module):
    """In the trunk's place: its levels, already known."""

    def __init__(self, levels: list[Level]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: ImageBatch) -> list[Level]:  # noqa: ARG002
        return list(self.levels)


def _transformer(model: nn.Module, levels: list[Level], height: int, width: int) -> tuple[Predictions, int]:
    model.set_submodule("backbone", _Given(levels))
    return count_multiply_adds(model, _picture(height, width))


# ---- parts -----------------------------------------------------------------------------------------------------------


def _strides(model: nn.Module, levels: list[Level], height: int) -> str:
    """Strides of the levels in the order in which the transformer sees them; projected levels go on by halving."""
    strides = [2 ** round(math.log2(height / level.shape[0])) for level in levels]
    projections = getattr(getattr(model, "levels", None), "projections", strides)
    strides += [strides[-1] * 2**step for step in range(1, len(projections) - len(strides) + 1)]
    return ", ".join(str(stride) for stride in strides)


def _attention(model: nn.Module, part: str, attention: str) -> str:
    """Layers and kind of the attention of that name in the encoders or decoders, one after the other.

    Heads are named where an encoder or decoder differs in them from another of the same detector.
    """
    groups: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        owner, _, name = path.rpartition(".")
        if name == attention and part in owner.split("."):
            groups.setdefault(owner.rpartition(".")[0], []).append(module)
    heads = {group: _heads(modules[0]) for group, modules in groups.items()}
    told = [
        f"{len(modules)}" + (f" ({heads[group]} head{'s' * (heads[group] > 1)})" if len(set(heads.values())) > 1 else "")
        for group, modules in groups.items()
    ]
    kinds = dict.fromkeys(KINDS[type(modules[0])] for modules in groups.values())
    modulated = ", modulated" if part == "decoder" and getattr(model, "size_head", None) is not None else ""
    return f"{' + '.join(told)} {'/'.join(kinds)}{modulated}"


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


def _docstring(preset: Preset) -> tuple[str, str]:
    """The paper that a detector's file names, and what the file says it "Differs from DETR in", or nothing."""
    paragraphs = (inspect.getdoc(catalogue.file_of(preset.config)) or "").split("\n\n")
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
        paper, differences = _docstring(next(iter(file.PRESETS.values())))
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
        "A box starts from the query alone, from a point that the query names, or from an anchor or a proposal; "
        "refined: each layer goes on from the box of the layer before. "
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
