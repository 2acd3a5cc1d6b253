"""What queries do over a data set, against hand-made cases and a plain search picture by picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrove.boxes import cxcywh_to_xyxy, pairwise_iou_xyxy
from detrove.data import DetectionDataset, open_dataset
from detrove.errors import InputError
from detrove.inference import Detector
from detrove.losses import match
from detrove.models import catalogue
from detrove.structures import ImageBatch, LabelMap, Preprocessing, Targets
from detrove.study.queries import (
    QueryStudy,
    changed_between,
    draw_usage,
    found_and_duplicates,
    have_places,
    learned_queries,
    shapes_of,
    study_queries,
)
from detrove.study.query_page import _usage_caption, about_queries, query_page, write_query_study


def hand_made(**changes: Any) -> QueryStudy:
    """Two pictures, four queries, three objects, three layers."""
    boxes = np.zeros((2, 4, 4), dtype=np.float32)
    boxes[0, :, 0], boxes[1, :, 0] = [0.1, 0.2, 0.3, 0.4], [0.1, 0.4, 0.3, 0.4]
    return replace(
        QueryStudy(
            boxes=boxes,
            scores=np.full((2, 4), 0.5, dtype=np.float32),
            answers=np.array([[0, 1, 2], [0, 2, 2], [1, 2, 2]]),
            found=np.array([[False, False, False], [True, False, True], [True, True, True]]),
            duplicates=np.array([[0, 0, 0], [1, 0, 0], [0, 1, 2]]),
            pictures=np.array([0, 0, 1]),
            objects=np.full((3, 4), 0.5, dtype=np.float32),
            image_ids=np.array(["a", "b"]),
        ),
        **changes,
    )


def test_shares_by_layer() -> None:
    study = hand_made()
    assert study.changed() == pytest.approx([1 / 3, 1 / 3])
    assert study.found_share() == pytest.approx([0, 2 / 3, 1])
    assert study.duplicate_rates() == [None, 0.5, 1.0]


def test_use_and_home_of_queries() -> None:
    study = hand_made()
    assert study.uses().tolist() == [0, 1, 2, 0]
    assert study.used_half() == 1 / 4  # the third query alone answers for two of three objects
    assert study.home() == pytest.approx([0, 0.1 * math.sqrt(2), 0, 0], abs=1e-6)


def test_the_distance_from_home_does_not_depend_on_the_number_of_pictures() -> None:
    """0.41 is anywhere, also where few pictures were looked at."""
    generator = np.random.default_rng(0)
    for number in (2, 20):
        boxes = generator.random((number, 5000, 4), dtype=np.float32)
        study = hand_made(boxes=boxes, scores=boxes[..., 0])
        assert math.sqrt(np.square(study.home()).mean()) == pytest.approx(0.408, abs=0.01)
    study = hand_made()
    assert "too few to say" in _usage_caption("detr", study)
    many = hand_made(boxes=np.repeat(study.boxes, 5, axis=0), scores=np.repeat(study.scores, 5, axis=0))
    assert "keep to a place of their own" in _usage_caption("detr", many)


def test_nothing_to_answer_for() -> None:
    empty = hand_made(
        answers=np.zeros((3, 0), dtype=np.int64),
        found=np.zeros((3, 0), dtype=bool),
        duplicates=np.zeros((3, 0), dtype=np.int64),
    )
    assert empty.changed() == [None, None]
    assert empty.found_share() == [None, None, None]
    assert empty.duplicate_rates() == [None, None, None]
    assert math.isnan(empty.used_half())


def test_two_states_of_a_detector() -> None:
    before = hand_made()
    after = hand_made(answers=np.array([[0, 1, 2], [3, 2, 2], [0, 1, 0]]))
    assert changed_between(before, after) == pytest.approx([0, 1 / 3, 1])
    with pytest.raises(InputError, match="the same"):
        changed_between(before, hand_made(objects=np.zeros((3, 4), dtype=np.float32)))


def test_a_study_comes_back_from_its_file(tmp_path: Path) -> None:
    study = hand_made()
    study.save(tmp_path / "a.npz")
    for name, value in vars(QueryStudy.load(tmp_path / "a.npz")).items():
        np.testing.assert_array_equal(value, getattr(study, name))
    replace(study, placed=False).save(tmp_path / "b.npz")
    assert QueryStudy.load(tmp_path / "b.npz").placed is False
    np.savez(tmp_path / "c.npz", boxes=study.boxes)
    (tmp_path / "d.npz").write_text("none")
    for name in ("c.npz", "d.npz", "e.npz"):
        with pytest.raises(InputError, match=f"{name}: no study of queries"):
            QueryStudy.load(tmp_path / name)


def searched(boxes, scores, classes, targets) -> tuple[list[bool], list[int]]:
    """The same for one layer, by plain loops: greedy by score, then what is left over."""
    found, spare = [], []
    for picture, target in enumerate(targets):
        order = sorted(range(boxes.shape[1]), key=lambda query: -scores[picture, query].item())[: len(target)]
        iou = pairwise_iou_xyxy(cxcywh_to_xyxy(boxes[picture]), cxcywh_to_xyxy(target.boxes))
        hit, extra = [False] * len(target), [0] * len(target)
        for query in order:
            own = [o for o in range(len(target)) if target.labels[o] == classes[picture, query] and iou[query, o] > 0.5]
            free = [o for o in own if not hit[o]]
            if free:
                hit[max(free, key=lambda o: iou[query, o].item())] = True
            elif own:
                extra[max(own, key=lambda o: iou[query, o].item())] += 1
        found += hit
        spare += extra
    return found, spare


def test_found_and_duplicates_equal_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(0)
    targets, layers, num_queries = [], 3, 40
    boxes = torch.zeros(layers, 6, num_queries, 4)
    for picture in range(6):
        count = picture + 1 if picture else 0
        truth = torch.rand(count, 4, generator=generator) * 0.3 + 0.3
        targets.append(Targets(torch.randint(0, 2, (count,), generator=generator), truth))
        near = truth[torch.randint(0, count, (layers, num_queries), generator=generator)] if count else 0.5
        boxes[:, picture] = near + 0.05 * torch.randn(layers, num_queries, 4, generator=generator)
    boxes = boxes.clamp(0.01, 0.99)
    scores = torch.rand(layers, 6, num_queries, generator=generator)
    classes = torch.randint(0, 2, (layers, 6, num_queries), generator=generator)
    found, duplicates = found_and_duplicates(boxes, scores, classes, targets)
    for layer in range(layers):
        expected = searched(boxes[layer], scores[layer], classes[layer], targets)
        assert found[layer].tolist() == expected[0]
        assert duplicates[layer].tolist() == expected[1]
    assert duplicates.sum() > 3
    assert 3 < found.sum() < found.size


@pytest.fixture
def detector(scenes: Path) -> Detector:
    torch.manual_seed(0)
    model = catalogue.create(
        "dab-nano", 5, backbone="test_resnet", num_queries=7, dim=32, num_encoder_layers=1, num_decoder_layers=3
    )
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # queries answer differently, layer by layer
    return Detector(model.eval(), Preprocessing(longer=96), open_dataset(scenes, "val").label_map, name="dab-nano")


def test_over_a_data_set_as_matched_picture_by_picture(detector: Detector, scenes: Path) -> None:
    dataset = open_dataset(scenes, "val")
    study = study_queries(detector, dataset, batch_size=3)
    assert study.boxes.shape == (len(dataset), 7, 4)
    cost = catalogue.criterion_for(detector.model).cost
    place = 0
    for start in (0, 3):  # the same batches, since padding shows through the trunk's convolutions
        samples = [dataset[index] for index in range(start, min(start + 3, len(dataset)))]
        with torch.no_grad():
            seen = detector.model(ImageBatch.from_images([detector.preprocessing(one.image) for one in samples]))
        for offset, sample in enumerate(samples):
            alone = slice(offset, offset + 1)
            matches = match(seen.logits[:, alone], seen.boxes[:, alone], [sample.targets], cost)
            objects = slice(place, place + len(sample.targets))
            for layer in range(len(seen.logits)):
                expected = dict(zip(matches.target[layer].tolist(), matches.query[layer].tolist(), strict=True))
                answers = [expected.get(target, -1) for target in range(len(sample.targets))]
                assert study.answers[layer, objects].tolist() == answers
            assert study.pictures[objects].tolist() == [start + offset] * len(sample.targets)
            place = objects.stop
        np.testing.assert_allclose(study.boxes[start : start + 3], seen.boxes[-1].numpy(), atol=1e-5)
        scores = seen.logits[-1].sigmoid().amax(dim=-1)
        np.testing.assert_allclose(study.scores[start : start + 3], scores.numpy(), atol=1e-5)
    assert place == len(study.objects) == study.answers.shape[1]
    assert len(np.unique(study.answers)) > 3


def test_pictures_are_chosen_evenly_and_told_of(detector: Detector, scenes: Path) -> None:
    dataset, heard = open_dataset(scenes, "val"), []
    study = study_queries(detector, dataset, limit=3, batch_size=2, progress=lambda *numbers: heard.append(numbers))
    ids = [str(record.image_id) for record in dataset.records]
    assert study.image_ids.tolist() == [ids[0], ids[len(ids) // 2], ids[-1]]
    assert heard == [(2, 3), (3, 3)]


def test_classes_are_joined_by_name_and_crowds_left_out(detector: Detector, scenes: Path) -> None:
    dataset = open_dataset(scenes, "val")
    names = dict(enumerate(reversed([name for name in dataset.label_map.names if name != "ball"])))
    detector.label_map = LabelMap.from_categories({**names, 9: "other"})
    dataset.records.is_crowd[0] = True
    study = study_queries(detector, dataset)
    labels = dataset.records.labels
    is_ball = np.array([dataset.label_map.names[label] == "ball" for label in labels])
    kept = ~is_ball & ~dataset.records.is_crowd
    assert len(study.objects) == kept.sum() < len(labels)


def test_a_data_set_without_pictures(detector: Detector, scenes: Path) -> None:
    empty: DetectionDataset = open_dataset(scenes, "val").subset([])
    with pytest.raises(InputError, match="split val has no pictures"):
        study_queries(detector, empty)


def test_what_queries_have_learned_in_each_detector() -> None:
    expected = {
        "detr-nano": ({"query_positions"}, True),
        "conditional-nano": ({"query_positions"}, True),
        "dab-nano": ({"anchors"}, True),
        "dab-r50-3patterns": ({"anchors", "patterns"}, True),
        "deformable-nano": ({"queries"}, True),
        "deformable-two-stage-r50": (set(), False),
        "dino-nano": ({"contents"}, False),
        "stacked-nano": ({"stacks.0.query_positions", "stacks.1.query_positions"}, True),
        "detrove-nano": (set(), False),
    }
    for name, (names, placed) in expected.items():
        config = replace(catalogue.preset(name).config, backbone="test_resnet", dim=32)
        with torch.device("meta"):
            model = catalogue.build(config)
        assert set(learned_queries(model)) == names, name
        assert have_places(model) == placed, name


def test_shapes_of_boxes() -> None:
    boxes = np.array([[0.5, 0.5, 0.05, 0.05], [0.5, 0.5, 0.5, 0.2], [0.5, 0.5, 0.2, 0.5]])
    assert shapes_of(boxes).tolist() == [0, 1, 2]


def test_the_figure_has_a_dot_for_every_box_of_the_queries_shown() -> None:
    figure = draw_usage(hand_made(), num_queries=3)
    squares = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in squares] == ["query 2: 2", "query 1: 1", "query 0: 0"]
    dots = [sum(len(one.get_offsets()) for one in axes.collections) for axes in squares]
    assert dots == [2, 2, 2]


def test_the_page_about_one_detector() -> None:
    content = query_page(hand_made(), "Queries").to_html()
    assert "1 of 4 queries answer for half of the objects; 33% of the objects are answered for by another" in content
    assert (content.count("<svg"), content.count("<img")) == (3, 1)
    proposed = query_page(hand_made(placed=False), "Queries").to_html()
    assert "<img" not in proposed
    assert "Not drawn: this detector" in proposed
    nothing = hand_made(answers=np.zeros((3, 0), dtype=np.int64))
    assert about_queries(nothing) == "There is no object in these pictures that a query could answer for."


def test_what_is_written_about_one_detector(tmp_path: Path) -> None:
    numbers = write_query_study(hand_made(), tmp_path / "out", "Queries")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.html", "study.json", "queries.npz"}
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == numbers
    assert (numbers["objects"], numbers["uses"], numbers["duplicates"]) == (3, [0, 1, 2, 0], [None, 0.5, 1.0])
