"""The official layouts: every key of every one is used or named as left out, and everything goes back the same."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrove.checkpoints import Checkpoint, official
from detrove.checkpoints.coco_labels import COCO_CATEGORIES, labels_of_head
from detrove.errors import InputError
from detrove.models import catalogue
from detrove.models.preset import Preset
from detrove.structures import LabelMap, Preprocessing

LAYOUTS = {
    "detr": "detr-r50",
    "conditional": "conditional-r50",
    "dab": "dab-r50",
    "dab-deformable": "dab-deformable-r50",
    "deformable": "deformable-r50",
    "deformable-refine": "deformable-refine-r50",
    "deformable-two-stage": "deformable-two-stage-r50",
    "dino": "dino-r50",
    "dn-dab": "dn-dab-r50",
    "dn-dab-deformable": "dn-dab-deformable-r50",
    "sdetr": "stacked-r50",
}
SECOND_NAMES = {
    "dab": 6,
    "dab-deformable": 36,
    "deformable-refine": 36,
    "deformable-two-stage": 56,
    "dino": 48,
    "dn-dab": 6,
    "dn-dab-deformable": 36,
}
DENOISING = {
    "dn-dab": {"label_enc.weight": [92, 255]},
    "dn-dab-deformable": {"label_enc.weight": [92, 255], "tgt_embed.weight": [300, 255]},
}
"""How DN-DETR's files differ from those of the detectors that it denoises (its `DABDETR.py`, `dab_deformable_detr.py`);
`benchmarks/official_code.py` loads what their modules hold."""


def shapes_of(shared: Path, layout: str) -> dict[str, list[int]]:
    file = shared / "checkpoint-layouts" / f"{layout.removeprefix('dn-')}.json"
    return json.loads(file.read_text(encoding="utf-8")) | DENOISING.get(layout, {})


def random_file(shared: Path, layout: str) -> dict[str, Tensor]:
    """An official state dict: noise everywhere, equal wherever the official module holds one tensor twice."""
    torch.manual_seed(0)
    tensors = {key: torch.randn(shape) for key, shape in shapes_of(shared, layout).items()}
    for key in tensors:
        first = key.replace("transformer.decoder.bbox_embed", "bbox_embed")
        first = first.replace("transformer.decoder.class_embed", "class_embed")
        if layout in ("deformable", "dino"):
            first = re.sub(r"(class|bbox)_embed\.\d", r"\1_embed.0", first)
        tensors[key] = tensors[first]
    return tensors


@pytest.mark.parametrize(("layout", "preset"), LAYOUTS.items())
def test_every_key_of_the_official_files(shared: Path, layout: str, preset: str) -> None:
    tensors = random_file(shared, layout)
    checkpoint, report = official.import_with_report(tensors, "checkpoint.pth", preset)

    assert checkpoint.config == catalogue.config_to_json(catalogue.preset(preset).config)
    assert checkpoint.preprocessing == catalogue.preset(preset).preprocessing
    assert checkpoint.preset == preset
    with torch.device("meta"):
        model = catalogue.build(catalogue.preset(preset).config)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in checkpoint.tensors.items()} == wanted
    assert len(report.matched) == len(wanted)
    assert {kind: len(keys) for kind, keys in report.dropped.items()} == (
        {official.SECOND_NAMES: SECOND_NAMES[layout]} if layout in SECOND_NAMES else {}
    )
    assert len(wanted) + SECOND_NAMES.get(layout, 0) == len(tensors)

    back = official.export_tensors(checkpoint)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_a_panoptic_file_is_read_without_its_mask_head(shared: Path) -> None:
    """250 slots; the detector under `detr.`, the segmentation beside it."""
    tensors = {f"detr.{key}": value for key, value in random_file(shared, "detr").items()}
    tensors |= {f"detr.class_embed.{p}": torch.randn(251, *shape) for p, shape in (("weight", [256]), ("bias", []))}
    tensors |= {"bbox_attention.q_linear.weight": torch.zeros(1), "mask_head.lay1.weight": torch.zeros(1)}
    checkpoint, report = official.import_with_report(tensors, "files/detr-r50-panoptic-00ce5173.pth")
    assert report.dropped == {"mask head": ("bbox_attention.q_linear.weight", "mask_head.lay1.weight")}
    assert checkpoint.config["num_classes"] == len(checkpoint.label_map) == 250
    assert checkpoint.preset == "detr-r50"
    names = checkpoint.label_map.names
    assert (names[1], names[90], names[200], names[0], names[201]) == ("person", "toothbrush", "rug-merged", "", "")


def test_a_name_among_the_published_ones_chooses(shared: Path) -> None:
    tensors = random_file(shared, "detr")
    assert official.import_tensors(tensors, "x/detr-r50-dc5-f0fb7ef5.pth").preset == "detr-r50-dc5"
    with pytest.raises(InputError, match="fit detr-r50, detr-r50-dc5; say which: --model detr-r50, or model="):
        official.import_tensors(tensors, "x/checkpoint.pth")


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        ({"dilation": False, "random_refpoints_xy": False}, "dab-r50"),
        ({"dilation": True, "random_refpoints_xy": False}, "dab-r50-dc5"),
        ({"dilation": True, "random_refpoints_xy": True}, "dab-r50-dc5-fixxy"),
    ],
)
def test_the_trainings_settings_choose(shared: Path, arguments: dict[str, bool], preset: str) -> None:
    checkpoint, _ = official.import_with_report(random_file(shared, "dab"), "checkpoint.pth", None, arguments)
    assert checkpoint.preset == preset
    assert checkpoint.config["dilation"] == arguments["dilation"]


def test_settings_that_contradict_the_named_model(shared: Path) -> None:
    with pytest.raises(InputError, match="num_heads is 4 in the weights and 8 in detr-r50"):
        official.import_with_report(random_file(shared, "detr"), "a.pth", "detr-r50", {"nheads": 4})


def test_dilation_that_no_model_of_these_shapes_has(shared: Path) -> None:
    tensors = random_file(shared, "deformable")
    arguments = {"dilation": False, "nheads": 8, "num_feature_levels": 4}
    assert official.import_with_report(tensors, "a.pth", None, arguments)[0].preset == "deformable-r50"
    with pytest.raises(InputError, match="dilation is True in the weights and False in deformable-r50"):
        official.import_with_report(tensors, "a.pth", None, {**arguments, "dilation": True})


@pytest.mark.parametrize("dilation", [False, True])
def test_one_level_of_deformable_detr(shared: Path, dilation: bool) -> None:
    """The repository's single-scale files: C5 alone, so a quarter of the points."""
    tensors = random_file(shared, "deformable") | {"transformer.level_embed": torch.randn(1, 256)}
    tensors = {key: value for key, value in tensors.items() if not re.match(r"input_proj\.[123]\.", key)}
    tensors["input_proj.0.0.weight"] = torch.randn(256, 2048, 1, 1)
    for key, value in tensors.items():
        if "sampling_offsets" in key or "attention_weights" in key:
            tensors[key] = value[: len(value) // 4]
    with pytest.raises(InputError, match="fit deformable-c5-r50, deformable-dc5-r50; say which"):
        official.import_tensors(tensors, "a.pth")
    arguments = {"dilation": dilation, "num_feature_levels": 1}
    checkpoint = official.import_with_report(tensors, "a.pth", None, arguments)[0]
    assert checkpoint.preset == ("deformable-dc5-r50" if dilation else "deformable-c5-r50")
    model = checkpoint.build()
    assert len(model.backbone.channels) == len(model.levels.projections) == 1


def test_three_levels_of_deformable_detr_are_not_in_the_catalogue(shared: Path) -> None:
    tensors = random_file(shared, "deformable") | {"transformer.level_embed": torch.zeros(3, 256)}
    with pytest.raises(InputError, match="but num_levels is 3 in the weights and 4 in deformable-r50"):
        official.import_tensors(tensors, "a.pth")


def test_more_patterns_and_other_classes_and_queries(shared: Path) -> None:
    tensors = random_file(shared, "dab") | {"transformer.patterns.weight": torch.randn(3, 256)}
    tensors |= {"class_embed.weight": torch.randn(7, 256), "class_embed.bias": torch.randn(7)}
    tensors["refpoint_embed.weight"] = torch.randn(40, 4)
    checkpoint = official.import_tensors(tensors, "checkpoint.pth", "dab-r50-3patterns")
    assert (checkpoint.config["num_classes"], checkpoint.config["num_queries"]) == (7, 40)
    assert checkpoint.label_map.names == ["0", "1", "2", "3", "4", "5", "6"]
    with pytest.raises(InputError, match="num_patterns is 3 in the weights and 0 in dab-r50;"):
        official.import_tensors(tensors, "checkpoint.pth", "dab-r50")


@pytest.mark.parametrize(
    ("num_patterns", "dilation", "preset"),
    [(0, False, "dn-dab-r50"), (0, True, "dn-dab-r50-dc5"), (3, True, "dn-dab-r50-dc5-3patterns")],
)
def test_denoising_is_told_by_its_embedding(shared: Path, num_patterns: int, dilation: bool, preset: str) -> None:
    tensors = random_file(shared, "dn-dab")
    if num_patterns:
        tensors["transformer.patterns.weight"] = torch.randn(num_patterns, 256)
    checkpoint, _ = official.import_with_report(tensors, "checkpoint.pth", None, {"dilation": dilation})
    assert checkpoint.preset == preset
    with pytest.raises(InputError, match="denoising is True in the weights and False in dab-r50"):
        official.import_tensors(tensors, "checkpoint.pth", "dab-r50")
    with pytest.raises(InputError, match="denoising is False in the weights and True in dn-dab-r50"):
        official.import_tensors(random_file(shared, "dab"), "checkpoint.pth", "dn-dab-r50")


def test_equal_heads_in_the_decoder_still_mean_refinement(shared: Path) -> None:
    """A refining model before its training: its heads are clones, but they stand in the decoder."""
    tensors = random_file(shared, "deformable-refine")
    tensors = {key: tensors[re.sub(r"(class|bbox)_embed\.\d", r"\1_embed.0", key)] for key in tensors}
    assert official.import_tensors(tensors, "checkpoint.pth").preset == "deformable-refine-r50"


def test_a_dino_whose_layers_have_heads_of_their_own(shared: Path) -> None:
    """A setting of the official code; one head of ours must not silently stand for six of theirs."""
    tensors = random_file(shared, "dino")
    tensors["class_embed.3.bias"] = tensors["transformer.decoder.class_embed.3.bias"] = torch.randn(91)
    with pytest.raises(InputError, match="heads_apart is True in the weights and False in dino-r50"):
        official.import_tensors(tensors, "checkpoint.pth")


def test_a_dino_of_other_classes_and_queries(shared: Path) -> None:
    tensors = random_file(shared, "dino") | {"transformer.tgt_embed.weight": torch.randn(40, 256)}
    for key, value in tensors.items():
        if "class_embed" in key:
            tensors[key] = value[:7]
    tensors["label_enc.weight"] = torch.randn(8, 256)
    checkpoint = official.import_tensors(tensors, "checkpoint.pth")
    assert checkpoint.preset == "dino-r50"
    assert (checkpoint.config["num_classes"], checkpoint.config["num_queries"]) == (7, 40)
    assert checkpoint.build().contents.shape == (40, 256)


def test_counters_of_batch_norm_are_left_out(shared: Path) -> None:
    tensors = random_file(shared, "conditional") | {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(3)}
    _, report = official.import_with_report(tensors, "checkpoint.pth", "conditional-r50")
    assert report.dropped == {"counters of BatchNorm": ("backbone.0.body.bn1.num_batches_tracked",)}


def test_a_variant_that_is_not_in_the_family(shared: Path) -> None:
    tensors = random_file(shared, "dab") | {"transformer.decoder.query_scale.weight": torch.zeros(6, 256)}
    with pytest.raises(InputError, match=r"looks like dab, but 1 of its 591 keys are unknown there \(transformer\.dec"):
        official.import_tensors(tensors, "checkpoint.pth", "dab-r50")


@pytest.mark.parametrize("tensors", [{}, {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}])
def test_no_detector_at_all(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"^a\.pth: holds no detector of the family"):
        official.import_tensors(tensors, "a.pth")


def test_a_trunk_alone(shared: Path) -> None:
    tensors = {key: value for key, value in random_file(shared, "detr").items() if key.startswith("backbone")}
    with pytest.raises(InputError, match="only a part of a detector"):
        official.import_tensors(tensors, "a.pth")


def test_a_missing_key_is_named(shared: Path) -> None:
    tensors = random_file(shared, "sdetr")
    del tensors["mytransformer2.decoder.norm.bias"]
    with pytest.raises(InputError, match=r"a\.pth as stacked-r50: .* missing in the weights \(stacks\.1\.decoder_norm"):
        official.import_tensors(tensors, "a.pth")


def test_what_the_official_code_cannot_hold(toy_presets: dict[str, Preset]) -> None:
    config = catalogue.config_to_json(toy_presets["detr-toy"].config)
    checkpoint = Checkpoint({}, config, LabelMap(()), Preprocessing(), None, None, {}, "0", Path("x"))
    with pytest.raises(InputError, match="detrove has no official layout"):
        official.export_tensors(replace(checkpoint, config={"detector": "detrove"}))
    with pytest.raises(InputError, match="no counterpart of another_head"):
        official.export_tensors(replace(checkpoint, tensors={"another_head.weight": torch.zeros(1)}))


def test_names_and_addresses_of_the_published_files() -> None:
    for name, published in official.PUBLISHED.items():
        assert published.url.startswith("https://")
        assert published.url.endswith(f"/{name}")
        assert published.preset in catalogue.PRESETS


def test_coco_names_are_those_of_the_data_set(shared: Path) -> None:
    [path] = sorted((shared / "data" / "coco-mini").rglob("*train*.json"))[:1]
    categories = json.loads(path.read_text(encoding="utf-8"))["categories"]
    assert {each["id"]: each["name"] for each in categories} == COCO_CATEGORIES
    assert len(COCO_CATEGORIES) == 80
    assert labels_of_head(91).slot_of_name("toothbrush") == 90
    assert labels_of_head(91).entries[12] is None


@pytest.mark.parametrize(
    ("detector", "theirs", "ours"),
    [
        # by the order of the calls in each official decoder layer, which the numbers do not always follow
        ("detr", "transformer.decoder.layers.1.norm1.bias", "decoder.1.self_attention_norm.bias"),
        ("detr", "transformer.decoder.layers.1.norm2.bias", "decoder.1.cross_attention_norm.bias"),
        ("conditional", "transformer.decoder.layers.1.norm1.bias", "decoder.1.self_attention_norm.bias"),
        ("conditional", "transformer.decoder.layers.1.norm2.bias", "decoder.1.cross_attention_norm.bias"),
        ("deformable", "transformer.decoder.layers.1.norm1.bias", "decoder.1.cross_attention_norm.bias"),
        ("deformable", "transformer.decoder.layers.1.norm2.bias", "decoder.1.self_attention_norm.bias"),
        ("dab_deformable", "transformer.decoder.layers.1.norm1.bias", "decoder.1.cross_attention_norm.bias"),
        ("dino", "transformer.decoder.layers.1.norm1.bias", "decoder.1.cross_attention_norm.bias"),
        ("dino", "transformer.enc_output.bias", "selection.token_projection.bias"),
        ("dino", "transformer.enc_out_bbox_embed.layers.2.bias", "selection.box_head.4.bias"),
        ("dino", "bbox_embed.2.layers.2.bias", "box_heads.2.4.bias"),
        ("stacked", "mytransformer2.decoder.layers.1.norm2.bias", "stacks.1.decoder.1.cross_attention_norm.bias"),
        ("stacked", "mytransformer1.encoder.layers.2.norm2.bias", "stacks.0.encoder.2.feedforward_norm.bias"),
        # squares of one width, which a shape cannot tell apart
        (
            "conditional",
            "transformer.decoder.layers.0.sa_qpos_proj.bias",
            "decoder.0.self_attention.query_position.bias",
        ),
        ("conditional", "transformer.decoder.layers.0.sa_kpos_proj.bias", "decoder.0.self_attention.key_position.bias"),
        ("dab", "transformer.decoder.layers.0.ca_qpos_proj.bias", "decoder.0.cross_attention.query_position.bias"),
        ("dab", "transformer.decoder.layers.0.ca_qpos_sine_proj.bias", "decoder.0.cross_attention.query_sine.bias"),
        ("dab", "transformer.decoder.query_scale.layers.1.bias", "position_scale.2.bias"),
        ("dab", "transformer.encoder.query_scale.layers.1.bias", "encoder_position_scale.2.bias"),
        ("deformable", "transformer.enc_output.bias", "proposals.token_projection.bias"),
        ("deformable", "input_proj.3.1.bias", "levels.projections.3.1.bias"),
    ],
)
def test_tensors_of_one_shape_keep_their_meaning(detector: str, theirs: str, ours: str) -> None:
    rules = official.LAYOUTS[detector].rules
    assert [name for rule in rules if (name := rule.ours_of(theirs))] == [ours]
    assert [name for rule in rules if (name := rule.theirs_of(ours))] == [theirs]
