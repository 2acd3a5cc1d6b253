"""Parts of a step at the same time: the gradients are those of parts one after the other, and twice the same bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from detrove.models import catalogue
from detrove.structures import ImageBatch, Targets
from detrove.training.parts import parts_of
from detrove.training.side_by_side import SideBySide, possible_parts


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    small = {"backbone": "test_resnet", "dim": 64, "num_heads": 4, "num_queries": 20, "num_decoder_layers": 2}
    return catalogue.create("detrove-nano", num_classes=3, backbone_frozen=True, **small).train()


@pytest.fixture
def batch() -> tuple[ImageBatch, list[Targets]]:
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.randn(3, 96, 96, generator=generator) for _ in range(5)]
    targets = [Targets(torch.arange(n) % 3, torch.rand(n, 4, generator=generator) * 0.3 + 0.3) for n in (2, 1, 0, 4, 3)]
    return ImageBatch.from_images(pictures), targets


def losses_of(model: nn.Module):
    criterion = catalogue.criterion_for(model)

    def compute(images: ImageBatch, targets: list[Targets]) -> tuple[Tensor, dict[str, Tensor]]:
        losses = criterion(model(images, targets), targets, 5.0)
        return criterion.total(losses), losses

    return compute


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_gradients_are_the_mean_of_the_parts(model: nn.Module, batch: tuple[ImageBatch, list[Targets]]) -> None:
    reference = copy.deepcopy(model)
    threads = SideBySide(2)
    results = threads.backward(losses_of(model), trainable(model), *batch)
    threads.close()
    totals = []
    for part in parts_of(*batch, 2):
        total, _ = losses_of(reference)(*part)
        (total / 2).backward()
        totals.append(total.item())
    assert [total.item() for total, _ in results] == pytest.approx(totals, rel=1e-5)
    assert not any(total.requires_grad for total, _ in results)
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert sum(gradient is not None for gradient in expected.values()) > 50
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride(), name


def test_the_same_bits_again(model: nn.Module, batch: tuple[ImageBatch, list[Targets]]) -> None:
    threads = SideBySide(2)
    gradients = []
    for _ in range(3):
        model.zero_grad()
        threads.backward(losses_of(model), trainable(model), *batch)
        gradients.append([parameter.grad.clone() for parameter in trainable(model) if parameter.grad is not None])
    threads.close()
    for again in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], again, strict=True))


def test_gradients_are_added_and_faults_come_through(model: nn.Module, batch: tuple[ImageBatch, list[Targets]]) -> None:
    threads = SideBySide(2)
    parameters = trainable(model)
    threads.backward(losses_of(model), parameters, *batch)
    once = parameters[-1].grad
    assert once is not None
    once = once.clone()
    threads.backward(losses_of(model), parameters, *batch)
    torch.testing.assert_close(parameters[-1].grad, 2 * once)

    def fails(images: ImageBatch, targets: list[Targets]) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError(f"{len(targets)} pictures")

    with pytest.raises(ValueError, match="2 pictures"):
        threads.backward(fails, parameters, *batch)
    threads.close()


def test_each_part_has_its_share_of_the_threads_and_the_process_has_them_back(
    model: nn.Module, batch: tuple[ImageBatch, list[Targets]]
) -> None:
    seen = []
    losses = losses_of(model)

    def compute(images: ImageBatch, targets: list[Targets]) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append((torch.get_num_threads(), threads_of_mkl()))
        return losses(images, targets)

    has_mkl = threads_of_mkl() is not None
    threads = SideBySide(2)
    for _ in range(2):
        threads.backward(compute, trainable(model), *batch)
    threads.close()
    assert seen == [(1, 1 if has_mkl else None)] * 4
    assert torch.get_num_threads() == 2
    assert threads_of_mkl() == (2 if has_mkl else None)


def threads_of_mkl() -> int | None:
    """The number that MKL has for the whole process; None where torch does without it."""
    told = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return int(told.group(1)) if told else None


def test_where_it_is_possible(model: nn.Module) -> None:
    assert possible_parts(model, 4) == 2
    assert possible_parts(model, 3) == 1
    torch.set_num_threads(1)
    assert possible_parts(model, 4) == 1
    torch.set_num_threads(2)
    assert possible_parts(catalogue.create("dab-nano", backbone="test_resnet", backbone_frozen=True), 4) == 2
    for name, options in (
        ("dab-nano", {"dropout": 0.1, "backbone_frozen": True}),
        ("dn-dab-nano", {"backbone_frozen": True}),
        ("detrove-nano", {"backbone_frozen": False}),
    ):
        assert possible_parts(catalogue.create(name, backbone="test_resnet", **options), 4) == 1, name
