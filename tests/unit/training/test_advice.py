"""What the advisor says of data sets: its rules, what it leaves alone, and that a run keeps what it was told."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from detrove.data import DetectionDataset, open_dataset
from detrove.data.annotations import AnnotationsBuilder
from detrove.models import catalogue
from detrove.tiling import Tiling
from detrove.training.advice import (
    FEWEST_PIXELS,
    PICTURES_SHOWN,
    SPARED_QUERIES,
    DataFacts,
    advise,
    advised,
    facts_of,
    length_here,
    taken,
)
from detrove.training.config import TrainingConfig

CELLS = DataFacts(
    num_pictures=205,
    num_boxes=2750,
    most_boxes=28,
    median_side=105,
    median_share=105 / 640,
    small_share=60 / 640,
    longer=640,
)


def config_of(
    model: str = "detrove-nano",
    size: int | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    tiling: Tiling | None = None,
    **settings: object,
) -> TrainingConfig:
    values = {"data": "data", "output": "run", "model": model, "minutes": minutes, "epochs": epochs, "tiling": tiling}
    return TrainingConfig.from_preset(catalogue.preset(model), settings=settings, size=size, batch_size=None, **values)


def keys(facts: DataFacts, config: TrainingConfig) -> dict[str, object]:
    return {advice.key: advice.value for advice in advise(facts, config)}


def test_facts_are_read_from_the_annotations(shared: Path) -> None:
    data = open_dataset(shared / "data" / "bccd", "train")
    facts = facts_of(data)
    assert (facts.num_pictures, facts.most_boxes, facts.longer) == (205, 28, 640.0)
    sides = sorted(
        math.sqrt((right - left) * (bottom - top))
        for record in data.records
        for left, top, right, bottom in record.boxes_xyxy.tolist()
    )
    assert facts.num_boxes == len(sides)
    assert facts.median_side == pytest.approx(sides[len(sides) // 2], rel=0.01)
    assert facts.small_share == pytest.approx(sides[len(sides) // 10] / 640, rel=0.02)
    assert facts.describe(config_of().preprocessing) == (
        "205 pictures, 13.7 boxes each (28 at most), median box 102 px, 51 px at 320"
    )


def test_a_box_is_a_share_of_its_own_picture(tmp_path: Path) -> None:
    """Photographs and thumbnails of the same things: each is 32 pixels wide at 320."""
    builder = AnnotationsBuilder("object")
    for number, scale in enumerate((1, 1, 10, 10)):
        (tmp_path / f"{number}.jpg").touch()
        picture = builder.add_picture(tmp_path / f"{number}.jpg", number, 400 * scale, 300 * scale, "labels")
        builder.add_box(picture, 1, (10.0, 10.0, 40.0 * scale, 40.0 * scale), number, number)
    facts = facts_of(DetectionDataset(tmp_path, "train", "coco", builder.finish({1: "nut"})))
    assert facts.median_share == facts.small_share == pytest.approx(0.1)
    assert keys(facts, config_of())["preprocessing.longer"] == 320
    assert "median box 220 px, 32 px at 320" in facts.describe(config_of().preprocessing)


def test_more_pictures_are_shown_less_often() -> None:
    few, many = keys(dataclasses.replace(CELLS, num_pictures=100), config_of()), keys(CELLS, config_of())
    assert few["epochs"] == PICTURES_SHOWN / 100
    assert many["epochs"] == round(PICTURES_SHOWN / 205)
    assert keys(dataclasses.replace(CELLS, num_pictures=100_000), config_of())["epochs"] == 12
    assert "epochs" not in keys(CELLS, config_of(minutes=10.0))


def test_views_are_told_as_they_come_to() -> None:
    def told(num_pictures: int) -> str:
        advice = advise(dataclasses.replace(CELLS, num_pictures=num_pictures), config_of())
        return advice[-1].describe()

    assert told(200) == "epochs=60: 200 pictures, about 12,000 views in all"
    assert told(10) == "epochs=300: 10 pictures, about 3,000 views in all; 300 is the most"
    assert told(20_000) == "epochs=12: 20,000 pictures, about 240,000 views in all; 12 is the least"


def test_crowds_get_queries() -> None:
    assert keys(CELLS, config_of())["model.num_queries"] == 100
    assert "model.num_detections" not in keys(CELLS, config_of())
    crowd = keys(dataclasses.replace(CELLS, most_boxes=83), config_of())
    assert crowd["model.num_queries"] == crowd["model.num_detections"] == 170
    assert keys(dataclasses.replace(CELLS, most_boxes=200), config_of())["model.num_queries"] == SPARED_QUERIES
    assert keys(dataclasses.replace(CELLS, most_boxes=901), config_of())["model.num_queries"] == 910


def test_small_objects_get_pixels_as_far_as_the_pictures_have_them() -> None:
    small = dataclasses.replace(CELLS, small_share=18 / 640)
    size = keys(small, config_of())["preprocessing.longer"]
    assert size == 512
    assert 18 * 512 / 640 >= FEWEST_PIXELS > 18 * 448 / 640
    assert keys(dataclasses.replace(small, small_share=4 / 640), config_of())["preprocessing.longer"] == 640
    assert keys(dataclasses.replace(small, longer=300), config_of())["preprocessing.longer"] == 320
    assert keys(CELLS, config_of())["preprocessing.longer"] == 320


def test_what_no_size_shows_is_told_with_the_way_out() -> None:
    """Objects of 20 pixels in photographs of 4000."""
    tiny = dataclasses.replace(CELLS, small_share=20 / 4000, longer=4000)
    [size] = [advice for advice in advise(tiny, config_of()) if advice.key == "preprocessing.longer"]
    assert size.describe() == (
        "preprocessing.longer=640: a tenth of the boxes would be under 2 px at 320, under 3 px at 640; 14 are wanted: "
        "--tiles 640 would show them as they are"
    )
    in_tiles = config_of(tiling=Tiling(640))
    assert not any("--tiles" in advice.reason for advice in advise(tiny, in_tiles))
    assert not any("--tiles" in advice.reason for advice in advise(dataclasses.replace(tiny, longer=700), config_of()))


def test_what_the_user_decides_stays() -> None:
    small_and_many = dataclasses.replace(CELLS, small_share=18 / 640, most_boxes=83)
    decided = config_of(size=320, epochs=7, **{"model.num_queries": 100, "batch_size": 2})
    assert keys(small_and_many, decided) == {"model.num_detections": 170}
    assert decided.epochs == 7
    assert advise(small_and_many, config_of(advise=False)) == []


def test_published_recipes_are_left_as_published() -> None:
    assert advise(dataclasses.replace(CELLS, most_boxes=83), config_of("dab-nano")) == []


def test_a_published_detector_that_was_trained_already_is_trained_for_fewer_epochs() -> None:
    tuned = dataclasses.replace(config_of("detr-r50"), weights="detr-r50-e632da11.pth")
    many_and_small = dataclasses.replace(CELLS, most_boxes=83, small_share=9 / 640)
    assert keys(many_and_small, tuned) == {"epochs": round(PICTURES_SHOWN / 205)}
    assert "from nothing its paper took 500 epochs" in advise(CELLS, tuned)[0].reason
    assert advised(tuned, advise(CELLS, tuned)).epochs == 59
    dino = dataclasses.replace(config_of("dino-r50"), weights="dino.pth")
    assert keys(CELLS, dino) == {"epochs": 12}
    named = dataclasses.replace(config_of("detr-r50", epochs=300), weights="detr-r50-e632da11.pth")
    assert keys(CELLS, named) == {}
    assert keys(CELLS, dataclasses.replace(tuned, minutes=5.0, epochs=None)) == {}


def test_nothing_is_said_of_pictures_without_boxes() -> None:
    empty = DataFacts(3, 0, 0, median_side=0, median_share=0, small_share=0, longer=640)
    assert advise(empty, config_of()) == []
    assert empty.describe(config_of().preprocessing) == "3 pictures without a box"


def test_advice_is_taken_noted_and_given_again() -> None:
    config = config_of()
    advice = advise(dataclasses.replace(CELLS, most_boxes=83, small_share=18 / 640), config)
    fitted = advised(config, advice)
    assert fitted.model_config["num_queries"] == 170
    assert fitted.preprocessing.longer == 512
    assert fitted.epochs == round(PICTURES_SHOWN / 205)
    assert not fitted.advise
    assert taken(config, fitted.advice) == fitted
    assert taken(config_of(minutes=5.0), fitted.advice).epochs is None
    assert advised(config, advise(CELLS, config_of(minutes=5.0))).advice == {}
    assert taken(config_of(epochs=80), fitted.advice).epochs == 80
    other = taken(config_of(size=320), fitted.advice)  # a continued run's options are compared, this one is another
    assert (other.preprocessing.longer, other.advice) == (320, fitted.advice)


def test_what_was_resolved_before_there_was_advice_stays(tmp_path: Path) -> None:
    config = config_of(**{"model.num_queries": 60})
    values = yaml.safe_load(config.to_yaml())
    assert TrainingConfig.from_yaml(_written(tmp_path / "new.yaml", values)) == config
    for key in ("advise", "given", "advice"):
        del values[key]
    assert not TrainingConfig.from_yaml(_written(tmp_path / "old.yaml", values)).advise


def _written(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_what_a_length_comes_to_on_this_machine() -> None:
    assert length_here(config_of(minutes=10.0), 205, 0.082) == (
        "about 0.08 s a picture here: 10 min show at most 7,300 pictures, each 36 times"
    )
    assert length_here(config_of(epochs=58), 205, 0.004) == (
        "about 250 pictures/s here: 58 epochs are at least 0.79 min, validations apart"
    )
    assert length_here(config_of(minutes=600.0), 205, 0.01).endswith(
        "show at most 3,600,000 pictures, each 18,000 times"
    )


def test_too_few_views_are_told_with_the_minutes_that_would_do() -> None:
    told = length_here(config_of(minutes=1.0), 205, 0.1)
    assert told.endswith("each 2.9 times; fewer than 1,000 teach little: give it 1.7 min")
    larger = length_here(config_of("detrove-medium", minutes=1.0), 205, 0.1)
    assert larger.endswith("give it 1.7 min, or --model detrove-nano")
    published = length_here(config_of("detr-nano", minutes=1.0), 205, 0.1)
    assert published.endswith("each 2.9 times")
