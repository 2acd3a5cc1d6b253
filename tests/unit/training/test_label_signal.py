"""Whether boxes belong to their pictures: right ones are told from others', wrong ones are not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from detrove.data import DetectionDataset, open_dataset
from detrove.data.scenes import make_scenes
from detrove.nn.backbone import Backbone
from detrove.structures import Preprocessing
from detrove.training.label_signal import FEWEST_BOXES, apart, label_signal

PICTURES = Preprocessing(longer=160)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, sizes={"train": 50})
    return open_dataset(folder, "train")


@pytest.fixture(scope="module")
def trunk() -> Backbone:
    """Random, but wide enough to tell shapes of one colour from a background."""
    torch.manual_seed(0)
    return Backbone("mobilenetv2_100", (8, 16, 32), frozen=False)


def with_boxes(data: DetectionDataset, xywh: np.ndarray) -> DetectionDataset:
    return data.with_annotations(dataclasses.replace(data.annotations, xywh=xywh))


def test_right_boxes_are_told_apart_and_wrong_ones_are_not(scenes: DetectionDataset, trunk: Backbone) -> None:
    xywh = scenes.annotations.xywh
    width, height = scenes.records[0].width, scenes.records[0].height
    anywhere = np.random.default_rng(1).random((len(xywh), 2)) * (np.array([width, height]) - xywh[:, 2:])
    right = label_signal(trunk, scenes, PICTURES, seed=0, seconds=60)
    wrong = label_signal(
        trunk, with_boxes(scenes, np.concatenate((anywhere, xywh[:, 2:]), axis=1)), PICTURES, seed=0, seconds=60
    )
    assert right is not None
    assert wrong is not None
    assert right.num_boxes >= FEWEST_BOXES
    assert right.num_pictures <= 50
    assert right.share > 0.65
    assert wrong.share < 0.6
    assert trunk.training
    assert label_signal(trunk, scenes, PICTURES, seed=0, seconds=60) == right


def test_nothing_is_said_of_few_boxes_or_in_no_time(scenes: DetectionDataset, trunk: Backbone) -> None:
    assert label_signal(trunk, scenes, PICTURES, seed=0, seconds=0.0) is None
    assert label_signal(trunk, scenes.subset(range(8)), PICTURES, seed=0, seconds=60) is None


def test_only_boxes_that_overlap_none_of_the_others_are_asked_about() -> None:
    mine = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.7, 0.7]])
    others = torch.tensor([[0.05, 0.05, 0.2, 0.2], [0.8, 0.1, 0.9, 0.2], [0.69, 0.69, 0.9, 0.9]])
    kept, kept_others = apart(mine, others)
    assert kept.tolist() == mine[1:].tolist()
    assert kept_others.tolist() == others[1:].tolist()
    assert [len(part) for part in apart(mine, torch.zeros(0, 4))] == [2, 0]
