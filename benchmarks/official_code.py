"""Is every detector the official one? Both run side by side on the same pictures with the same weights.

For each published form, the official code builds its own model and losses from its own default arguments; our model
gets the same tensors through `detrove.checkpoints`. Printed are the largest differences of logits and boxes (every
decoder layer, encoder proposals too), of every loss term and of the gradient of their weighted sum, and whether objects
are matched to the same queries. Outputs and losses in float32 at the published size; outputs, losses and gradients in
float32 and float64 at a smaller one. As a yardstick, the official code in float32 is compared with itself in float64:
what noise as weights makes of rounding alone.

    python benchmarks/official_code.py ../shared --code FOLDER

FOLDER holds checkouts named detr, Deformable-DETR, ConditionalDETR, DAB-DETR, DN-DETR, DINO (these three of
IDEA-Research) and sdetr; they are no part of this project, and nothing in them is changed. What they want and a
present-day environment lacks is put in their way from outside: stand-ins for packages that detection does without, an
old version number of torchvision, a trunk without download, no move to a GPU, and their own pure-PyTorch form of
deformable attention for their compiled one. In float64 their explicit float32 is raised too, so that what remains is
rounding. Detectors that train by denoising are also compared in training, both shown the same noised objects.

Weights are seeded noise unless `--weights` names an official file (with the one form it belongs to).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import math
import re
import resource
import runpy
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

import detrove
from detrove.checkpoints.official import import_tensors
from detrove.data import evaluation_sample, open_dataset
from detrove.losses import match
from detrove.models import denoising
from detrove.models.denoising import Noise
from detrove.structures import Denoised, ImageBatch, Predictions, Preprocessing, Proposals, Targets

LABEL_NOISE = {1: 0.2, 2: 0.25}
"""The share of new labels, by how many draws move boxes: DN-DETR's and DINO's."""
DENOISING_TERMS = ("{}_dn{}", "tgt_{}{}")
"""What DINO and DN-DETR call the term of a noised object, from the term's name and the layer's suffix."""
TERMS = {"loss_ce": "class", "loss_bbox": "box", "loss_giou": "giou"}
PUBLISHED_SHORTER, PUBLISHED_LONGER = 800, 1333


@dataclass(frozen=True)
class Form:
    """A published form: the checkout, the function that builds it, and what its command line says beside defaults.

    `noise` is the module of theirs that noises objects, for a detector that trains by denoising. `by_rank`: queries
    have contents by the rank of their token's score, so that scores that differ by rounding only may exchange contents;
    in float32 both sides are then given the same choice, and how their own would have differed is told.
    """

    folder: str
    arguments: tuple[str, ...] = ()
    builder: str = "build_model"
    noise: str = ""
    by_rank: bool = False


_DINO = ("build_model_main", "models.dino.dn_components", True)
_DAB = ("--modelname", "dab_detr", "--coco_path", "")
_DN_DAB = ("--modelname", "dn_dab_detr", "--coco_path", "", "--use_dn")
_DN_DEFORMABLE = (
    *("--modelname", "dn_dab_deformable_detr", "--coco_path", "", "--use_dn"),
    *("--transformer_activation", "relu"),
)
FORMS = {
    "detr-r50": Form("detr"),
    "detr-r50-dc5": Form("detr", ("--dilation",)),
    "conditional-r50": Form("ConditionalDETR"),
    "conditional-r50-dc5": Form("ConditionalDETR", ("--dilation",)),
    "dab-r50": Form("DAB-DETR", _DAB, "build_DABDETR"),
    "dab-r50-3patterns": Form("DAB-DETR", (*_DAB, "--num_patterns", "3"), "build_DABDETR"),
    "dab-r50-dc5": Form("DAB-DETR", (*_DAB, "--dilation"), "build_DABDETR"),
    "deformable-c5-r50": Form("Deformable-DETR", ("--num_feature_levels", "1")),
    "deformable-dc5-r50": Form("Deformable-DETR", ("--num_feature_levels", "1", "--dilation")),
    "deformable-r50": Form("Deformable-DETR"),
    "deformable-refine-r50": Form("Deformable-DETR", ("--with_box_refine",)),
    "deformable-two-stage-r50": Form("Deformable-DETR", ("--with_box_refine", "--two_stage")),
    "dab-deformable-r50": Form(
        "DAB-DETR", ("--modelname", "dab_deformable_detr", "--coco_path", ""), "build_dab_deformable_detr"
    ),
    "dn-dab-r50": Form("DN-DETR", _DN_DAB, "build_DABDETR", "models.DN_DAB_DETR.dn_components"),
    "dn-dab-r50-dc5-3patterns": Form(
        "DN-DETR",
        (*_DN_DAB, "--dilation", "--num_patterns", "3"),
        "build_DABDETR",
        "models.DN_DAB_DETR.dn_components",
    ),
    "dn-dab-deformable-r50": Form(
        "DN-DETR", _DN_DEFORMABLE, "build_dab_deformable_detr", "models.dn_dab_deformable_detr.dn_components"
    ),
    "dino-r50": Form("DINO", ("--config_file", "config/DINO/DINO_4scale.py"), *_DINO),
    "dino-r50-5scale": Form("DINO", ("--config_file", "config/DINO/DINO_5scale.py"), *_DINO),
    "stacked-r50": Form("sdetr"),
}


# The official code, as it stands, in this environment.


class _StandIn(types.ModuleType):
    """A package that is not installed and that detection does without: any name in it is an empty class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, so only for what is not there."""

    PACKAGES = ("MultiScaleDeformableAttention", "panopticapi", "pycocotools", "termcolor", "addict", "yapf", "cv2")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] not in self.PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


class _PlainSampling:
    """In the place of their compiled function: their own pure-PyTorch form, which takes fewer arguments."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def apply(self, value: Tensor, shapes: Tensor, _starts: Tensor, locations: Tensor, weights: Tensor, _: int) -> Any:
        return self.plain(value, shapes, locations, weights)


class _DoubleTorch:
    """torch for their modules in a float64 run: where they say float32, float64."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


class _DrawsKept:
    """torch for their module that noises objects: what it draws at random is kept."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.draws: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.inner, name)
        if name not in ("rand_like", "randint_like"):
            return function

        def draw(like: Tensor, *arguments: Any, dtype: torch.dtype | None = None, **keywords: Any) -> Tensor:
            # in float64 always, so that it is the same noise in every precision
            drawn = function(like.double() if like.is_floating_point() else like, *arguments, **keywords)
            drawn = drawn.to(like.dtype if dtype is None else dtype)
            self.draws.append(drawn.clone())
            return drawn

        return draw


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Where their code says "cuda", nothing moves."""
    move = Tensor.to

    def stay(tensor: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        wanted: list[Any] = ["cpu" if isinstance(argument, str) else argument for argument in arguments]
        return move(tensor, *wanted, **keywords)

    with mock.patch.object(Tensor, "cuda", lambda tensor: tensor), mock.patch.object(Tensor, "to", stay):
        yield


class OfficialCode:
    """One official checkout, imported; a process can hold only one, because all call their packages the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        sys.path.insert(0, str(self.folder))
        sys.meta_path.append(_StandInFinder())
        old_version = mock.patch.object(torchvision, "__version__", "0.9.0")
        old_linear = mock.patch.object(torch.nn.modules.linear, "_LinearWithBias", nn.Linear, create=True)
        sys.modules.setdefault("torch._overrides", torch.overrides)
        with old_version, old_linear:
            self.main: Any = importlib.import_module("main")
            importlib.import_module("models")  # DINO's main would do so later
        if not Path(str(self.main.__file__)).is_relative_to(self.folder):
            raise SystemExit(f"{self.folder} holds no main.py")
        for module in self._modules():
            if hasattr(module, "MSDeformAttnFunction") and hasattr(module, "MSDeformAttn"):
                functions = importlib.import_module(
                    f"{module.__name__.rpartition('.modules')[0]}.functions.ms_deform_attn_func"
                )
                module.MSDeformAttnFunction = _PlainSampling(functions.ms_deform_attn_core_pytorch)

    def _modules(self) -> list[Any]:
        files = [(module, getattr(module, "__file__", None)) for module in list(sys.modules.values())]
        return [module for module, file in files if file and Path(file).is_relative_to(self.folder)]

    def build(self, form: Form) -> tuple[nn.Module, Any]:
        """Their detector, in evaluation mode, and their criterion."""
        self.options = options = self.main.get_args_parser().parse_args([*form.arguments, "--device", "cpu"])
        if hasattr(options, "config_file"):
            vars(options).update(runpy.run_path(str(self.folder / options.config_file)))
        original = torchvision.models.resnet50

        def without_download(pretrained: bool = False, **keywords: Any) -> nn.Module:
            del pretrained
            return original(weights=None, **keywords)

        with mock.patch.object(torchvision.models, "resnet50", without_download):
            model, criterion, _ = getattr(self.main, form.builder)(options)
        return model.eval(), criterion

    def answers(self, model: nn.Module, images: ImageBatch, objects: list[Any]) -> tuple[Any, tuple[Any, ...]]:
        """Their outputs, in training mode of noised objects too, and what their criterion is told beside the objects.

        DN-DETR is told in its own way how to noise, and tells it in another than DINO.
        """
        batch, options = self.batch(images), self.options
        if not hasattr(options, "label_noise_scale"):
            return model(batch, objects) if model.training else model(batch), ()
        settings = options.num_patterns
        if model.training:
            settings = (objects, options.scalar, options.label_noise_scale, options.box_noise_scale, settings)
        outputs, noised = model(batch, dn_args=settings)
        if noised is not None:
            logits, boxes = noised["output_known_lbs_bboxes"]
            layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
            outputs["dn_meta"] = {"output_known_lbs_bboxes": {**layers[-1], "aux_outputs": layers[:-1]}}
        return outputs, (noised,)

    @contextmanager
    def precision(self, dtype: torch.dtype) -> Iterator[None]:
        """Their code computes everything in that precision."""
        if dtype is torch.float32:
            yield
            return
        modules = [module for module in self._modules() if vars(module).get("torch") is torch]
        for module in modules:
            module.torch = _DoubleTorch()
        torch.set_default_dtype(dtype)
        try:
            with mock.patch.object(Tensor, "float", Tensor.double):
                yield
        finally:
            torch.set_default_dtype(torch.float32)
            for module in modules:
                module.torch = torch

    @contextmanager
    def draws_kept(self, form: Form) -> Iterator[list[Tensor]]:
        """What their code draws at random to noise objects, in its order."""
        if not form.noise:
            yield []
            return
        module = importlib.import_module(form.noise)
        keeper = _DrawsKept(vars(module)["torch"])
        with mock.patch.object(module, "torch", keeper):
            yield keeper.draws

    def batch(self, images: ImageBatch) -> Any:
        """The pictures in their structure."""
        return importlib.import_module("util.misc").NestedTensor(images.pixels, images.padding_mask)


# Weights and pictures.


SCALES = (
    (r"\.bn3\.weight$", 0.3),  # sixteen blocks add up
    (r"^backbone\..*conv\d\.weight$|downsample\.0\.weight$", math.sqrt(2)),
    (r"_[qk](content|pos|pos_sine)_proj\.weight$", 3.0),
    (r"encoder.*out_proj\.weight$|linear2\.weight$", 0.3),
    (r"sampling_offsets\.weight$", 0.3),
    (r"^class_embed\.weight$", 4.0),
)
"""How large the noise is beside 1 / sqrt(fan-in), so that queries end up with different boxes and classes: attention
that prefers some cells, branches that leave tokens apart, heads that show it. With 1 for all, all queries are alike."""


@torch.no_grad()
def fill_with_noise(model: nn.Module, seed: int) -> None:
    """Seeded values in every tensor, frozen statistics included: nothing compares as trivially 0, nothing saturates."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    scales = list(SCALES)
    if not any(".decoder.bbox_embed." in key for key in model.state_dict()):
        scales.append((r"^bbox_embed\.layers\.2\.weight$", 2.0))  # where layers move boxes, they are apart enough
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        scale = next((scale for pattern, scale in scales if re.search(pattern, key)), 1.0)
        if key in embeddings or key.endswith("level_embed"):
            tensor.copy_(noise)
            if key == "refpoint_embed.weight":
                tensor[:, :2] *= 3.0  # some anchors so near the border that the inverse sigmoid clips them
        elif tensor.dim() > 1:
            tensor.copy_(scale * noise / tensor[0].numel() ** 0.5)
        elif key.endswith("running_var"):
            tensor.copy_(1 + 0.5 * noise.abs())
        else:
            tensor.mul_(scale).add_(0.1 * scale * noise)
        if key.endswith("attn.in_proj_weight"):
            tensor[: 2 * tensor.shape[1]] *= 3.0  # queries and keys
    if hasattr(model.transformer, "enc_output"):
        keep_padding_unchosen(model)


@torch.no_grad()
def keep_padding_unchosen(model: Any) -> None:
    """Cells that do not count all look alike: let them score low, or they may be all that is chosen as queries."""
    transformer = model.transformer
    alike = transformer.enc_output_norm(transformer.enc_output.bias)
    own_head = getattr(transformer, "enc_out_class_embed", None)  # DINO chooses by all classes, others by the first
    scores = model.class_embed[-1].weight[:1] if own_head is None else own_head.weight
    scores -= (scores @ alike + 3)[:, None] * alike / (alike @ alike)


def load_official_file(model: nn.Module, file: Path) -> None:
    """An official .pth file into the official model."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(content.get("model", content))


def real_pictures(shared: Path, image_ids: Sequence[int], shorter: int) -> tuple[ImageBatch, list[Targets]]:
    """Pictures of coco-mini as the published detectors get them; labels are COCO's ids, as their heads have them."""
    dataset = open_dataset(shared / "data" / "coco-mini", "val")
    longer = round(shorter * PUBLISHED_LONGER / PUBLISHED_SHORTER)
    preprocessing = Preprocessing(shorter=shorter, longer=longer)
    index_of = {record.image_id: index for index, record in enumerate(dataset.records)}
    absent = [image_id for image_id in image_ids if image_id not in index_of]
    if absent:
        raise SystemExit(f"coco-mini's val split has no picture {absent}")
    pixels, targets = [], []
    for image_id in image_ids:
        image, target = evaluation_sample(dataset[index_of[image_id]], preprocessing)
        if target.is_crowd is not None:
            target = target.select(~target.is_crowd)
        ids = [dataset.label_map.entries[label] for label in target.labels.tolist()]
        target.labels = torch.tensor([category.id for category in ids if category], dtype=torch.int64)
        pixels.append(image)
        targets.append(target)
    return ImageBatch.from_images(pixels), targets


# One side's numbers, and what two sides differ by.


@dataclass
class Outcome:
    """What one side computes: predictions, loss terms (L,) by our names, their weighted sum, the pairs of every layer.

    `cells` (B, Q) are the tokens that a two-stage detector chose for its queries, in their order, else None; it went on
    with `instead` where those are given.
    """

    predictions: Predictions
    terms: dict[str, Tensor]
    total: Tensor
    pairs: list[set[tuple[int, int, int]]]
    cells: Tensor | None
    instead: Tensor | None

    def by_cell(self) -> tuple[Tensor, Tensor]:
        """Logits and boxes in the order of their cells: scores that differ by rounding only may change places."""
        return self._ordered(self.predictions.logits), self._ordered(self.predictions.boxes)

    def proposals_by_cell(self) -> tuple[Tensor, Tensor]:
        """The same of proposals, which are of all cells in their order or of the chosen ones only."""
        proposals = self.predictions.encoder
        assert proposals is not None
        if proposals.logits.shape[1] != self.predictions.logits.shape[2]:
            return proposals.logits, proposals.boxes
        return self._ordered(proposals.logits[None])[0], self._ordered(proposals.boxes[None])[0]

    def _ordered(self, values: Tensor) -> Tensor:
        cells = self.cells if self.instead is None else self.instead
        return values if cells is None else values.take_along_dim(cells.argsort(dim=1)[None, :, :, None], dim=2)

    def pairs_by_cell(self) -> list[set[tuple[int, int, int]]]:
        """Each layer's (picture, query or its cell, object)."""
        cells = self.cells if self.instead is None else self.instead
        if cells is None:
            return self.pairs
        return [{(b, int(cells[b, q]), t) for b, q, t in pairs} for pairs in self.pairs]


@contextmanager
def cells_kept(instead: Tensor | None = None) -> Iterator[list[Tensor]]:
    """The tokens (B, Q) that a two-stage detector makes queries of, when it has run: its only top-k.

    It goes on with `instead` where those are given.
    """
    chosen: list[Tensor] = []

    def keeping(topk: Any) -> Any:
        def keep(*arguments: Any, **keywords: Any) -> Any:
            found = topk(*arguments, **keywords)
            chosen.append(found.indices)
            if instead is None or len(chosen) > 1:  # their criterion, too, has one
                return found
            return torch.return_types.topk((found.values, instead))

        return keep

    with mock.patch.object(torch, "topk", keeping(torch.topk)), mock.patch.object(Tensor, "topk", keeping(Tensor.topk)):
        yield chosen


def official_outcome(
    code: OfficialCode,
    model: nn.Module,
    criterion: Any,
    images: ImageBatch,
    targets: list[Targets],
    instead: Tensor | None = None,
) -> Outcome:
    """Their side, by their code alone; in training mode with noised objects. `instead`: see `cells_kept`."""
    objects = [{"labels": target.labels, "boxes": target.boxes} for target in targets]
    criterion.train(model.training)
    with _on_the_cpu():
        with cells_kept(instead) as cells:
            outputs, noised = code.answers(model, images, objects)
        losses = criterion(outputs, objects, *noised)
    total = sum(weight * losses[name] for name, weight in criterion.weight_dict.items() if name in losses)
    layers = [*outputs["aux_outputs"], outputs]
    suffixes = [*(f"_{index}" for index in range(len(layers) - 1)), ""]
    terms = {ours: torch.stack([losses[name + suffix] for suffix in suffixes]) for name, ours in TERMS.items()}
    proposals = denoised = None
    for key, suffix in (("enc_outputs", "enc"), ("interm_outputs", "interm")):
        if key in outputs:
            proposals = Proposals(outputs[key]["pred_logits"], outputs[key]["pred_boxes"])
            terms |= {f"encoder_{ours}": losses[f"{name}_{suffix}"].reshape(1) for name, ours in TERMS.items()}
    if outputs.get("dn_meta"):
        denoised = official_denoised(outputs["dn_meta"]["output_known_lbs_bboxes"])
        pattern = next(each for each in DENOISING_TERMS if each.format("loss_ce", "") in losses)
        terms |= {
            f"denoising_{ours}": torch.stack([losses[pattern.format(name, suffix)] for suffix in suffixes])
            for name, ours in TERMS.items()
        }
    logits, boxes = (torch.stack([layer[key] for layer in layers]) for key in ("pred_logits", "pred_boxes"))
    pairs = [
        {
            (picture, query, index)
            for picture, both in enumerate(criterion.matcher(layer, objects))
            for query, index in zip(both[0].tolist(), both[1].tolist(), strict=True)
        }
        for layer in layers
    ]
    assert isinstance(total, Tensor)
    chosen = cells[0] if cells else None
    return Outcome(Predictions(logits, boxes, proposals, denoised), terms, total, pairs, chosen, instead)


def official_denoised(outputs: Mapping[str, Any]) -> Denoised:
    """What their decoder makes of noised objects; which is which stands in their code alone."""
    layers = [*outputs["aux_outputs"], outputs]
    logits, boxes = (torch.stack([layer[key] for layer in layers]) for key in ("pred_logits", "pred_boxes"))
    nothing = torch.empty(0)
    return Denoised(logits, boxes, nothing, nothing, 0, per_process=False)


def our_noise(draws: Sequence[Tensor], targets: Sequence[Targets]) -> Noise:
    """What they drew, one row for each copy of each object of the batch, copy by copy, as noise of our slots.

    They draw which labels are flipped, new labels for those alone, and how far boxes move: DN in (0, 1) for both
    directions, DINO sign and amount apart.
    """
    flip, new_labels, *moves = draws
    shift = moves[0] * 2 - 1 if len(moves) == 1 else (moves[0] * 2 - 1) * moves[1]
    counts = [len(target) for target in targets]
    copies = len(flip) // sum(counts)
    most = max(counts)
    picture = torch.cat([torch.full((count,), index) for index, count in enumerate(counts)]).repeat(copies)
    place = torch.cat([torch.arange(count) for count in counts])
    slot = (place + most * torch.arange(copies)[:, None]).flatten()
    shape = (len(counts), copies * most)
    noise = Noise(flip.new_ones(shape), torch.zeros(shape, dtype=torch.int64), shift.new_zeros(*shape, 4))
    flipped = flip < LABEL_NOISE[len(moves)]
    noise.flip[picture, slot] = flip
    noise.label[picture[flipped], slot[flipped]] = new_labels
    noise.shift[picture, slot] = shift
    return noise


def our_outcome(
    model: nn.Module,
    images: ImageBatch,
    targets: list[Targets],
    noise: Noise | None = None,
    instead: Tensor | None = None,
) -> Outcome:
    """Our side; in training mode with that noise. `instead`: see `cells_kept`."""
    with cells_kept(instead) as cells, mock.patch.object(denoising, "draw_noise", return_value=noise):
        predictions = model(images, targets)
    criterion = detrove.criterion_for(model)
    terms = criterion(predictions, targets)
    matches = match(predictions.logits, predictions.boxes, targets, criterion.cost)
    columns = (matches.picture.tolist(), matches.query.tolist(), matches.target.tolist())
    pairs = [set(zip(*layer, strict=True)) for layer in zip(*columns, strict=True)]
    return Outcome(predictions, terms, criterion.total(terms), pairs, cells[0] if cells else None, instead)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise SystemExit(f"shapes differ: ours {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    return (ours - theirs).abs().max().item()


def compare(ours: Outcome, theirs: Outcome) -> dict[str, Any]:
    """The differences of outputs, losses and matchings, and how far the outputs spread."""
    (our_logits, our_boxes), (logits, boxes) = ours.by_cell(), theirs.by_cell()
    result: dict[str, Any] = {
        "logits": largest_difference(our_logits, logits),
        "boxes": largest_difference(our_boxes, boxes),
        "spread_logits": logits[-1].std(dim=1).mean().item(),
        "spread_boxes": boxes[-1].std(dim=1).mean().item(),
        "total": theirs.total.item(),
        "total_difference": abs(ours.total.item() - theirs.total.item()),
        "terms": {
            name: ((ours.terms[name] - value).abs() / value.abs()).max().item() for name, value in theirs.terms.items()
        },
        "pairs": sum(map(len, theirs.pairs)),
        "pairs_in_common": sum(len(a & b) for a, b in zip(ours.pairs_by_cell(), theirs.pairs_by_cell(), strict=True)),
    }
    if set(ours.terms) != set(theirs.terms):
        raise SystemExit(f"loss terms differ: ours {sorted(ours.terms)}, theirs {sorted(theirs.terms)}")
    if ours.predictions.encoder is not None and theirs.predictions.encoder is not None:
        (our_logits, our_boxes), (logits, boxes) = ours.proposals_by_cell(), theirs.proposals_by_cell()
        result["proposal_logits"] = largest_difference(our_logits, logits)
        result["proposal_boxes"] = largest_difference(our_boxes, boxes)
        our_cells, cells = ours.cells, theirs.cells
        assert our_cells is not None
        assert cells is not None
        result["queries_out_of_order"] = int((our_cells != cells).sum())
        if ours.instead is not None:
            result["queries_given"] = cells.numel()
        result["queries_elsewhere"] = int((our_cells.sort(dim=1).values != cells.sort(dim=1).values).sum())
    if ours.predictions.denoising is not None and theirs.predictions.denoising is not None:
        our_part, part = ours.predictions.denoising, theirs.predictions.denoising
        result["denoised_logits"] = largest_difference(our_part.logits, part.logits)
        result["denoised_boxes"] = largest_difference(our_part.boxes, part.boxes)
    return result


def by_our_names(held: Mapping[str, Tensor], form_name: str) -> dict[str, Tensor]:
    """Values of their tensors, gradients for one, under our names: the table of keys that carries weights."""
    return import_tensors(held, "the official model", model=form_name).tensors


def official_gradients(model: nn.Module, form_name: str) -> dict[str, Tensor]:
    """Their gradients; 0 where there is none."""
    held = model.state_dict(keep_vars=True)
    return by_our_names(
        {key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in held.items()}, form_name
    )


def our_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Those of every parameter that ours trains; 0 where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def trained_differently(ours: nn.Module, theirs: nn.Module, form_name: str) -> list[str]:
    """The parameters that only one side trains."""
    held = theirs.state_dict(keep_vars=True)
    flags = by_our_names({key: torch.full_like(value, value.requires_grad) for key, value in held.items()}, form_name)
    trained = {key for key, value in flags.items() if value.numel() and value.all()}
    own = {key for key, value in ours.state_dict(keep_vars=True).items() if value.requires_grad}
    return sorted(trained ^ own)


def without_effect(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> set[str]:
    """Parameters whose gradient is 0 but for rounding, such as a key's bias under a softmax; in float64."""
    largest = max(theirs[name].norm() for name in ours)
    return {name for name, gradient in ours.items() if max(gradient.norm(), theirs[name].norm()) < 1e-12 * largest}


def compare_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: set[str]) -> dict[str, Any]:
    """The largest relative difference over the parameters of those names, its parameter, and how many they are."""
    differences = {name: ((ours[name] - theirs[name]).norm() / theirs[name].norm()).item() for name in names}
    worst = max(differences, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name])
    return {"gradient": differences[worst], "gradient_worst": worst, "gradients": len(names)}


def examine(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one form."""
    form = FORMS[name]
    code = OfficialCode(options.code / form.folder)
    theirs, criterion = code.build(form)
    if options.weights:
        load_official_file(theirs, options.weights)
    else:
        fill_with_noise(theirs, options.seed)
    ours = import_tensors(theirs.state_dict(), f"{name}'s official model", model=name).build()
    result: dict[str, Any] = {"form": name, "trained_differently": trained_differently(ours, theirs, name)}

    images, targets = real_pictures(options.shared, options.pictures, options.shorter)
    result |= {"size": list(images.pixels.shape[2:]), "objects": [len(target) for target in targets]}
    with torch.no_grad():
        official = official_outcome(code, theirs, criterion, images, targets)
        instead = official.cells if form.by_rank else None
        result["full"] = compare(our_outcome(ours, images, targets, instead=instead), official)
    del official

    images, targets = real_pictures(options.shared, options.pictures, options.gradient_shorter)
    result["small_size"] = list(images.pixels.shape[2:])
    result |= compare_steps(code, form, (theirs, criterion, ours), images, targets, name)
    if form.noise:
        for part in (theirs, criterion, ours):
            part.train()
        result["training"] = compare_steps(code, form, (theirs, criterion, ours), images, targets, name)
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return result


def compare_steps(
    code: OfficialCode,
    form: Form,
    parts: tuple[nn.Module, nn.Module, nn.Module],
    images: ImageBatch,
    targets: list[Targets],
    name: str,
) -> dict[str, Any]:
    """Their detector and criterion and our detector, forward and backward, in float64 and float32."""
    theirs, criterion, ours = parts
    sides = {}
    instead = None
    for dtype in (torch.float64, torch.float32):
        batch, objects = images.to(dtype), [target.to(dtype) for target in targets]
        for part in parts:
            part.zero_grad()  # first: a gradient that is still held would change its type too
            part.to(dtype)
        torch.manual_seed(0)
        with code.precision(dtype), code.draws_kept(form) as draws:
            official = official_outcome(code, theirs, criterion, batch, objects, instead)
            official.total.backward()
        official = without_graph(official)
        own = our_outcome(ours, batch, objects, our_noise(draws, objects) if draws else None, instead)
        own.total.backward()
        sides[dtype] = (without_graph(own), our_gradients(ours), official, official_gradients(theirs, name))
        instead = official.cells if form.by_rank else None

    result: dict[str, Any] = {}
    own, own_gradients, official, gradients = sides[torch.float64]
    unfelt = without_effect(own_gradients, gradients)
    names = set(own_gradients) - unfelt
    result["without_effect"] = sorted(unfelt)
    result["float64"] = compare(own, official) | compare_gradients(own_gradients, gradients, names)
    own, own_gradients, rounded, rounded_gradients = sides[torch.float32]
    result["float32"] = compare(own, rounded) | compare_gradients(own_gradients, rounded_gradients, names)
    result["rounding"] = compare(rounded, official) | compare_gradients(rounded_gradients, gradients, names)
    return result


def without_graph(outcome: Outcome) -> Outcome:
    """The numbers alone, so that the memory of the backward pass is free for the other side."""
    encoder, denoised = outcome.predictions.encoder, outcome.predictions.denoising
    if denoised is not None:
        denoised = replace(denoised, logits=denoised.logits.detach(), boxes=denoised.boxes.detach())
    return Outcome(
        Predictions(
            outcome.predictions.logits.detach(),
            outcome.predictions.boxes.detach(),
            None if encoder is None else Proposals(encoder.logits.detach(), encoder.boxes.detach()),
            denoised,
        ),
        {name: value.detach() for name, value in outcome.terms.items()},
        outcome.total.detach(),
        outcome.pairs,
        outcome.cells,
        outcome.instead,
    )


# The tables.

OTHERS = (("proposals", "proposal"), ("denoised", "denoised"))
"""What a table calls the parts beside the queries, and their keys."""


def print_tables(results: list[dict[str, Any]]) -> None:
    print("\nfloat32\n")
    print("| form | size | spread of logits, boxes | logits | boxes | pairs | total | total, relative | worst term |")
    print("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        full = result["full"]
        print(
            f"| {result['form']} | {'×'.join(map(str, result['size']))} | {full['spread_logits']:.2f}, "
            f"{full['spread_boxes']:.3f} | {_both(full, 'logits')} | {_both(full, 'boxes')} | {_pairs(full)} | "
            f"{full['total']:.4f} | {_relative_total(full)} | {_worst_term(full)} |"
        )
    for key in ("float32", "float64"):
        print(f"\n{key}, smaller pictures\n")
        print_steps([(result, result[key]) for result in results])
    denoising = [result for result in results if "training" in result]
    for key in ("float32", "float64") if denoising else ():
        print(f"\n{key}, smaller pictures, training with the same noised objects\n")
        print_steps([(result, result["training"][key]) for result in denoising])
    print("\nthe official code in float32 against itself in float64, smaller pictures\n")
    print("| form | logits | boxes | pairs | total, relative | gradient |")
    print("|---|---|---|---|---|---|")
    for result in results:
        part = result["rounding"]
        print(
            f"| {result['form']} | {_both(part, 'logits')} | {_both(part, 'boxes')} | {_pairs(part)} | "
            f"{_relative_total(part)} | {part['gradient']:.1e} |"
        )


def print_steps(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    print("| form | size | logits | boxes | pairs | total, relative | worst term | gradient | parameters |")
    print("|---|---|---|---|---|---|---|---|---|")
    for result, part in rows:
        print(
            f"| {result['form']} | {'×'.join(map(str, result['small_size']))} | {_both(part, 'logits')} | "
            f"{_both(part, 'boxes')} | {_pairs(part)} | {_relative_total(part)} | {_worst_term(part)} | "
            f"{part['gradient']:.1e} `{part['gradient_worst']}` | {part['gradients']} |"
        )


def _both(part: Mapping[str, Any], name: str) -> str:
    """The decoder's difference, and those of proposals and noised objects where there are any."""
    others = [(kind, part[f"{key}_{name}"]) for kind, key in OTHERS if f"{key}_{name}" in part]
    told = ", ".join(f"{kind} {value:.1e}" for kind, value in others)
    return f"{part[name]:.1e}" + (f" ({told})" if told else "")


def _pairs(part: Mapping[str, Any]) -> str:
    text = f"{part['pairs_in_common']} of {part['pairs']}"
    if part.get("queries_elsewhere"):
        text += f" ({part['queries_elsewhere']} queries from other cells)"
    if part.get("queries_given"):
        text += f" ({part['queries_out_of_order']} of {part['queries_given']} queries at another rank)"
    return text


def _relative_total(part: Mapping[str, Any]) -> str:
    return f"{part['total_difference'] / part['total']:.1e}"


def _worst_term(part: Mapping[str, Any]) -> str:
    name, value = max(part["terms"].items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    return f"{value:.1e} `{name}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder that holds data/coco-mini")
    parser.add_argument("--code", type=Path, required=True, help="the folder with the official checkouts")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--pictures", nargs="+", type=int, default=[632, 724], help="picture ids of coco-mini's val")
    parser.add_argument("--shorter", type=int, default=PUBLISHED_SHORTER, help="outputs and losses: the shorter side")
    parser.add_argument("--gradient-shorter", type=int, default=256, help="gradients and float64: the shorter side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="an official file, for one form")
    parser.add_argument("--results", type=Path, help="also keep every number, one JSON line a form")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one form, in this process
    options = parser.parse_args()
    if options.weights and len(options.forms) != 1:
        parser.error("--weights belongs to one form: name it with --forms")
    if options.here:
        print(json.dumps(examine(options.forms[0], options)))
        return
    results = []
    for name in options.forms:
        # a process for each, because the checkouts' packages share their names
        command = [sys.executable, *sys.argv, "--forms", name, "--here"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        line = output.strip().splitlines()[-1]
        results.append(json.loads(line))
        if options.results:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        print(f"{name} done", file=sys.stderr)
    print_tables(results)


if __name__ == "__main__":
    main()
