"""What shapes tell of a config, for every preset of the catalogue, and what they leave to be said."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from detrove.checkpoints.recognition import OF_THE_DATA, facts_of, preset_for
from detrove.errors import InputError
from detrove.models import catalogue

FOREIGN = [name for name in catalogue.PRESETS if not name.startswith("detrove")]
SAME_SHAPES = {
    "detr-r50": {"detr-r50-dc5"},
    "detr-r101": {"detr-r101-dc5"},
    "deformable-c5-r50": {"deformable-dc5-r50"},
    "conditional-r50": {"conditional-r50-dc5"},
    "conditional-r101": {"conditional-r101-dc5"},
    "dab-r50": {"dab-r50-dc5", "dab-r50-dc5-fixxy"},
    "dab-r50-3patterns": {"dab-r50-dc5-3patterns"},
    "dn-dab-r50": {"dn-dab-r50-dc5"},
}
"""The published detectors that only a name or the training's settings tell apart."""


def tensors_of(preset: str) -> tuple[str, dict[str, Tensor]]:
    """The detector's name and tensors of its shapes: equal where the model shares them, else of different values."""
    config = catalogue.preset(preset).config
    with torch.device("meta"):
        model = catalogue.build(config)
    values: dict[int, Tensor] = {}
    for index, tensor in enumerate(model.state_dict(keep_vars=True).values()):
        values.setdefault(id(tensor), torch.full((1,), float(index)).expand(tensor.shape))
    tensors = {key: values[id(tensor)] for key, tensor in model.state_dict(keep_vars=True).items()}
    return catalogue.config_to_json(config)["detector"], tensors


@pytest.mark.parametrize("preset", FOREIGN)
def test_shapes_tell_nothing_wrong(preset: str) -> None:
    detector, tensors = tensors_of(preset)
    config = catalogue.preset(preset).config
    facts = facts_of(detector, tensors)
    settings = {key: getattr(config, key) for key in facts}
    if "denoising" in settings:
        settings["denoising"] = settings["denoising"] is not None  # not with how much noise
    assert facts == settings
    assert {"num_classes", "dim", "feedforward_dim"} <= facts.keys()
    assert ("num_queries" in facts) != ("two-stage" in preset)  # there the encoder's proposals are the queries
    assert ("backbone" in facts) == config.backbone.startswith("resnet")


@pytest.mark.parametrize("preset", [name for name in FOREIGN if not name.endswith("-nano")])
def test_a_published_detector_is_found_by_its_shapes(preset: str) -> None:
    detector, tensors = tensors_of(preset)
    facts = facts_of(detector, tensors)
    alike = next(({first, *others} for first, others in SAME_SHAPES.items() if preset in {first, *others}), {preset})
    if alike == {preset}:
        assert preset_for(detector, facts, "a.pth") == (preset, catalogue.preset(preset).config)
    else:
        with pytest.raises(InputError) as caught:
            preset_for(detector, facts, "a.pth")
        message = str(caught.value)
        assert set(re.findall(r"[\w-]+", message.split(";")[0].partition(" fit ")[2])) == alike
        assert "\n" not in message
    assert preset_for(detector, facts, "a.pth", hints=[preset])[0] == preset
    assert preset_for(detector, facts, "a.pth", model=preset)[0] == preset


def test_classes_and_queries_are_the_weights_own() -> None:
    facts = facts_of(*tensors_of("deformable-r50")) | {"num_classes": 3, "num_queries": 20}
    _, config = preset_for("deformable", facts, "a.pth")
    assert (config.num_classes, config.num_queries) == (3, 20)
    assert {"num_classes", "num_queries"} == OF_THE_DATA


def test_hints_never_overrule_shapes() -> None:
    facts = facts_of(*tensors_of("deformable-refine-r50"))
    assert preset_for("deformable", facts, "a.pth", hints=["deformable-r50"])[0] == "deformable-refine-r50"


def test_a_named_model_of_other_shapes() -> None:
    facts = facts_of(*tensors_of("detr-r101")) | {"num_encoder_layers": 3}
    with pytest.raises(InputError) as caught:
        preset_for("detr", facts, "a.pth", model="detr-r50")
    message = str(caught.value)
    assert message.startswith("a.pth: belongs to another model than detr-r50: ")
    assert "num_encoder_layers is 3 in the weights and 6 in detr-r50" in message
    assert "backbone is resnet101 in the weights and resnet50 in detr-r50" in message


def test_a_named_model_of_another_detector() -> None:
    facts = facts_of(*tensors_of("detr-r50"))
    with pytest.raises(
        InputError, match="holds the weights of detector 'detr', but dab-r50 is 'dab'; name one of detr"
    ):
        preset_for("detr", facts, "a.pth", model="dab-r50")


def test_an_unknown_model_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean detr-r50"):
        preset_for("detr", {}, "a.pth", model="detr-r5O")


def test_shapes_of_no_preset_name_the_nearest() -> None:
    facts = facts_of(*tensors_of("conditional-r101")) | {"num_decoder_layers": 2}
    with pytest.raises(InputError, match="as no model of the catalogue has them; the nearest is conditional-r101, but"):
        preset_for("conditional", facts, "a.pth")
