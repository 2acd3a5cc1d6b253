"""The arms are what they say they are; queries that are kept stay; peaks, and what heads cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.nn.positions import sine_encoding
from detrove.structures import ImageBatch
from detrove.study import Comparison, experiment
from detrove.study.arms import Arm, ArmRecord, Conditions, check_arms
from detrove.study.comparison import Summary
from detrove.study.experiments import (
    EXPERIMENTS,
    LEARNED,
    RANDOM,
    WELL_LEARNED,
    about_fixed_queries,
    count_centres,
    middle_of,
    position_maps,
)
from detrove.training import TrainingConfig


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_can_be_trained(name: str, scenes: Path) -> None:
    chosen = EXPERIMENTS[name]
    check_arms(chosen.arms, Conditions(str(scenes), epochs=1, settings=chosen.settings))


def config_of(name: str, arm: Arm, shared: dict[str, Any]) -> Any:
    """The model's config that the arm trains."""
    preset = catalogue.preset(arm.model)
    settings = {**shared, **arm.settings}
    values = TrainingConfig.from_preset(
        preset, settings=settings, size=None, batch_size=None, data="", output="", model=arm.model, epochs=1
    ).model_config
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return replace(preset.config, **values)


def differences(name: str, first: int, second: int) -> set[str]:
    """The values in which two arms of one detector's kind differ."""
    chosen = EXPERIMENTS[name]
    configs = [vars(config_of(name, chosen.arms[index], chosen.settings)) for index in (first, second)]
    return {key for key in configs[0] if configs[0][key] != configs[1][key]}


def test_neighbouring_arms_differ_in_one_thing() -> None:
    assert differences("anchors", 2, 3) == {"num_coordinates"}
    assert differences("anchors", 3, 4) == {"modulate"}
    assert differences("heads", 0, 1) == {"num_encoder_heads"}
    assert differences("fixed-queries", 0, 1) == differences("fixed-queries", 0, 2) == set()


def test_one_head_and_eight_have_the_same_parameters() -> None:
    counts = []
    for arm in EXPERIMENTS["heads"].arms:
        with torch.device("meta"):
            model = catalogue.build(config_of("heads", arm, {}))
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert counts[0] == counts[1]


# ---- queries that are kept -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_detr(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"epochs": 2, "settings": tiny["settings"] | {"learning_rate": 1e-2}}


@pytest.mark.slow
def test_well_learned_queries_are_kept_and_all_else_begins_anew(
    scenes: Path, tiny_detr: dict[str, Any], tmp_path: Path, arms_here: list[str]
) -> None:
    found = experiment("fixed-queries", scenes, tmp_path / "out", **tiny_detr)
    assert found.failed == []
    names = [LEARNED, WELL_LEARNED, RANDOM]
    assert [summary.name for summary in found.summaries] == names
    runs = {record.arm.name: record.run for record in found.records}
    ended = {name: safetensors.torch.load_file(run / "best.safetensors") for name, run in runs.items()}
    begun = safetensors.torch.load_file(runs[WELL_LEARNED].with_suffix(".start.safetensors"))

    def queries(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return tensors["query_positions"]

    # kept, to the bit
    assert torch.equal(queries(begun), queries(ended[LEARNED]))
    assert torch.equal(queries(ended[WELL_LEARNED]), queries(ended[LEARNED]))
    assert not torch.equal(queries(ended[RANDOM]), queries(ended[LEARNED]))
    # the beginning of the first arm, to the bit, but for the queries: as the training itself makes it
    from accelerate.utils import set_seed

    config = TrainingConfig.from_yaml(runs[LEARNED] / "config.yaml")
    set_seed(config.seed)
    model = catalogue.create("detr-nano", num_classes=5, **config.model_config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(begun[name], tensor) == (name != "query_positions"), name
    assert torch.equal(queries(ended[RANDOM]), model.state_dict()["query_positions"])
    # all else has learned
    for name in (WELL_LEARNED, RANDOM):
        assert not torch.equal(ended[name]["box_head.0.weight"], begun["box_head.0.weight"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What the queries are worth" in page


def summary(name: str, *precisions: float) -> Summary:
    """A finished arm with one seed for each AP."""
    conditions = Conditions("data", epochs=1)
    records = tuple(
        ArmRecord(Path("a"), Arm(name, "detr-nano", seed), conditions, trained={"best": {"ap": ap}})
        for seed, ap in enumerate(precisions)
    )
    return Summary(name, records, ())


@pytest.mark.parametrize(
    ("learned", "well_learned", "random", "expected"),
    [
        ([0.001], [0.2], [0.1], "Nothing can be said yet"),
        ([0.2], [0.25], [0.1], "ends +0.050 AP from it; with one seed nobody can tell"),
        ([0.20, 0.24], [0.22, 0.25], [0.1, 0.2], "does not: it ends +0.015 AP from it, within the 0.040 between seeds"),
        ([0.20, 0.21], [0.30, 0.31], [0.1, 0.1], "the queries are a part of the delay (+0.100 AP"),
        ([0.30, 0.31], [0.20, 0.21], [0.4, 0.4], "even falls behind"),
    ],
)
def test_what_is_said_of_the_hypothesis(
    learned: list[float], well_learned: list[float], random: list[float], expected: str
) -> None:
    values = {LEARNED: learned, WELL_LEARNED: well_learned, RANDOM: random}
    text = about_fixed_queries({name: summary(name, *precisions) for name, precisions in values.items()})
    assert expected in text
    if "Nothing" not in expected:
        lower = sum(random) < sum(learned)
        assert ("Queries that never learn anything cost" in text) == lower
        assert ("Random ones do as well" in text) != lower


# ---- where positions look --------------------------------------------------------------------------------------------


def test_centres_are_separate_peaks_of_some_height() -> None:
    maps = torch.zeros(3, 6, 6)
    maps[0, 2, 2] = 1.0  # one
    maps[1, 1, 1], maps[1, 4, 4], maps[1, 1, 4] = 1.0, 0.9, 0.3  # two, and one that is too low
    maps[2, 2, 2], maps[2, 2, 3] = 1.0, 0.95  # neighbours are one
    assert count_centres(maps) == [1, 2, 1]


def test_breadth_is_counted_above_the_same_height() -> None:
    """A low hill on a plain that is nearly as high: half of the highest value would count the plain too."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    hill = 1 + 0.5 * torch.exp(-((x - 9) ** 2 + (y - 9) ** 2) / 18)
    maps = (hill / hill.sum())[None]
    assert (maps > maps.max() / 2).all()
    assert 0.02 < (maps > middle_of(maps)).float().mean() < 0.1


def test_position_maps_of_detr_are_those_of_its_own_projections(
    toy_detector: Callable[..., Detector], picture: Image.Image
) -> None:
    detector = toy_detector("detr-nano")
    maps = position_maps(detector, picture, num_queries=3)
    model: Any = detector.model
    with torch.no_grad():
        images = ImageBatch.from_images([detector.preprocessing(picture)])
        sure = model(images).logits[-1, 0].softmax(dim=-1)[:, :-1].amax(dim=-1).topk(3).indices
        level = model.backbone(images)[-1]
    position = sine_encoding(level.padding_mask, 32)[0].flatten(0, 1)
    block = model.decoder[-1].cross_attention
    query = F.linear(model.query_positions[sure], block.in_proj_weight[:32]).unflatten(-1, (4, 8))
    key = F.linear(position, block.in_proj_weight[32:64]).unflatten(-1, (4, 8))
    scores = torch.einsum("nmd,tmd->mnt", query, key) / 8**0.5
    expected = scores.softmax(dim=-1).mean(dim=0).unflatten(-1, level.shape)
    # biases add the same to all cells of a query, or belong to the content
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["conditional-nano", "dab-nano"])
def test_position_maps_of_the_others_sum_to_one(
    name: str, toy_detector: Callable[..., Detector], picture: Image.Image
) -> None:
    maps = position_maps(toy_detector(name), picture)
    assert maps.shape == (5, 3, 3)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(5))


@pytest.mark.slow
def test_the_pages_of_the_other_experiments(
    scenes: Path, tiny: dict[str, Any], tmp_path: Path, arms_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {key: value for key, value in tiny["settings"].items() if "num_heads" not in key and "layers" not in key}
    layered = common | {"model.num_encoder_layers": 1, "model.num_decoder_layers": 2, "model.num_heads": 2}
    anchors = EXPERIMENTS["anchors"]
    fewer = replace(anchors, arms=(anchors.arms[0], anchors.arms[4]))
    monkeypatch.setitem(EXPERIMENTS, "anchors", fewer)
    found = experiment("anchors", scenes, tmp_path / "anchors", **{**tiny, "settings": layered})
    assert_page(found, "Where positions look", "centre")
    heads = experiment("heads", scenes, tmp_path / "heads", **{**tiny, "settings": common})
    # 64 pixels at stride 16: 4 by 4 cells at most, 8 maps of cells squared, 4 bytes
    page = assert_page(heads, "What the heads cost", "maps, formula")
    cells = {(m["height"] // 16) * (m["width"] // 16) for record in heads.records if (m := record.measured)}
    assert len(cells) == 1
    [tokens] = cells
    for heads_of_arm in (1, 8):
        assert f">{heads_of_arm * tokens**2 * 4 / 2**20:.2f} MiB<" in page


def assert_page(found: Comparison, *texts: str) -> str:
    assert found.failed == []
    page = (found.output / "report.html").read_text(encoding="utf-8")
    for text in texts:
        assert text in page
    return page


def test_an_unknown_experiment(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown experiment 'head': did you mean heads"):
        experiment("head", scenes, tmp_path / "out", epochs=1)
