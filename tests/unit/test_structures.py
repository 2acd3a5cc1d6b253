"""What crosses borders: batches, targets, label maps, detections, preprocessing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.errors import InputError, nearest
from detrove.structures import Detections, ImageBatch, LabelMap, Preprocessing, Targets


class TestImageBatch:
    def test_pads_bottom_and_right_to_the_largest_and_no_further(self):
        images = [torch.full((3, 4, 7), 1.0), torch.full((3, 6, 5), 2.0)]
        batch = ImageBatch.from_images(images)
        assert batch.pixels.shape == (2, 3, 6, 7)
        assert len(batch) == 2
        assert batch.sizes.tolist() == [[4, 7], [6, 5]]
        for index, image in enumerate(images):
            height, width = image.shape[1:]
            assert torch.equal(batch.pixels[index, :, :height, :width], image)
            assert not batch.padding_mask[index, :height, :width].any()
            assert batch.padding_mask[index].sum() == 6 * 7 - height * width
            assert (batch.pixels[index][:, batch.padding_mask[index]] == 0).all()

    def test_keeps_the_type_and_casts_pixels_only(self):
        batch = ImageBatch.from_images([torch.zeros(3, 2, 2, dtype=torch.float64)])
        assert batch.pixels.dtype == torch.float64
        cast = batch.to(torch.float16)
        assert (cast.pixels.dtype, cast.padding_mask.dtype, cast.sizes.dtype) == (
            torch.float16,
            torch.bool,
            torch.int64,
        )

    @pytest.mark.parametrize("shape", [(1, 5, 5), (5, 5), (1, 3, 5, 5)])
    def test_refuses_what_is_no_picture(self, shape):
        with pytest.raises(InputError, match=r"\(3, h, w\)"):
            ImageBatch.from_images([torch.zeros(shape)])

    def test_refuses_nothing(self):
        with pytest.raises(InputError, match="no pictures"):
            ImageBatch.from_images([])


def test_targets_select_and_cast():
    targets = Targets(
        labels=torch.tensor([0, 1, 2]),
        boxes=torch.rand(3, 4),
        is_crowd=torch.tensor([False, True, False]),
        area=torch.tensor([1.0, 2.0, 3.0]),
        image_id=7,
    )
    kept = targets.select(~torch.tensor([False, True, False]))
    assert kept.labels.tolist() == [0, 2]
    assert kept.area is not None
    assert kept.area.tolist() == [1.0, 3.0]
    assert (len(kept), kept.image_id) == (2, 7)
    cast = targets.to(torch.float64)
    assert (cast.boxes.dtype, cast.labels.dtype) == (torch.float64, torch.int64)


class TestLabelMap:
    def test_from_sparse_ids(self):
        labels = LabelMap.from_categories({90: "toothbrush", 1: "person"})
        assert labels.names == ["person", "toothbrush"]
        assert (labels.slot_of_id(90), labels.slot_of_id(2)) == (1, None)
        assert (labels.slot_of_name("person"), labels.slot_of_name("dog")) == (0, None)

    def test_empty_slots_survive_json(self):
        labels = LabelMap((None, *LabelMap.from_categories({3: "car"}).entries, None))
        again = LabelMap.from_json(json.loads(json.dumps(labels.to_json())))
        assert again == labels
        assert again.names == ["", "car", ""]
        assert len(again) == 3

    def test_numbered(self):
        assert LabelMap.numbered(3).names == ["0", "1", "2"]


class TestDetections:
    @pytest.fixture
    def detections(self) -> Detections:
        return Detections(
            boxes=torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 2.0, 3.0]]),
            scores=torch.tensor([0.9, 0.6, 0.5]),
            labels=torch.tensor([1, 0, 2]),
            label_map=LabelMap((*LabelMap.from_categories({4: "cat", 9: "dog"}).entries, None)),
        )

    def test_coco_results_leave_out_empty_slots(self, detections):
        results = detections.to_coco(17)
        assert [result["category_id"] for result in results] == [9, 4]
        assert results[0]["bbox"] == [10.0, 20.0, 20.0, 40.0]
        assert results[0]["image_id"] == 17
        assert results[0]["score"] == pytest.approx(0.9)

    def test_threshold_is_one_number_or_one_a_class(self, detections):
        assert detections.above(0.6).names == ["dog", "cat"]
        assert detections.above(torch.tensor([0.7, 0.95, 0.1])).labels.tolist() == [2]


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((500, 1000), (666, 1332)), ((800, 1000), (800, 1000))],
    )
    def test_published_sizes(self, size, expected):
        assert Preprocessing(longer=1333, shorter=800).target_size(*size) == expected

    @pytest.mark.parametrize(("size", "expected"), [((480, 640), (240, 320)), ((1, 1000), (1, 320))])
    def test_longer_side_only(self, size, expected):
        assert Preprocessing(longer=320).target_size(*size) == expected

    def test_normalises(self):
        picture = Image.fromarray(np.full((4, 6, 3), (255, 0, 51), dtype=np.uint8))
        pixels = Preprocessing(longer=6, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))(picture)
        assert pixels.shape == (3, 4, 6)
        torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -2.0, -0.3]))

    def test_survives_json(self):
        preprocessing = Preprocessing(longer=640, shorter=320, resize_filter="bicubic")
        assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing

    def test_refuses_an_unknown_filter_and_no_size(self):
        with pytest.raises(InputError, match="unknown resize filter 'cubic'"):
            Preprocessing(resize_filter="cubic")
        with pytest.raises(InputError, match="must be positive"):
            Preprocessing(longer=0)


def test_nearest_names_first_then_all():
    assert nearest("resnet5O", ["resnet50", "vit"]) == "did you mean resnet50?"
    assert nearest("q", ["a", "b"]) == "choose from a, b"
