"""What several views of one picture have seen becomes one answer: each object once, none lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.inference import Detector
from detrove.inference.tiling import batches_of_one_size, merge, touches_inner_border
from detrove.structures import Detections, LabelMap
from detrove.tiling import Tiling, Window

LABELS = LabelMap.numbered(2)
LEFT, RIGHT, WHOLE = (0, 0, 100, 100), (80, 0, 180, 100), (0, 0, 180, 100)


def seen(*objects: tuple[float, float, float, float, float, int]) -> Detections:
    """Detections of (x1, y1, x2, y2, score, label), by descending score."""
    values = torch.tensor(sorted(objects, key=lambda one: -one[4]), dtype=torch.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].long(), LABELS)


def merged(found: list[Detections], views: list[Window], limit: int = 100) -> list[tuple[float, ...]]:
    result = merge(found, views, (180, 100), limit)
    return [
        (*box, round(score, 3), label)
        for box, score, label in zip(result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True)
    ]


def test_an_object_seen_whole_by_two_tiles_is_one() -> None:
    found = [seen((82, 20, 98, 40, 0.8, 0)), seen((3, 21, 18, 41, 0.9, 0))]
    assert merged(found, [LEFT, RIGHT]) == [(83, 21, 98, 41, 0.9, 0)]


def test_an_object_across_a_border_is_the_one_that_is_not_cut_off() -> None:
    # From x = 85 to 125: the left tile sees 15 pixels of it, with the higher score.
    found = [seen((85, 20, 100, 60, 0.9, 1)), seen((5, 20, 45, 60, 0.7, 1))]
    assert merged(found, [LEFT, RIGHT]) == [(85, 20, 125, 60, 0.7, 1)]


def test_an_object_larger_than_a_tile_is_found_in_the_whole_picture() -> None:
    found = [
        seen((20, 10, 100, 90, 0.9, 0)),
        seen((0, 10, 60, 90, 0.8, 0)),
        seen((20, 10, 140, 90, 0.6, 0), (150, 10, 170, 30, 0.5, 0)),
    ]
    assert merged(found, [LEFT, RIGHT, WHOLE]) == [(20, 10, 140, 90, 0.6, 0), (150, 10, 170, 30, 0.5, 0)]


def test_near_objects_stay_two() -> None:
    # They overlap by an IoU of 0.6, and each is seen by both tiles.
    first, second = (82, 20, 94, 40), (85, 20, 97, 40)
    moved = [(box[0] - 80, box[1], box[2] - 80, box[3]) for box in (first, second)]
    found = [seen((*first, 0.9, 0), (*second, 0.7, 0)), seen((*moved[0], 0.6, 0), (*moved[1], 0.8, 0))]
    assert {one[:4] for one in merged(found, [LEFT, RIGHT])} == {first, second}
    assert len(merged(found, [LEFT, RIGHT])) == 2


def test_a_small_object_in_front_of_a_large_one_stays() -> None:
    found = [seen((40, 40, 60, 60, 0.6, 0)), seen(), seen((10, 10, 150, 90, 0.9, 0))]
    assert len(merged(found, [LEFT, RIGHT, WHOLE])) == 2


def test_another_class_is_another_object() -> None:
    found = [seen((82, 20, 98, 40, 0.8, 0)), seen((2, 20, 18, 40, 0.9, 1))]
    assert len(merged(found, [LEFT, RIGHT])) == 2


def test_a_single_view_comes_back_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, generator=generator) * 80
    boxes = torch.cat([low, low + torch.rand(50, 2, generator=generator) * 30], dim=1)
    scores = torch.linspace(1, 0.5, 50).round(decimals=1)
    one = Detections(boxes, scores, torch.arange(50) % 2, LABELS)
    result = merge([one], [(0, 0, 180, 100)], (180, 100), 100)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(result, name), getattr(one, name))


def test_the_best_are_kept() -> None:
    found = [seen((1, 1, 9, 9, 0.2, 0), (20, 20, 30, 30, 0.9, 0)), seen((50, 50, 60, 60, 0.5, 1))]
    assert [one[4] for one in merged(found, [LEFT, RIGHT], limit=2)] == [0.9, 0.5]


def test_nothing_found() -> None:
    assert merged([seen(), seen()], [LEFT, RIGHT]) == []


def test_only_inner_borders_cut_off() -> None:
    boxes = torch.tensor([[0.0, 0, 50, 50], [50, 50, 100, 100], [30, 30, 40, 40]])
    assert touches_inner_border(boxes, LEFT, (180, 100)).tolist() == [False, True, False]
    assert touches_inner_border(boxes, RIGHT, (180, 100)).tolist() == [True, False, False]
    assert touches_inner_border(boxes, (80, 40, 180, 140), (180, 200)).tolist() == [True, True, False]


def test_only_views_of_one_size_share_a_batch() -> None:
    views = [LEFT, RIGHT, LEFT, WHOLE]
    assert list(batches_of_one_size(views, 2)) == [[LEFT, RIGHT], [LEFT], [WHOLE]]
    assert list(batches_of_one_size(views, 8)) == [[LEFT, RIGHT, LEFT], [WHOLE]]


def spotted(width: int, height: int, spot: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[spot[1] : spot[3], spot[0] : spot[2]] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def calm(detector: Detector) -> Detector:
    """The spotter, which here sees a spot of one pixel in a tile without any."""
    spot_of = detector.model._box

    def box(images, index: int) -> torch.Tensor:
        if bool((images.pixels[index] > 0).any()):
            return spot_of(images, index)
        return torch.tensor([[0.5, 0.5, 0.01, 0.01], [0.5, 0.5, 1.0, 1.0]])

    detector.model._box = box
    return detector


def test_a_spot_too_small_for_the_whole_picture_is_found_in_its_own_pixels(calm: Detector) -> None:
    # At 64 pixels nothing is left of a pixel of 640; a tile of 64 shows it as it is.
    picture = spotted(640, 640, (333, 401, 335, 402))
    found = calm.predict(picture, threshold=0.6, tiles=64)
    assert [333, 401, 335, 402] in found.boxes.tolist()
    assert (found.scores.diff() <= 0).all()


def test_tiles_go_through_the_model_in_batches_without_padding(calm: Detector) -> None:
    calm.predict(spotted(150, 100, (10, 10, 20, 20)), tiles=64, batch_size=4)
    # 3 x 2 tiles, and the whole picture at its own aspect.
    assert calm.model.batch_shapes == [(4, 3, 64, 64), (2, 3, 64, 64), (1, 3, 43, 64)]


@pytest.mark.parametrize("size", [(64, 64), (64, 33), (20, 64)])
def test_a_picture_no_larger_than_a_tile_gives_the_same_bits(detector: Detector, size: tuple[int, int]) -> None:
    pictures = [spotted(*size, (3, 5, 17, 20)), spotted(60, 50, (3, 5, 30, 20))]
    plain, tiled = detector.predict(pictures, threshold=0), detector.predict(pictures, threshold=0, tiles=64)
    for one, other in zip(plain, tiled, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
    shapes = detector.model.batch_shapes
    assert shapes[0] == shapes[1]


def test_large_and_small_pictures_keep_their_order(calm: Detector) -> None:
    spots = [(3, 5, 17, 20), (70, 5, 90, 20), (10, 10, 20, 20)]
    pictures = [spotted(64, 64, spots[0]), spotted(120, 60, spots[1]), spotted(40, 40, spots[2])]
    found = calm.predict(pictures, threshold=0.8, tiles=64)
    for one, spot in zip(found, spots, strict=True):
        assert list(spot) in one.boxes.round().tolist()


def test_a_detector_that_was_trained_on_tiles_looks_at_them_unless_told_otherwise(calm: Detector) -> None:
    picture = spotted(128, 64, (10, 10, 20, 20))
    calm.tiling = Tiling(64, 0.0, whole=False)
    calm.predict(picture)
    calm.detect([picture, picture])
    assert calm.model.batch_shapes == [(2, 3, 64, 64)] * 3
    calm.model.batch_shapes.clear()
    calm.predict(picture, tiles=0)
    assert calm.model.batch_shapes == [(1, 3, 32, 64)]


def test_as_many_detections_as_pictures_of_a_tiles_size_would_give(calm: Detector) -> None:
    # The spotter gives three a view, all of them apart: 2 x 2 tiles' area keeps twelve of what 3 x 3 tiles give.
    calm.tiling = Tiling(64, 0.5, whole=False)
    assert len(calm.detect([spotted(128, 128, (10, 10, 12, 12))])[0]) <= 12
