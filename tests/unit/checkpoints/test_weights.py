"""Weights go in whole or not at all, and what did not fit is said on both sides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.checkpoints import HeadReport, LoadReport, fit_heads, load_weights
from detrove.errors import InputError
from detrove.evaluation.classes import categories_of_slots
from detrove.structures import Category, LabelMap


class Small(nn.Module):
    def __init__(self, num_classes: int = 3, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.class_head = nn.Linear(width, num_classes)
        self.box_head = nn.Linear(width, 4)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_all_keys_are_copied_and_reported() -> None:
    source, model = Small(), Small()
    report = load_weights(model, source.state_dict())
    assert report == LoadReport(tuple(source.state_dict()), (), ())
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_half_precision_weights_become_the_models_type() -> None:
    source, model = Small().half(), Small()
    load_weights(model, source.state_dict())
    assert model.box_head.weight.dtype == torch.float32
    assert torch.equal(model.box_head.weight, source.box_head.weight.float())


def test_other_classes_are_refused_with_the_remedy_and_nothing_is_changed() -> None:
    model = Small(num_classes=3)
    before = copied(model)
    with pytest.raises(InputError, match="--ignore-heads") as caught:
        load_weights(model, Small(num_classes=91).state_dict(), source="coco.safetensors")
    assert "class_head.weight (91, 4) for (3, 4)" in str(caught.value)
    assert str(caught.value).startswith("coco.safetensors: ")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_ignoring_heads_takes_the_rest() -> None:
    source, model = Small(num_classes=91), Small(num_classes=3)
    before = copied(model)
    report = load_weights(model, source.state_dict(), ignore_heads=True)
    assert report.missing == report.unexpected == ("class_head.weight", "class_head.bias")
    assert torch.equal(model.class_head.weight, before["class_head.weight"])
    assert torch.equal(model.box_head.weight, source.box_head.weight)
    assert torch.equal(model.layers[1].weight, source.layers[1].weight)


def test_heads_of_the_same_shape_are_left_out_too() -> None:
    """Three classes of blood cells say nothing about three classes of traffic signs."""
    source, model = Small(), Small()
    before = copied(model)
    load_weights(model, source.state_dict(), ignore_heads=True)
    assert torch.equal(model.class_head.weight, before["class_head.weight"])


def test_a_mismatch_lists_both_sides_in_one_line() -> None:
    tensors = {f"transformer.layers.{i}.weight": torch.zeros(1) for i in range(20)}
    with pytest.raises(InputError) as caught:
        load_weights(Small(), tensors)
    message = str(caught.value)
    assert "8 keys of the model are missing in the weights (layers.0.weight, layers.0.bias," in message
    assert "20 keys of the weights are unknown to the model (transformer.layers.0.weight," in message
    assert "transformer.layers.7.weight, and 12 more)" in message
    assert "transformer.layers.8.weight" not in message
    assert "--ignore-heads" not in message
    assert "\n" not in message


def test_ignoring_heads_still_refuses_another_model() -> None:
    with pytest.raises(InputError, match=r"layers\.2\.weight"):
        load_weights(Small(depth=2), Small(depth=3).state_dict(), ignore_heads=True)


def test_one_name_fills_a_shared_tensor() -> None:
    model = Small()
    model.layers[1] = model.layers[0]
    tensors = {key: value + 1 for key, value in model.state_dict().items() if not key.startswith("layers.1")}
    load_weights(model, tensors)
    assert torch.equal(model.layers[1].weight, tensors["layers.0.weight"])


def labels(*names: str | None) -> LabelMap:
    """Category ids are the slots, as in an official head."""
    return LabelMap(tuple(None if name is None else Category(slot, name) for slot, name in enumerate(names)))


def rows_of_heads(num_rows: int, start: int = 0) -> dict[str, torch.Tensor]:
    """A weight and a bias whose rows hold their own number."""
    rows = torch.arange(start, start + num_rows, dtype=torch.float32)
    return {"class_head.weight": rows[:, None].expand(-1, 4).clone(), "class_head.bias": rows.clone()}


def numbers(tensors: dict[str, torch.Tensor], key: str = "class_head") -> list[int]:
    assert torch.equal(tensors[f"{key}.weight"][:, 0], tensors[f"{key}.bias"])
    return [int(value) for value in tensors[f"{key}.bias"]]


def test_rows_follow_their_names() -> None:
    offered, own = rows_of_heads(3), rows_of_heads(4, start=100)
    fitted, report = fit_heads(offered, own, labels("car", "person", "bus"), labels("die", "bus", "star", "car"))
    assert numbers(fitted) == [100, 2, 102, 0]
    assert report == HeadReport(kept=("bus", "car"), new=("die", "star"), left=("person",))


def test_the_row_of_no_object_stays_the_last() -> None:
    fitted, _ = fit_heads(rows_of_heads(3), rows_of_heads(5, start=100), labels("a", "b"), labels("x", "b", "y", "z"))
    assert numbers(fitted) == [100, 1, 102, 103, 2]


def test_nothing_given_is_changed() -> None:
    offered, own = rows_of_heads(2), rows_of_heads(2, start=100)
    fit_heads(offered, own, labels("a", "b"), labels("b", "a"))
    assert numbers(offered) == [0, 1]
    assert numbers(own) == [100, 101]


def test_slots_by_category_id_fit_contiguous_classes() -> None:
    """As the official COCO heads: 91 slots by raw category id, some of them empty, and "no object"."""
    names: list[str | None] = [None] * 91
    names[1], names[17], names[18], names[24] = "person", "cat", "dog", "zebra"
    target = LabelMap.from_categories({1: "zebra", 2: "cat", 3: "dog"})
    fitted, report = fit_heads(rows_of_heads(92), rows_of_heads(4, start=100), labels(*names), target)
    assert numbers(fitted) == [24, 17, 18, 91]
    assert report == HeadReport(("zebra", "cat", "dog"), (), ("person",))


def test_empty_slots_of_the_model_stay_its_own() -> None:
    fitted, report = fit_heads(rows_of_heads(2), rows_of_heads(3, start=100), labels("a", "b"), labels("b", None, "a"))
    assert numbers(fitted) == [1, 101, 0]
    assert report == HeadReport(("b", "a"), (), ())


def test_of_several_classes_of_one_name_the_same_id_is_meant_else_the_first() -> None:
    twice = labels("cat", "dog", "cat")
    target = LabelMap((Category(2, "cat"), Category(7, "cat"), Category(0, "dog")))
    fitted, _ = fit_heads(rows_of_heads(3), rows_of_heads(3, start=100), twice, target)
    assert numbers(fitted) == [2, 0, 1]


def test_names_are_joined_as_evaluation_joins_them() -> None:
    known, target = labels("Cat", "dog", "cat"), labels("cat", "horse", "Dog", "dog")
    categories = [{"id": slot, "name": name} for slot, name in enumerate(target.names)]
    joined = categories_of_slots(known, categories)
    fitted, _ = fit_heads(rows_of_heads(3), rows_of_heads(4, start=100), known, target)
    assert numbers(fitted) == [joined.index(slot) if slot in joined else 100 + slot for slot in range(4)]


def test_rows_that_stand_for_no_class_stay_where_they_are() -> None:
    offered = {key.replace("_head", f"_heads.{i}"): value for i in range(2) for key, value in rows_of_heads(2).items()}
    own = {key: torch.full((3, *value.shape[1:]), 100.0) for key, value in offered.items()}
    unnamed = {"class_heads.1.weight", "class_heads.1.bias"}
    fitted, _ = fit_heads(offered, own, labels("a", "b"), labels("x", "b", "a"), unnamed)
    assert numbers(fitted, "class_heads.0") == [100, 1, 0]
    assert numbers(fitted, "class_heads.1") == [0, 1, 100]


def test_a_head_under_several_names_stays_one_tensor() -> None:
    offered, own = rows_of_heads(2), rows_of_heads(3, start=100)
    for tensors in (offered, own):
        tensors |= {key.replace("class_head", "class_heads.1"): value for key, value in tensors.items()}
    fitted, _ = fit_heads(offered, own, labels("a", "b"), labels("x", "b", "a"))
    assert fitted["class_head.weight"] is fitted["class_heads.1.weight"]
    assert numbers(fitted) == [100, 1, 0]


def test_half_precision_rows_become_the_models_type() -> None:
    offered = {key: value.half() for key, value in rows_of_heads(2).items()}
    fitted, _ = fit_heads(offered, rows_of_heads(2, start=100), labels("a", "b"), labels("b", "c"))
    assert fitted["class_head.bias"].dtype == torch.float32
    assert numbers(fitted) == [1, 101]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (labels("person", "bicycle"), r"\(person, bicycle\)"),
        (labels(*map(str, range(91))), r"\(0, 1, 2, 3, 4, 5, 6, 7, and 83 more\)"),
        (labels(None, None), r"\(none\)"),
    ],
)
def test_no_shared_name_is_refused_with_both_lists_and_the_remedy(known: LabelMap, words: str) -> None:
    offered = rows_of_heads(len(known))
    with pytest.raises(InputError, match=rf"^coco\.pth: .*{words}.*\(cell, dust\).*--ignore-heads") as caught:
        fit_heads(offered, rows_of_heads(2), known, labels("cell", "dust"), source="coco.pth")
    assert "\n" not in str(caught.value)


def test_heads_of_another_size_than_the_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"old\.pth: names 2 classes, but class_head\.\w+ has 91 rows.*--ignore-heads"):
        fit_heads(rows_of_heads(91), rows_of_heads(2), labels("a", "b"), labels("a", "b"), source="old.pth")


def test_a_head_of_another_width_is_left_to_loading() -> None:
    wide = Small(width=6)
    model = Small(num_classes=2)
    fitted, _ = fit_heads(wide.state_dict(), model.state_dict(), labels("a", "b", "c"), labels("a", "x"))
    with pytest.raises(InputError, match=r"belongs to another model.*layers\.0\.weight \(6, 6\) for \(4, 4\)"):
        load_weights(model, fitted)


def test_the_report_shortens_long_lists() -> None:
    report = HeadReport(("cat",), (), tuple(f"class {number}" for number in range(20)))
    assert report.describe("coco.pth") == (
        "classes kept from coco.pth: cat (1 of 1); left out: class 0, class 1, class 2, class 3, class 4, class 5, "
        "class 6, class 7, and 12 more"
    )
