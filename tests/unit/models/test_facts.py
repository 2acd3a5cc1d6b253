"""What the comparison table says is read off the built models, and `models/README.md` is what they say today."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detrove.models import catalogue, conditional, dab, dab_deformable, deformable, detr, facts, stacked
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.conditional_attention import ConditionalCrossAttention, ConditionalSelfAttention
from detrove.nn.deformable_attention import DeformableAttention
from detrove.structures import ImageBatch

TOY = {"num_classes": 4, "backbone": "resnet18", "dim": 32, "feedforward_dim": 48}
CONFIGS = {
    "detr": replace(detr.Config(), **TOY, num_queries=7, num_encoder_layers=2),
    "deformable": replace(deformable.Config(), **TOY, num_queries=7, num_decoder_layers=2),
    "two-stage": replace(deformable.Config(), **TOY, num_queries=7, refine=True, two_stage=True),
    "conditional": replace(conditional.Config(), **TOY, num_queries=7),
    "dab": replace(dab.Config(), **TOY, num_queries=7, num_patterns=2),
    "dab-deformable": replace(dab_deformable.Config(), **TOY, num_queries=7),
    "stacked": replace(stacked.Config(), **TOY, num_queries=7),
}


def counted_by_hand(model: nn.Module, images: ImageBatch) -> int:
    """Multiply-adds of a real pass from every block's own shapes, block by block."""
    total = 0

    def count(block: nn.Module, arguments: tuple[Any, ...], context: dict[str, Any], output: Any) -> None:
        nonlocal total
        if isinstance(block, nn.Conv2d):
            total += output.numel() * block.weight[0].numel()
        elif isinstance(block, nn.Linear):
            total += output.numel() * block.in_features
        elif isinstance(block, MultiHeadAttention):  # its joint in-projection is no nn.Linear
            query, value = arguments
            _, num_queries, dim = query.shape
            tokens = value.shape[1]
            total += (num_queries + 2 * tokens) * dim * dim + 2 * num_queries * tokens * dim
        elif isinstance(block, ConditionalSelfAttention):
            _, num_queries, dim = arguments[0].shape
            total += 2 * num_queries**2 * dim
        elif isinstance(block, ConditionalCrossAttention):
            _, num_queries, dim = arguments[0].shape
            total += num_queries * arguments[3].shape[1] * 3 * dim  # scores twice as wide as values
        elif isinstance(block, DeformableAttention):
            _, num_queries, dim = arguments[0].shape
            total += 5 * num_queries * dim * block.num_levels * block.num_points

    handles = [block.register_forward_hook(count, with_kwargs=True) for block in model.modules()]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_multiply_adds_are_those_of_a_real_pass(name: str) -> None:
    config = CONFIGS[name]
    model = catalogue.build(config).eval()
    expected = counted_by_hand(model, ImageBatch.from_images([torch.zeros(3, 64, 96)]))
    with torch.device("meta"):
        ghost = catalogue.build(config).eval()
    _, found = facts.count_multiply_adds(ghost, 64, 96)
    assert found == expected


def test_equal_layers_of_other_shapes_count_apart() -> None:
    """What is remembered of one detector must not be told of another."""

    def count(height: int, **settings: Any) -> int:
        with torch.device("meta"):
            ghost = catalogue.build(replace(CONFIGS["detr"], **settings)).eval()
        return facts.count_multiply_adds(ghost, height, 96)[1]

    assert len({count(64), count(128), count(64, num_queries=8), count(64, feedforward_dim=64)}) == 4
    assert count(64) == count(64)


def test_parameters_are_those_of_the_built_model() -> None:
    model = catalogue.create("deformable-nano", backbone_frozen=True)
    assert facts.facts("deformable-nano").parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "detr-r50",
            {"encoder": "6 dense", "cross_attention": "6 dense", "boxes": "query", "loss": "softmax", "levels": "32"},
        ),
        ("deformable-r50", {"encoder": "6 deformable", "boxes": "point", "levels": "8, 16, 32, 64"}),
        ("deformable-refine-r50", {"boxes": "refined point", "loss": "focal", "queries": 300}),
        ("deformable-two-stage-r50", {"boxes": "refined proposal", "cross_attention": "6 deformable"}),
        ("detr-r50-dc5", {"backbone": "resnet50 DC5", "width": 1066, "height": 800, "levels": "16"}),
        ("conditional-r50", {"cross_attention": "6 concatenated", "boxes": "point", "queries": 300}),
        (
            "dab-r50-3patterns",
            {"cross_attention": "6 concatenated, modulated", "boxes": "refined anchor", "queries": 900},
        ),
        ("dab-deformable-r50", {"cross_attention": "6 deformable", "boxes": "refined anchor"}),
        (
            "stacked-r50",
            {
                "encoder": "3 + 3 dense (8/1 heads)",
                "cross_attention": "3 + 3 dense",
                "levels": "32, 16",
                "trainable": 41_590_880,
            },
        ),
        ("detrove-nano", {"encoder": "1 dense", "boxes": "refined proposal", "loss": "quality", "levels": "8, 16, 32"}),
    ],
)
def test_what_each_is_made_of(name: str, expected: dict[str, object]) -> None:
    found = facts.facts(name)
    assert {key: getattr(found, key) for key in expected} == expected


PUBLISHED_GMACS = {
    "detr-r50": 86,
    "detr-r50-dc5": 187,
    "detr-r101": 152,
    "detr-r101-dc5": 253,
    "conditional-r50": 90,
    "conditional-r50-dc5": 195,
    "conditional-r101": 156,
    "conditional-r101-dc5": 262,
    "deformable-r50": 173,
}
"""From the tables of the Conditional DETR and Deformable DETR repositories, averaged over pictures of COCO val."""


@pytest.mark.parametrize("name", PUBLISHED_GMACS)
def test_multiply_adds_are_near_the_published(name: str) -> None:
    """A 4:3 picture is a little smaller than COCO's average one, so ours are 4 to 8% below."""
    assert facts.facts(name).multiply_adds / 1e9 == pytest.approx(0.94 * PUBLISHED_GMACS[name], rel=0.025)


@pytest.mark.parametrize("name", catalogue.DETECTORS)
def test_every_file_but_the_first_says_what_differs(name: str) -> None:
    paper, differences = facts.paper_and_differences(catalogue.DETECTORS[name])
    assert paper.count("\n") <= 1
    assert differences.startswith("Differs from ") == (name != "detr")
    assert differences.count("\n- ") >= 3 or name == "detr"


@pytest.mark.slow
def test_the_readme_is_what_the_models_say() -> None:
    readme = Path(facts.__file__).with_name("README.md")
    assert readme.read_text(encoding="utf-8") == facts.page(), "run: python -m detrove.models.facts > README.md there"
