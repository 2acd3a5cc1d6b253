"""`Detector.predict`: every source, every threshold, every batch size, the same boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.structures import Detections, LabelMap, Preprocessing

SPOT, WHOLE = torch.tensor(2.0).sigmoid().item(), torch.tensor(0.5).sigmoid().item()


def picture(height: int, width: int, spot: tuple[int, int, int, int]) -> np.ndarray:
    array = np.zeros((height, width, 3), dtype=np.uint8)
    x1, y1, x2, y2 = spot
    array[y1:y2, x1:x2] = 255
    return array


PICTURES = [
    picture(32, 64, (8, 4, 24, 20)),
    picture(64, 32, (2, 40, 30, 64)),
    picture(128, 128, (0, 0, 64, 32)),
    picture(16, 16, (4, 4, 12, 8)),
]
SPOTS = [[8, 4, 24, 20], [2, 40, 30, 64], [0, 0, 64, 32], [4, 4, 12, 8]]


def test_one_picture_gives_one_detections_in_its_own_pixels(detector: Detector) -> None:
    found = detector.predict(PICTURES[2], threshold=0)
    assert isinstance(found, Detections)
    assert found.boxes[0].tolist() == SPOTS[2]
    assert found.boxes[1].tolist() == [0, 0, 128, 128]
    assert found.names[:2] == ["spot", "picture"]
    torch.testing.assert_close(found.scores[:2], torch.tensor([SPOT, WHOLE]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_do_not_change_what_is_found(detector: Detector, batch_size: int) -> None:
    found = detector.predict(PICTURES, batch_size=batch_size)
    assert isinstance(found, list)
    assert [one.boxes[0].tolist() for one in found] == SPOTS
    assert max(shape[0] for shape in detector.model.batch_shapes) == min(batch_size, 4)


def test_batches_are_padded_together(detector: Detector) -> None:
    detector.predict(PICTURES[:2], batch_size=2)
    assert detector.model.batch_shapes == [(2, 3, 64, 64)]


def test_a_folder_gives_a_list_in_the_order_of_names(detector: Detector, tmp_path: Path) -> None:
    for index, array in enumerate(PICTURES):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    found = detector.predict(tmp_path)
    assert [one.boxes[0].tolist() for one in found] == SPOTS
    assert [one.boxes[0].tolist() for one in detector.predict([tmp_path / "3.png"])] == SPOTS[3:]


def test_thresholds(detector: Detector) -> None:
    assert detector.predict(PICTURES[0]).names == ["spot", "picture"]
    assert detector.predict(PICTURES[0], threshold=0.7).names == ["spot"]
    detector.thresholds = torch.tensor([0.95, 0.1])
    assert detector.predict(PICTURES[0]).names == ["picture"]
    assert detector.predict(PICTURES[0], threshold=0.7).names == ["spot"]
    assert len(detector.predict(PICTURES[0], threshold=1)) == 0
    assert len(detector.predict(PICTURES[0], threshold=0)) == 3


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_outside_its_range(detector: Detector, threshold: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        detector.predict(PICTURES[0], threshold=threshold)


def test_a_batch_of_nothing(detector: Detector) -> None:
    assert detector.predict([]) == []
    with pytest.raises(InputError, match="batch_size"):
        detector.predict(PICTURES, batch_size=0)


def test_predicting_evaluates_and_leaves_the_mode_as_it_was(detector: Detector) -> None:
    detector.model.train()
    detector.predict(PICTURES[0])
    assert detector.model.was_training == [False]
    assert detector.model.training


def test_detect_keeps_every_score(detector: Detector) -> None:
    pictures = [Image.fromarray(array) for array in PICTURES[:2]]
    assert [len(found) for found in detector.detect(pictures)] == [3, 3]


def test_thresholds_must_fit_the_labels() -> None:
    with pytest.raises(ValueError, match="class slots"):
        Detector(torch.nn.Linear(1, 1), Preprocessing(), LabelMap.numbered(3), thresholds=torch.zeros(2))


def test_it_says_what_it_is(detector: Detector) -> None:
    assert repr(detector) == "Detector(spotter, classes: spot, picture)"
    detector.label_map = LabelMap.numbered(80)
    assert "80 in all" in repr(detector)
