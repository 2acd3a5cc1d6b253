"""Hugging Face's detectors beside ours, with the same weights, paired by the package's own key tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrove.checkpoints import hugging_face_layouts as layouts
from detrove.models import catalogue, conditional, dab, deformable, detr
from detrove.structures import ImageBatch, Predictions, Proposals, Targets

TOY = {
    "num_classes": 5,
    "num_queries": 9,
    "backbone": "resnet18",
    "dim": 64,
    "num_heads": 4,
    "feedforward_dim": 96,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dropout": 0.0,
}


def epsilons_as_theirs(config: Any) -> Any:
    """The config with Hugging Face's epsilons, which are not those of the official code, in DAB-DETR."""
    if isinstance(config, dab.Config):
        return replace(config, inverse_sigmoid_epsilon=1e-5, giou_epsilon=0.0)
    return config


FORMS = {
    "detr": replace(detr.Config(), **TOY),
    "detr-dc5": replace(detr.Config(), **TOY, dilation=True),
    "deformable": replace(deformable.Config(), **TOY),
    "deformable-refine": replace(deformable.Config(), **TOY, refine=True),
    "deformable-two-stage": replace(deformable.Config(), **TOY, refine=True, two_stage=True),
    "conditional": replace(conditional.Config(), **TOY),
    "conditional-dc5": replace(conditional.Config(), **TOY, dilation=True),
    "dab": epsilons_as_theirs(replace(dab.Config(), **TOY)),
    "dab-dc5": epsilons_as_theirs(replace(dab.Config(), **TOY, dilation=True)),
    "dab-patterns": epsilons_as_theirs(replace(dab.Config(), **TOY, num_patterns=3)),
}


def correspondence(theirs: nn.Module, ours: nn.Module) -> list[tuple[str, str, int | None]]:
    """(their key, our key, part) for every tensor; anything left over on either side fails, and so does a double."""
    layout = layouts.layout_of(ours.config)
    present = {layout.file_key(key): key for key in theirs.state_dict()}
    pairs, unknown = [], []
    for name, key in present.items():
        if layout.first_name(name) in present:
            continue
        matching = [(rule, our_key) for rule in layout.rules if (our_key := rule.ours_of(name))]
        if len(matching) == 1:
            rule, our_key = matching[0]
            pairs.append((key, our_key, rule.part and rule.part[0]))
        else:
            unknown.append(key)
    assert not unknown, f"no single rule for {unknown}"
    wanted = []
    for key in ours.state_dict():
        wanted += [(key, part) for part in range(3)] if "in_proj_" in key else [(key, None)]
    assert sorted((key, str(part)) for _, key, part in pairs) == sorted((key, str(part)) for key, part in wanted)
    return pairs


def part_of(tensor: Tensor, part: int | None) -> Tensor:
    """The whole tensor, or the third of its rows that holds the queries', keys' or values' projection."""
    return tensor if part is None else tensor.chunk(3)[part]


@torch.no_grad()
def disturb(model: nn.Module, seed: int = 0) -> None:
    """Random values in every tensor of the model, frozen statistics included: nothing compares as trivially 0."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.dim() > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif key.endswith("running_var"):
            tensor.copy_(1 + 0.5 * noise.abs())
        else:
            tensor.add_(0.2 * noise)


def their_detector(config: Any) -> nn.Module:
    """Hugging Face's detector of our config, its heads untied as in the official code, every tensor disturbed."""
    import transformers

    options = {
        "use_timm_backbone": True,
        "backbone": config.backbone,
        "use_pretrained_backbone": False,
        "num_labels": config.num_classes,
        "auxiliary_loss": isinstance(config, deformable.Config),
        **layouts.their_settings(config),
    }
    architecture = getattr(transformers, layouts.layout_of(config).architecture)
    model = architecture(architecture.config_class(**options))
    if isinstance(config, deformable.Config) and config.refine:
        share_heads(model, config.two_stage)
    disturb(model)
    if getattr(config, "two_stage", False):
        keep_padding_unchosen(model)
    return model


def share_heads(model: nn.Module, two_stage: bool) -> None:
    """The decoder's heads are the detector's own, as in the official code: untied, Hugging Face's are copies."""
    model.model.decoder.bbox_embed = model.bbox_embed
    if two_stage:
        model.model.decoder.class_embed = model.class_embed


@torch.no_grad()
def keep_padding_unchosen(model: nn.Module) -> None:
    """Cells that do not count all look alike: let them score low, or they may be all that is chosen as queries."""
    alike = model.model.enc_output_norm(model.model.enc_output.bias)
    scores = model.class_embed[-1].weight[0]
    scores -= alike * (scores @ alike + 3) / (alike @ alike)


@dataclass
class Pair:
    """Their model and ours with equal weights, and the correspondence of their tensors."""

    config: Any
    theirs: nn.Module
    ours: nn.Module
    table: list[tuple[str, str, int | None]]

    def their_predictions(self, images: ImageBatch) -> Predictions:
        """Their predictions of all layers in our structure."""
        inputs = {"pixel_values": images.pixels, "pixel_mask": (~images.padding_mask).long()}
        if isinstance(self.config, deformable.Config):
            predictions, output = self._their_deformable(inputs)
        elif isinstance(self.config, dab.Config):
            predictions, output = self._their_dab(inputs)
        else:
            predictions, output = self._their_layers(inputs)
        torch.testing.assert_close(predictions.logits[-1], output.logits)
        torch.testing.assert_close(predictions.boxes[-1], output.pred_boxes)
        return predictions

    def _their_layers(self, inputs: dict[str, Tensor]) -> tuple[Predictions, Any]:
        # Their auxiliary_loss feeds a layer's normed output to the next one, which the official code does not: so the
        # intermediate layers are taken by a hook, and normed for the heads only.
        decoder, states = self.theirs.model.decoder, []
        hooks = [layer.register_forward_hook(lambda *call: states.append(call[-1])) for layer in decoder.layers]
        output = self.theirs(**inputs)
        for hook in hooks:
            hook.remove()
        content = decoder.layernorm(torch.stack(states))
        boxes = self.theirs.bbox_predictor(content)
        if isinstance(self.config, conditional.Config):
            positions = self.theirs.model.query_position_embeddings.weight
            reference = decoder.ref_point_head(positions).sigmoid()
            boxes = torch.cat((boxes[..., :2] + torch.logit(reference, eps=1e-5), boxes[..., 2:]), dim=-1)
        return Predictions(self.theirs.class_labels_classifier(content), boxes.sigmoid()), output

    def _their_dab(self, inputs: dict[str, Tensor]) -> tuple[Predictions, Any]:
        # the intermediate layers and references go through their own heads, as in their forward with auxiliary_loss
        inner = []
        hook = self.theirs.model.register_forward_hook(lambda *call: inner.append(call[-1]))
        output = self.theirs(**inputs)
        hook.remove()
        content, reference = inner[0].intermediate_hidden_states, inner[0].reference_points
        boxes = self.theirs.bbox_predictor(content) + torch.logit(reference, eps=1e-5)
        return Predictions(self.theirs.class_embed(content), boxes.sigmoid()), output

    def _their_deformable(self, inputs: dict[str, Tensor]) -> tuple[Predictions, Any]:
        # they hand out the intermediate layers only beside a loss
        object_ = {"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}
        output = self.theirs(**inputs, labels=[object_] * len(inputs["pixel_values"]))
        layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
        logits = torch.stack([layer["logits"] for layer in layers])
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        proposals = None
        if self.config.two_stage:
            proposals = Proposals(output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid())
        return Predictions(logits, boxes, proposals), output


def make_pair(config: Any) -> Pair:
    """Their detector and ours of that config, ours filled from theirs through the table."""
    theirs, ours = their_detector(config), catalogue.build(config)
    table = correspondence(theirs, ours)
    given, tensors = theirs.state_dict(), ours.state_dict()
    for their_key, our_key, part in table:
        part_of(tensors[our_key], part).copy_(given[their_key])
    return Pair(config, theirs, ours, table)


@pytest.fixture(scope="session")
def pair_of() -> Callable[[Any], Pair]:
    """Makes a pair of any config."""
    return make_pair


@pytest.fixture(scope="session")
def with_their_epsilons() -> Callable[[Any], Any]:
    """Gives a config Hugging Face's epsilons."""
    return epsilons_as_theirs


@pytest.fixture(params=FORMS)
def config(request: pytest.FixtureRequest) -> Any:
    """The toy config of every form that both sides have."""
    return FORMS[request.param]


@pytest.fixture
def double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that the test makes is float64; so is the softmax, which their DAB-DETR asks for in float32."""
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, **_: scores.softmax(dim))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def batch() -> tuple[ImageBatch, list[Targets]]:
    """Three pictures of different sizes, the second without objects; in torch's default type."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(3, *size, generator=generator) for size in [(96, 128), (70, 90), (128, 101)]]
    targets = []
    for count in (4, 0, 2):
        centre = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
        size = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(TOY["num_classes"], (count,), generator=generator)
        targets.append(Targets(labels, torch.cat((centre, size), dim=1)))
    return ImageBatch.from_images(images), targets
