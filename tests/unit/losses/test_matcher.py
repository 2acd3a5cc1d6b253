"""The assignment against loops over pictures, queries and objects."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from detrove.errors import InputError
from detrove.losses import matcher
from detrove.losses.matcher import MatchCost, cost_matrix, match, match_several
from detrove.structures import Targets

SOFTMAX = MatchCost("softmax", 1.0, 5.0, 2.0)
SIGMOID = MatchCost("sigmoid", 2.0, 5.0, 2.0)
COUNTS = (3, 0, 2)


def random_boxes(*shape, generator):
    centre = 0.2 + 0.6 * torch.rand(*shape, 2, generator=generator)
    return torch.cat((centre, 0.05 + 0.3 * torch.rand(*shape, 2, generator=generator)), dim=-1)


def random_targets(counts, generator, classes=4):
    return [
        Targets(torch.randint(classes, (count,), generator=generator), random_boxes(count, generator=generator))
        for count in counts
    ]


@pytest.fixture
def scene():
    """Two layers, three pictures (the second empty), five queries, four classes and "no object"."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, len(COUNTS), 5, 5, generator=generator)
    boxes = random_boxes(2, len(COUNTS), 5, generator=generator)
    return logits, boxes, random_targets(COUNTS, generator)


def plain_cost(logits, box, label, goal, cost):
    if cost.scores == "softmax":
        class_cost = -logits.softmax(dim=-1)[label].item()
    else:
        p = logits[label].sigmoid().item()
        class_cost = -0.25 * (1 - p) ** 2 * math.log(p + 1e-8) + 0.75 * p**2 * math.log(1 - p + 1e-8)
    corners = [box_convert(b[None], "cxcywh", "xyxy") for b in (box, goal)]
    giou = generalized_box_iou(*corners).item()
    return cost.class_weight * class_cost + cost.box_weight * (box - goal).abs().sum().item() - cost.giou_weight * giou


def best_by_trying_all(costs):
    """The assignment of least cost of a (queries × objects) list of lists, by trying every choice of queries."""
    objects = len(costs[0])
    choices = itertools.permutations(range(len(costs)), objects)
    best = min(choices, key=lambda choice: sum(costs[q][t] for t, q in enumerate(choice)))
    return {(q, t) for t, q in enumerate(best)}


@pytest.mark.parametrize("cost", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_costs_and_assignment_as_by_loops(scene, cost):
    logits, boxes, targets = scene
    matrix = cost_matrix(logits, boxes, targets, cost)
    assert matrix.shape == (2, 3, 5, 3)
    matches = match(logits, boxes, targets, cost)
    starts = [0, 3, 3]
    for layer in range(2):
        found = {}
        rows = zip(*(part[layer].tolist() for part in vars(matches).values()), strict=True)
        for picture, query, target, position in rows:
            found.setdefault(picture, set()).add((query, target))
            assert position == starts[picture] + target
        assert set(found) == {0, 2}
        for picture in found:
            costs = [
                [
                    plain_cost(logits[layer, picture, query], boxes[layer, picture, query], label, goal, cost)
                    for label, goal in zip(targets[picture].labels, targets[picture].boxes, strict=True)
                ]
                for query in range(5)
            ]
            given = matrix[layer, picture, :, : COUNTS[picture]]
            torch.testing.assert_close(given, torch.tensor(costs), rtol=1e-4, atol=1e-5)
            assert found[picture] == best_by_trying_all(costs)


def test_giou_epsilon_reaches_the_cost(scene):
    logits, boxes, targets = scene
    plain = cost_matrix(logits, boxes, targets, SIGMOID)
    other = cost_matrix(logits, boxes, targets, MatchCost("sigmoid", 2.0, 5.0, 2.0, giou_epsilon=0.1))
    assert (other - plain).abs().max() > 0.01


def test_half_precision_is_matched_in_single(scene):
    logits, boxes, targets = scene
    matrix = cost_matrix(logits.bfloat16(), boxes.bfloat16(), targets, SIGMOID)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, cost_matrix(logits, boxes, targets, SIGMOID), rtol=0.1, atol=0.1)


def test_threads_assign_the_same(scene, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    alone = match(*scene, SIGMOID)
    monkeypatch.setattr(matcher, "FEWEST_COSTS_FOR_THREADS", 0)
    for found, wanted in zip(vars(match(*scene, SIGMOID)).values(), vars(alone).values(), strict=True):
        assert torch.equal(found, wanted)


def test_no_objects_at_all():
    matches = match(torch.randn(2, 3, 5, 4), torch.rand(2, 3, 5, 4), random_targets((0, 0, 0), None), SIGMOID)
    assert all(part.shape == (2, 0) for part in vars(matches).values())
    assert matches.layer.tolist() == [[0], [1]]


def test_more_objects_than_queries():
    generator = torch.Generator().manual_seed(0)
    targets = random_targets((7, 1), generator)
    matches = match(torch.randn(1, 2, 3, 4, generator=generator), torch.rand(1, 2, 3, 4), targets, SIGMOID)
    assert matches.picture[0].tolist() == [0, 0, 0, 1]
    assert sorted(matches.query[0, :3].tolist()) == [0, 1, 2]
    assert len(set(matches.target[0, :3].tolist())) == 3


def test_ties_fall_as_in_scipy_with_queries_in_rows():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]])
    logits = torch.zeros(8, 1, 4, 2)  # as many queries as objects: SciPy turns higher matrices by itself
    places = torch.randint(2, (8, 1, 4), generator=generator)
    targets = [Targets(torch.zeros(4, dtype=torch.int64), boxes[[0, 1, 0, 1]])]
    matches = match(logits, boxes[places], targets, SIGMOID)
    costs = cost_matrix(logits, boxes[places], targets, SIGMOID).numpy()
    turned = 0
    for layer in range(8):
        queries, objects = linear_sum_assignment(costs[layer, 0])
        assert matches.query[layer].tolist() == queries.tolist()
        assert matches.target[layer].tolist() == objects.tolist()
        other_objects, other_queries = linear_sum_assignment(costs[layer, 0].T)
        turned += set(zip(queries, objects, strict=True)) != set(zip(other_queries, other_objects, strict=True))
    assert turned, "no case in which the orientation matters"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("image_id", "name"), [(42, "42"), ("cells/7.png", "cells/7.png"), (None, "number 2 of")])
def test_a_cost_that_is_not_finite_names_its_picture(scene, value, image_id, name):
    logits, boxes, targets = scene
    boxes[1, 2, 3, 0] = value
    targets[2].image_id = image_id
    with pytest.raises(InputError, match=f"not finite for picture {name}"):
        match(logits, boxes, targets, SIGMOID)


def test_a_bad_picture_without_objects_is_nobodys_fault(scene):
    logits, boxes, targets = scene
    boxes[0, 1] = math.nan
    assert match(logits, boxes, targets, SIGMOID).query.shape == (2, 5)


class TestSeveral:
    def test_cheapest_cells_and_conflicts_as_by_loops(self, scene):
        logits, boxes, targets = (scene[0][:1], scene[1][:1], scene[2])
        matrix = cost_matrix(logits, boxes, targets, SIGMOID)[0]
        matches = match_several(logits, boxes, targets, SIGMOID, per_object=2)
        expected = []
        for picture, count in enumerate(COUNTS):
            owner: dict[int, tuple[float, int]] = {}
            for target in range(count):
                cells = sorted(range(5), key=lambda cell, t=target, p=picture: matrix[p, cell, t].item())[:2]
                for cell in cells:
                    bid = (matrix[picture, cell, target].item(), target)
                    owner[cell] = min(owner.get(cell, bid), bid)
            expected += [(picture, cell, owner[cell][1], [0, 3, 3][picture] + owner[cell][1]) for cell in sorted(owner)]
        rows = zip(*(part[0].tolist() for part in vars(matches).values()), strict=True)
        assert list(rows) == expected

    def test_one_cell_each_where_nobody_competes(self):
        targets = [Targets(torch.tensor([0, 1]), torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]))]
        boxes = torch.tensor([[[[0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]]]])
        matches = match_several(torch.zeros(1, 1, 3, 2), boxes, targets, SIGMOID, per_object=1)
        assert list(zip(matches.query[0].tolist(), matches.target[0].tolist(), strict=True)) == [(0, 1), (2, 0)]

    def test_fewer_cells_than_asked_for(self):
        generator = torch.Generator().manual_seed(0)
        targets = random_targets((1,), generator)
        matches = match_several(torch.zeros(1, 1, 3, 4), torch.full((1, 1, 3, 4), 0.5), targets, SIGMOID, 6)
        assert matches.query.tolist() == [[0, 1, 2]]

    def test_no_objects(self):
        matches = match_several(
            torch.zeros(1, 2, 3, 4), torch.rand(1, 2, 3, 4), random_targets((0, 0), None), SIGMOID, 6
        )
        assert matches.query.shape == (1, 0)

    def test_not_finite(self, scene):
        logits, boxes, targets = (scene[0][:1], scene[1][:1], scene[2])
        logits[0, 0, 0, 0] = math.nan
        targets[0].labels[:] = 0
        with pytest.raises(InputError, match="number 0 of the batch"):
            match_several(logits, boxes, targets, SIGMOID, 2)
