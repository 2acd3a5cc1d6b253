"""Made splits: shares, classes, seeds, and look-alikes that stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrove.data import open_dataset
from detrove.data.annotations import Annotations, AnnotationsBuilder
from detrove.data.splits import connected, look_alikes, make_splits
from detrove.errors import InputError


def toy(num_pictures: int, classes_of: dict[int, list[int]]) -> Annotations:
    """Pictures without files; `classes_of`: picture -> category ids of its boxes."""
    builder = AnnotationsBuilder("line")
    for picture in range(num_pictures):
        builder.add_picture(f"{picture}.jpg", picture, 10, 10, "labels")
        for category_id in classes_of.get(picture, []):
            builder.add_box(picture, category_id, (1, 1, 5, 5), 1)
    return builder.finish({1: "common", 2: "rare"})


def test_every_picture_is_in_one_split_and_classes_in_their_shares() -> None:
    written = toy(200, {picture: [1, 1] + [2] * (picture % 20 == 0) for picture in range(150)})
    parts = make_splits(written, [0.8, 0.1, 0.1], seed=3, groups=np.arange(200))
    assert sorted(index for part in parts for index in part) == list(range(200))
    assert [len(part) for part in parts] == pytest.approx([160, 20, 20], abs=3)
    for category_id, total in ((1, 300), (2, 8)):
        counts = [int((written.take(part).category_ids == category_id).sum()) for part in parts]
        assert counts == pytest.approx([0.8 * total, 0.1 * total, 0.1 * total], abs=max(1, 0.02 * total))


def test_the_same_seed_makes_the_same_splits() -> None:
    written, groups = toy(50, {picture: [1] for picture in range(50)}), np.arange(50)
    first, again, other = (make_splits(written, [0.5, 0.5], seed, groups) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 12, 60)
    written = toy(60, {picture: generator.integers(1, 3, 2).tolist() for picture in range(60)})
    parts = make_splits(written, [0.7, 0.2, 0.1], seed, groups)
    assert all(parts)
    homes = [{int(groups[index]) for index in part} for part in parts]
    assert sum(map(len, homes)) == len(set(groups.tolist()))


def test_as_many_groups_as_splits_give_each_one() -> None:
    parts = make_splits(toy(4, {0: [1], 1: [1]}), [0.98, 0.01, 0.01], groups=np.array([0, 0, 1, 2]))
    assert sorted(map(len, parts)) == [1, 1, 2]


@pytest.mark.parametrize("ratio", [[1.0], [0.5, 0.0], [0.5, -1], [0.5, float("nan")]])
def test_bad_ratios(ratio: list[float]) -> None:
    with pytest.raises(InputError, match="two or more positive shares"):
        make_splits(toy(4, {}), ratio, groups=np.arange(4))


def test_too_few_groups() -> None:
    with pytest.raises(InputError, match="4 pictures that look like 1 cannot make 2 splits"):
        make_splits(toy(4, {}), [0.5, 0.5], groups=np.zeros(4))


def test_connected() -> None:
    assert connected(6, [(4, 5), (0, 2), (2, 4)]).tolist() == [0, 1, 0, 3, 0, 0]


def test_planted_duplicates_are_grouped_and_not_leaked(shared: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared / "data" / "coco-mini", "val")
    sources = [dataset.annotations.path(index) for index in range(30)]
    copies = [tmp_path / f"{index}.jpg" for index in range(10)]
    for source, copy in zip(sources, copies, strict=False):
        Image.open(source).convert("RGB").resize((200, 150)).save(copy)
    groups = look_alikes([str(path) for path in (*sources, *copies)])
    assert groups.tolist() == [*range(30), *range(10)]


def test_real_set_keeps_its_ratio(shared: Path) -> None:
    written = open_dataset(shared / "data" / "coco-mini", "train").annotations
    parts = make_splits(written, [0.8, 0.1, 0.1], groups=np.arange(len(written)))
    assert [len(part) / len(written) for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    person = [int((written.take(part).category_ids == 1).sum()) for part in parts]
    assert np.array(person) / sum(person) == pytest.approx([0.8, 0.1, 0.1], abs=0.1)
