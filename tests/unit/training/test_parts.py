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
    sizes = [(40, 90), (60, 50), (20, 20), (33, 80), (70, 30)]
    images, targets = batch(*sizes)
    parts = list(parts_of(images, targets, number))
    assert [target.image_id for _, part in parts for target in part] == [0, 1, 2, 3, 4]
    assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 1
    for part, own in parts:
        numbers = [int(target.image_id or 0) for target in own]
        alone = ImageBatch.from_images([torch.full((3, *sizes[number]), float(number)) for number in numbers])
        height, width = alone.pixels.shape[-2:]
        assert torch.equal(part.pixels[..., :height, :width], alone.pixels)
        assert torch.equal(part.padding_mask[:, :height, :width], alone.padding_mask)
        assert torch.equal(part.sizes, alone.sizes)
        whole = images.pixels.shape[-2:] if number == 1 else (-(-height // 32) * 32, -(-width // 32) * 32)
        assert tuple(part.pixels.shape[-2:]) == tuple(map(min, whole, images.pixels.shape[-2:]))
        assert part.padding_mask[:, height:].all()
        assert part.padding_mask[:, :, width:].all()
