"""Drawn boxes, tags and heat maps, looked at pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.drawing import (
    PALETTE,
    SMALLEST_FONT,
    VERMILION,
    Mark,
    class_colour,
    draw_cross,
    draw_detections,
    draw_heat_map,
    draw_marks,
    draw_signed_map,
    draw_truth,
)
from detrove.structures import Detections, LabelMap

GREY = (128, 128, 128)
LABELS = LabelMap.from_categories({1: "cat", 2: "dog"})


def grey(width: int = 320, height: int = 240) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    """(H, W) bool: where the pictures differ."""
    return (np.asarray(before) != np.asarray(after)).any(axis=-1)


def detections(*boxes: tuple[float, float, float, float], labels: list[int] | None = None) -> Detections:
    count = len(boxes)
    scores = torch.linspace(0.9, 0.6, count)
    return Detections(torch.tensor(boxes).reshape(-1, 4), scores, torch.tensor(labels or [0] * count), LABELS)


def test_boxes_are_drawn_in_the_colour_of_their_class_on_a_copy():
    picture = grey()
    drawn = draw_detections(picture, detections((50, 80, 150, 180), (200, 80, 300, 180), labels=[0, 1]))
    assert not changed(picture, grey()).any()
    assert drawn.getpixel((100, 80)) == class_colour(0)
    assert drawn.getpixel((250, 180)) == class_colour(1)
    assert drawn.getpixel((100, 130)) == GREY


def test_no_detections_leave_the_picture():
    assert not changed(grey(), draw_detections(grey(), detections())).any()


def test_truth_is_dashed_and_detections_are_solid():
    box = (50.0, 80.0, 250.0, 180.0)
    solid = draw_detections(grey(), detections(box))
    dashed = draw_truth(grey(), np.array([box]), [0], LABELS.names)
    lower_side = [(x, 180) for x in range(60, 240)]
    assert {solid.getpixel(point) for point in lower_side} == {class_colour(0)}
    share = np.mean([dashed.getpixel(point) == class_colour(0) for point in lower_side])
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("size", [(320, 240), (1600, 1200), (40, 30), (900, 20)])
@pytest.mark.parametrize("corner", ["top left", "bottom right"])
def test_tags_stay_inside_the_picture_and_can_be_read(size, corner):
    width, height = size
    box = (1.0, 1.0, 8.0, 8.0) if corner == "top left" else (width - 9.0, height - 9.0, width - 2.0, height - 2.0)
    untagged = draw_marks(grey(*size), [Mark(box, VERMILION)])
    tagged = draw_marks(grey(*size), [Mark(box, VERMILION, "a rather long name 0.98")])
    tag = changed(untagged, tagged)
    rows, columns = np.nonzero(tag)
    # A whole tag is four pixels higher than its letters; one cut off by the border would be lower.
    assert rows.max() - rows.min() + 1 >= SMALLEST_FONT + 4
    assert columns.max() - columns.min() > 15
    letters = np.asarray(tagged)[tag]
    assert (letters == VERMILION).all(axis=-1).sum() > 100
    assert (letters < 60).all(axis=-1).sum() > 10


def test_a_tag_without_room_is_left_out():
    drawn = np.asarray(draw_marks(grey(12, 12), [Mark((2.0, 2.0, 9.0, 9.0), VERMILION, "elephant")]))
    assert tuple(drawn[5, 5]) == GREY


def test_tags_of_neighbours_do_not_cover_each_other():
    text = "cat 0.90"
    alone = draw_marks(grey(), [Mark((100.0, 100.0, 200.0, 200.0), VERMILION, text)])
    both = draw_marks(
        grey(),
        [Mark((100.0, 100.0, 200.0, 200.0), VERMILION, text), Mark((102.0, 101.0, 202.0, 201.0), VERMILION, text)],
    )

    def tag_area(picture: Image.Image) -> int:
        return int((np.asarray(picture) == VERMILION).all(axis=-1).sum())

    line = draw_marks(grey(), [Mark((100.0, 100.0, 200.0, 200.0), VERMILION)])
    assert tag_area(both) > tag_area(alone) + 0.7 * (tag_area(alone) - tag_area(line))


def test_boxes_follow_a_resized_copy():
    drawn = draw_detections(grey(100, 50), detections((10, 20, 60, 40)), longer=400)
    assert drawn.size == (400, 200)
    assert drawn.getpixel((200, 160)) == class_colour(0)
    assert drawn.getpixel((40, 120)) == class_colour(0)


def test_lines_grow_with_the_picture():
    def thickness(size: int) -> int:
        box = (size * 0.2, size * 0.2, size * 0.8, size * 0.8)
        column = np.asarray(draw_marks(grey(size, size), [Mark(box, VERMILION)]))[:, size // 2]
        return int((column == VERMILION).all(axis=-1).sum()) // 2

    assert thickness(100) == 1
    assert thickness(3200) == 10


def test_boxes_beyond_the_border_or_inside_out_do_no_harm():
    marks = [
        Mark((-50.0, -50.0, 500.0, 500.0), VERMILION, "large"),
        Mark((80.0, 80.0, 20.0, 20.0), VERMILION, dashed=True),
    ]
    assert draw_marks(grey(), marks).size == (320, 240)


def test_colours_repeat_in_other_lightness():
    assert len({class_colour(slot) for slot in range(3 * len(PALETTE))}) == 3 * len(PALETTE)
    assert class_colour(0) == class_colour(3 * len(PALETTE))


def test_heat_map_is_brightest_where_the_value_is_largest():
    values = np.zeros((3, 4))
    values[0, 3] = 2.0
    picture = Image.new("RGB", (400, 300), (60, 60, 60))
    drawn = np.asarray(draw_heat_map(picture, values), dtype=float)
    assert drawn.shape == (300, 400, 3)
    assert (drawn[250, 50] == 60).all()
    assert drawn[10, 390, 0] > 150
    # Warm: more red than blue.
    assert drawn[10, 390, 0] > drawn[10, 390, 2] + 50


def test_heat_map_of_nothing_is_the_grey_picture():
    picture = Image.new("RGB", (8, 6), (200, 10, 10))
    drawn = np.asarray(draw_heat_map(picture, np.zeros((2, 2))))
    assert (drawn == np.asarray(picture.convert("L"))[..., None]).all()


def test_signed_maps_differ_in_hue_and_share_a_scale() -> None:
    grey = Image.new("RGB", (40, 20), (128, 128, 128))
    values = np.array([[-2.0, 0.0, 0.0, 2.0]])
    pixels = np.asarray(draw_signed_map(grey, values)).astype(int)
    left, middle, right = pixels[10, 1], pixels[10, 20], pixels[10, 38]
    assert left[2] > left[0] + 60
    assert right[0] > right[2] + 60
    assert np.ptp(middle) < 5
    faint = np.asarray(draw_signed_map(grey, values, limit=20.0)).astype(int)
    assert abs(faint[10, 38] - middle).sum() < abs(right - middle).sum()
    half = np.asarray(draw_signed_map(grey, values, limit=4.0)).astype(int)
    np.testing.assert_allclose(half[10, 38] - middle, (right - middle) / 2, atol=2)
    assert (np.asarray(draw_signed_map(grey, np.zeros((2, 2)))) == pixels[10, 20]).all()


def test_a_cross_marks_its_pixel_and_leaves_the_original() -> None:
    white = Image.new("RGB", (200, 100), "white")
    marked = np.asarray(draw_cross(white, 60, 40))
    rows, columns = np.nonzero((marked != 255).any(axis=-1))
    assert (rows.min() + rows.max()) / 2 == pytest.approx(40, abs=1)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(60, abs=1)
    assert (np.asarray(white) == 255).all()
