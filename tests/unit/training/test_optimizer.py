import pytest
import torch
from torch import nn

from detrove.models.preset import Recipe
from detrove.training.optimizer import (
    build_optimizer,
    optimizer_tensors,
    parameter_groups,
    restore_optimizer,
    set_rates,
)

RECIPE = Recipe(
    learning_rate=1e-3,
    backbone_learning_rate=1e-4,
    weight_decay=0.05,
    decay_norms_and_biases=False,
    slow_parameters=("sampling_offsets",),
)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        self.sampling_offsets = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.class_head = nn.Linear(4, 2)
        self.second_class_head = self.class_head
        self.backbone[0].requires_grad_(False)


def groups_by_name(recipe: Recipe) -> dict[str, dict]:
    return {group["name"]: group for group in parameter_groups(Toy(), recipe)}


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = Toy()
    grouped = [id(p) for group in parameter_groups(model, RECIPE) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_rates_and_decays():
    groups = groups_by_name(RECIPE)
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "backbone": (1e-4, 0.05),
        "backbone, no decay": (1e-4, 0.0),
        "slow": (pytest.approx(1e-4), 0.05),
        "slow, no decay": (pytest.approx(1e-4), 0.0),
        "rest": (1e-3, 0.05),
        "rest, no decay": (1e-3, 0.0),
    }
    assert len(groups["rest"]["params"]) == 1  # the shared head counts once


def test_detr_decays_norms_and_biases_too():
    groups = groups_by_name(Recipe(decay_norms_and_biases=True))
    assert set(groups) == {"backbone", "rest"}
    assert all(group["weight_decay"] == 1e-4 for group in groups.values())


def test_set_rates_multiplies_the_initial_rate():
    optimizer = build_optimizer(Toy(), RECIPE)
    set_rates(optimizer, 0.5)
    set_rates(optimizer, 0.1)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([1e-5, 1e-4])


def train_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
    optimizer.step()


def test_a_restored_optimizer_steps_as_the_original():
    model, copy = Toy().to(memory_format=torch.channels_last), Toy().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, RECIPE)
    train_a_step(model, optimizer, 0)
    copy.load_state_dict(model.state_dict())
    restored = build_optimizer(copy, RECIPE)
    restore_optimizer(
        restored, copy, {k: v.contiguous().clone() for k, v in optimizer_tensors(optimizer, model).items()}
    )
    train_a_step(model, optimizer, 1)
    train_a_step(copy, restored, 1)
    for original, continued in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(original, continued)
