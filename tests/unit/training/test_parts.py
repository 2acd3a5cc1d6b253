import pytest
import torch

from detrove.structures import ImageBatch, Targets
from detrove.training.parts import parts_of


def batch(*sizes: tuple[int, int]) -> tuple[ImageBatch, list[Targets]]:
    images = ImageBatch.from_images([torch.full((3, *size), float(index)) for index, size in enumerate(sizes)])
    none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    return images, [Targets(*none, image_id=index) for index in range(len(sizes))]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_every_picture_in_one_part_padded_no_further_than_needed(number: int):
    sizes = [(4, 9), (6, 5), (2, 2), (3, 8), (7, 3)]
    images, targets = batch(*sizes)
    parts = list(parts_of(images, targets, number))
    assert [target.image_id for _, part in parts for target in part] == [0, 1, 2, 3, 4]
    assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 1
    for part, own in parts:
        numbers = [int(target.image_id or 0) for target in own]
        alone = ImageBatch.from_images([torch.full((3, *sizes[number]), float(number)) for number in numbers])
        assert torch.equal(part.pixels, alone.pixels)
        assert torch.equal(part.padding_mask, alone.padding_mask)
        assert torch.equal(part.sizes, alone.sizes)
