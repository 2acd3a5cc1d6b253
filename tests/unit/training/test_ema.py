import copy

import torch
from timm.utils import ModelEmaV3
from torch import nn

from detrove.training.ema import MovingAverage


def moving(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model(torch.randn(4, 3, generator=generator))


def test_equals_timm_where_nothing_is_shared():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    ours, timms = MovingAverage(model, 0.8), ModelEmaV3(model, decay=0.8, use_warmup=True)
    for step in range(1, 30):
        moving(model, step)
        ours.update(model, step)
        timms.update(model, step)
    for key, value in timms.module.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], value)


def test_a_shared_tensor_moves_once():
    head = nn.Linear(3, 3)
    shared, alone = nn.Sequential(head, head), nn.Sequential(copy.deepcopy(head))
    averages = MovingAverage(shared, 0.5), MovingAverage(alone, 0.5)
    for step in range(1, 10):
        for model, average in zip((shared, alone), averages, strict=True):
            moving(model, step)
            average.update(model, step)
    assert torch.equal(averages[0].model.get_parameter("0.weight"), averages[1].model.get_parameter("0.weight"))


def test_before_the_first_step_the_weights_are_taken_over():
    """As they are after a trunk has learned by itself."""
    model = nn.Linear(3, 3)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight += 1.0
    average.update(model, 0)
    assert torch.equal(average.model.get_parameter("weight"), model.weight)
