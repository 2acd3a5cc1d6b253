"""Measures of queries, on cases small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detrove.evaluation.matching import BoxTable
from detrove.evaluation.queries import (
    as_many_as_objects,
    changed_share,
    duplicate_rate,
    duplicates_per_object,
    layer_changes,
    of_all_pictures,
    queries_of_objects,
    spread,
)
from detrove.losses import MatchCost, match
from detrove.structures import Targets


def table(rows: list[tuple[int, int, list[float], float]], crowd: tuple[int, ...] = ()) -> BoxTable:
    """Rows of picture, class, corners and score."""
    return BoxTable(
        pictures=np.array([row[0] for row in rows], dtype=np.int64),
        classes=np.array([row[1] for row in rows], dtype=np.int64),
        boxes_xyxy=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        scores=np.array([row[3] for row in rows], dtype=np.float64),
        is_crowd=np.array([number in crowd for number in range(len(rows))], dtype=bool),
    )


def test_queries_that_are_all_alike_have_no_spread():
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(3, 7, 4)
    logits = torch.tensor([1.0, -2.0]).expand(3, 7, 2)
    assert set(vars(spread(boxes, logits, "sigmoid")).values()) == {0.0}


def test_spread_is_told_apart_within_and_between_pictures():
    boxes = torch.zeros(2, 2, 4)
    boxes[:, 1, 0] = 0.4  # the second query stands elsewhere, in both pictures: ±0.2 in one of four numbers
    logits = torch.zeros(2, 2, 1)
    logits[1] = 3.0  # the second picture is called otherwise, by both queries: ±1.5
    measured = spread(boxes, logits, "sigmoid")
    assert measured.boxes_within == pytest.approx(0.1)
    assert measured.boxes_between == 0
    assert measured.classes_within == 0
    assert measured.classes_between == pytest.approx(1.5)


def test_what_a_softmax_does_not_see_is_no_spread():
    logits = torch.tensor([[[1.0, 0.0, -1.0], [6.0, 5.0, 4.0]]])
    boxes = torch.zeros(1, 2, 4)
    assert spread(boxes, logits, "softmax").classes_within == pytest.approx(0, abs=1e-6)
    assert spread(boxes, logits, "sigmoid").classes_within == pytest.approx(2.5)


def test_one_picture_tells_nothing_of_pictures():
    measured = spread(torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), "sigmoid")
    assert measured.boxes_between is None
    assert measured.classes_between is None


def test_the_query_of_each_object_in_every_layer():
    """Two layers, two pictures of one and two objects; in the second layer the second picture's queries change."""
    goals = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.7, 0.3, 0.2, 0.2], [0.4, 0.8, 0.3, 0.1]])
    away = torch.tensor([0.95, 0.95, 0.05, 0.05])
    boxes = torch.stack(
        [
            torch.stack([torch.stack([goals[0], away, away]), torch.stack([goals[1], goals[2], away])]),
            torch.stack([torch.stack([goals[0], away, away]), torch.stack([away, goals[1], goals[2]])]),
        ]
    )
    targets = [
        Targets(torch.zeros(1, dtype=torch.int64), goals[:1]),
        Targets(torch.zeros(2, dtype=torch.int64), goals[1:]),
    ]
    matches = match(torch.zeros(2, 2, 3, 1), boxes, targets, MatchCost("sigmoid", 1.0, 5.0, 2.0))
    queries = queries_of_objects(matches, 3)
    assert queries.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert layer_changes(queries) == [pytest.approx(2 / 3)]


def test_objects_without_a_query_do_not_count_as_changed():
    before, after = torch.tensor([4, 5, -1, 2]), torch.tensor([4, 6, 7, -1])
    assert changed_share(before, after) == 0.5
    assert changed_share(before[2:], after[2:]) is None


def test_objects_beyond_the_queries_have_none():
    targets = [Targets(torch.zeros(2, dtype=torch.int64), torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]))]
    boxes = torch.tensor([0.8, 0.8, 0.1, 0.1]).expand(1, 1, 1, 4)
    matches = match(torch.zeros(1, 1, 1, 1), boxes, targets, MatchCost("sigmoid", 1.0, 5.0, 2.0))
    assert queries_of_objects(matches, 2).tolist() == [[-1, 0]]


A, B = [10.0, 10.0, 50.0, 50.0], [100.0, 100.0, 140.0, 140.0]
NEAR_A = [12.0, 10.0, 52.0, 50.0]


def test_duplicates_are_counted_for_the_object_that_they_repeat():
    truth = table([(0, 0, A, 1), (0, 0, B, 1), (1, 0, A, 1)])
    found = table(
        [
            (0, 0, A, 0.9),
            (0, 0, NEAR_A, 0.8),  # a duplicate
            (0, 0, NEAR_A, 0.3),  # another
            (0, 1, NEAR_A, 0.7),  # another class: no duplicate
            (0, 0, [200.0, 0.0, 240.0, 40.0], 0.6),  # around nothing
            (1, 0, A, 0.9),
        ]
    )
    assert duplicates_per_object(truth, found).tolist() == [2, 0, 0]
    assert duplicate_rate(truth, found) == 1.0  # two of two found objects


def test_a_duplicate_belongs_to_the_object_that_it_overlaps_most():
    near, far = [10.0, 10.0, 50.0, 50.0], [20.0, 10.0, 60.0, 50.0]
    truth = table([(0, 0, near, 1), (0, 0, far, 1)])
    found = table([(0, 0, near, 0.9), (0, 0, far, 0.8), (0, 0, [18.0, 10.0, 58.0, 50.0], 0.5)])
    assert duplicates_per_object(truth, found).tolist() == [0, 1]


def test_crowds_have_no_duplicates():
    truth = table([(0, 0, A, 1)], crowd=(0,))
    found = table([(0, 0, A, 0.9), (0, 0, NEAR_A, 0.8)])
    assert duplicates_per_object(truth, found).tolist() == [0]
    assert duplicate_rate(truth, found) is None


def test_nothing_found_is_no_rate():
    truth, nothing = table([(0, 0, A, 1)]), table([])
    assert duplicates_per_object(truth, nothing).tolist() == [0]
    assert duplicate_rate(truth, nothing) is None


def test_as_many_detections_as_objects_are_kept_the_best_ones():
    truth = table([(0, 0, A, 1), (0, 0, B, 1), (2, 0, A, 1), (2, 0, B, 1)], crowd=(3,))
    found = table([(2, 0, A, 0.2), (0, 0, A, 0.1), (1, 0, A, 0.9), (0, 0, B, 0.5), (0, 1, B, 0.4), (2, 0, B, 0.3)])
    kept = as_many_as_objects(truth, found)
    assert sorted(zip(kept.pictures.tolist(), kept.scores.tolist(), strict=True)) == [(0, 0.4), (0, 0.5), (2, 0.3)]
    assert len(as_many_as_objects(truth, table([]))) == 0


def test_spread_is_what_numpy_says():
    generator = torch.Generator().manual_seed(0)
    boxes, logits = torch.rand(3, 5, 4, generator=generator), torch.randn(3, 5, 6, generator=generator)
    measured = spread(boxes, logits, "sigmoid")
    assert measured.boxes_within == pytest.approx(math.sqrt(boxes.numpy().var(axis=1).mean()), rel=1e-6)
    assert measured.classes_between == pytest.approx(math.sqrt(logits.numpy().var(axis=0).mean()), rel=1e-6)


def test_batches_with_fewer_queries_are_filled_up() -> None:
    """Pictures of fewer cells than queries have as many queries as cells."""
    full, fewer = torch.rand(2, 3, 5, 4), torch.rand(2, 1, 3, 4)
    joined = of_all_pictures([full, fewer])
    assert joined.shape == (2, 4, 5, 4)
    assert torch.equal(joined[:, :3], full)
    assert torch.equal(joined[:, 3:, :3], fewer)
    assert torch.equal(joined[:, 3:, 3:], fewer[:, :, 2:].expand(-1, -1, 2, -1))
    assert torch.equal(of_all_pictures([full[..., 0], fewer[..., 0]]), joined[..., 0])
    blank = of_all_pictures([full[..., 0], fewer[..., 0]], blank=-1.0)
    assert torch.equal(blank[:, :, :3], joined[..., :3, 0])
    assert (blank[:, 3:, 3:] == -1).all()
    assert torch.equal(blank[:, :3], full[..., 0])
