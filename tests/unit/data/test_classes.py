"""Classes renamed, merged and selected, on annotations and on opening."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import write_voc

from detrove.data import open_dataset
from detrove.data.classes import rename_classes, select_classes
from detrove.errors import InputError


def test_renaming_keeps_ids_and_boxes(tmp_path: Path) -> None:
    before = open_dataset(write_voc(tmp_path), "train").annotations
    after = rename_classes(before, {"dog": "hound"})
    assert after.categories == {1: "bee", 2: "cat", 3: "hound"}
    np.testing.assert_array_equal(after.category_ids, before.category_ids)
    np.testing.assert_array_equal(after.xywh, before.xywh)
    assert before.categories[3] == "dog"


def test_two_classes_of_one_name_become_one(tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path), "train", rename={"dog": "bee"})
    assert dataset.label_map.to_json() == [{"id": 1, "name": "bee"}, {"id": 2, "name": "cat"}]
    assert dataset.records[0].labels.tolist() == [0, 0]
    both = open_dataset(tmp_path, "train", rename={"dog": "animal", "bee": "animal"})
    assert both.label_map.names == ["animal", "cat"]


def test_names_may_be_exchanged(tmp_path: Path) -> None:
    written = open_dataset(write_voc(tmp_path), "train").annotations
    assert rename_classes(written, {"dog": "bee", "bee": "dog"}).categories == {1: "dog", 2: "cat", 3: "bee"}


def test_a_selection_keeps_every_picture(tmp_path: Path) -> None:
    written = open_dataset(write_voc(tmp_path), "train").annotations
    chosen = select_classes(written, ["bee"])
    assert (len(chosen), chosen.num_boxes, chosen.categories) == (1, 1, {1: "bee"})
    assert select_classes(written, ["cat"]).num_boxes == 0
    assert open_dataset(tmp_path, "val", classes=["cat"]).label_map.names == ["cat"]


def test_renaming_comes_before_the_selection(tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path), "train", classes=["pet"], rename={"dog": "pet", "cat": "pet"})
    assert (dataset.label_map.names, len(dataset.records[0].labels)) == (["pet"], 1)


def test_unknown_names(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with pytest.raises(InputError, match="no class 'dgo' in the data set: did you mean dog"):
        open_dataset(tmp_path, "train", classes=["dgo"])
    with pytest.raises(InputError, match="no class 'dgo'"):
        open_dataset(tmp_path, "train", rename={"dgo": "x"})
    with pytest.raises(InputError, match="no class is chosen"):
        open_dataset(tmp_path, "train", classes=[])
