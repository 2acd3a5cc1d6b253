from pathlib import Path

import pytest

from detrove.errors import InputError
from detrove.models import catalogue
from detrove.models.denoising import Denoising
from detrove.training.config import TrainingConfig, coerce, parse_setting


def resolve(**options) -> TrainingConfig:
    options = {"settings": {}, "size": None, "batch_size": None, "data": "data", "output": "runs/x", **options}
    return TrainingConfig.from_preset(catalogue.preset("detr-nano"), model="detr-nano", **options)


def test_the_recipe_of_the_preset_is_the_default():
    config, recipe = resolve(), catalogue.preset("detr-nano").recipe
    assert config.recipe == recipe
    assert config.epochs == recipe.epochs
    assert config.minutes is None
    assert "num_classes" not in config.model_config


def test_options_and_settings_override():
    settings = {"learning_rate": "2e-4", "model.num_queries": 50, "scale": [0.5, 1], "val_fraction": 0.3}
    config = resolve(settings=settings, size=256, batch_size=4, minutes=2.0)
    assert config.recipe.learning_rate == 2e-4
    assert config.recipe.batch_size == 4
    assert config.recipe.scale == (0.5, 1.0)
    assert config.model_config["num_queries"] == 50
    assert (config.preprocessing.longer, config.preprocessing.shorter) == (256, None)
    assert (config.epochs, config.minutes, config.val_fraction) == (None, 2.0, 0.3)


def test_yaml_round_trip(tmp_path: Path):
    config = resolve(settings={"model.dropout": 0.2}, size=128, epochs=3, backbone_weights="pretrained")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert TrainingConfig.from_yaml(path) == config


def denoising(value: object) -> TrainingConfig:
    preset = catalogue.preset("dn-dab-nano")
    settings = {"model.denoising": value}
    return TrainingConfig.from_preset(
        preset, model="dn-dab-nano", settings=settings, size=None, batch_size=None, data="data", output="runs/x"
    )


def test_settings_within_a_setting(tmp_path: Path):
    config = denoising({"groups": 2, "box_noise": "1e-1"})
    assert config.model_config["denoising"]["groups"] == 2
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert TrainingConfig.from_yaml(path) == config
    built = catalogue.create("dn-dab-nano", num_classes=2, **config.model_config).config
    assert built.denoising == Denoising(groups=2, box_noise=0.1)
    assert denoising(None).model_config["denoising"] is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"group": 2}, "model.denoising: unknown entry 'group': did you mean groups"),
        ({"groups": 0.5}, "groups: 0.5 is not a whole number"),
        ({"groups": 0}, "denoising.groups is 0"),
        (3, "model.denoising: 3 is not settings .groups, label_noise, box_noise.* or null"),
    ],
)
def test_wrong_settings_within_a_setting(value: object, words: str):
    with pytest.raises(InputError, match=words):
        denoising(value)


def test_the_trunk_is_frozen_by_its_weights_unless_the_user_decides():
    assert "backbone_frozen" not in resolve().model_config
    assert resolve(settings={"model.backbone_frozen": True}).model_config["backbone_frozen"] is True


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"model.num_querys": 1}, "did you mean model.num_queries"),
        ({"model.num_queries": 1.5}, "model.num_queries: 1.5 is not a whole number"),
        ({"batch_size": True}, "batch_size: True is not a whole number"),
        ({"decay_norms_and_biases": 1}, "true or false"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"scale": [1]}, "must have 2 entries"),
        ({"schedule": "linear"}, "step or cosine"),
        ({"learning_rate": -1}, "learning_rate must be above 0"),
        ({"mixed_precision": "fp8"}, "no, bf16 or fp16"),
        ({"accumulate": 99}, "accumulate is 99, but a step has only"),
    ],
)
def test_bad_settings_name_the_key_and_the_remedy(settings: dict, words: str):
    with pytest.raises(InputError, match=words):
        resolve(settings=settings)


def test_one_length_only():
    with pytest.raises(InputError, match="not both"):
        resolve(epochs=1, minutes=1.0)
    with pytest.raises(InputError, match="minutes must be above 0"):
        resolve(minutes=0.0)


def test_damaged_config_files_are_named(tmp_path: Path):
    path = tmp_path / "config.yaml"
    for text, words in [("a: [", "not YAML"), ("colour: red", "unknown entry 'colour'"), ("data: x", "missing")]:
        path.write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            TrainingConfig.from_yaml(path)
        assert str(path) in str(caught.value)


def test_parse_setting():
    assert parse_setting("scale=[0.5, 1]") == ("scale", [0.5, 1])
    assert parse_setting("model.backbone=resnet18") == ("model.backbone", "resnet18")
    for text in ("learning_rate", "=3", "scale=[1"):
        with pytest.raises(InputError, match="--set"):
            parse_setting(text)


def test_coerce_knows_what_configs_are_made_of():
    assert coerce(None, int | None, "x") is None
    assert coerce([1, 2], tuple[int, ...], "x") == (1, 2)
    assert coerce(3, float, "x") == 3.0
    with pytest.raises(InputError, match="text or null"):
        coerce(3, str | None, "x")
