"""Which detector is trained where none is named: by the budget and the machine, and only where nobody decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from detrove.errors import InputError
from detrove.models import catalogue
from detrove.training import TrainingConfig, choice, train
from detrove.training.advice import DataFacts
from detrove.training.choice import ENOUGH_VIEWS, choose_model, default_model, larger_detector, picture_seconds


def seconds(**of_each: float) -> Any:
    """A clock for `choose_model`: seconds a picture by the last word of a name."""
    return lambda name: of_each[name.removeprefix("detrove-")]


def test_the_largest_that_sees_enough_is_chosen() -> None:
    enough = 600 / ENOUGH_VIEWS
    assert choose_model(10, None, seconds(small=1.1 * enough))[0] == "detrove-nano"
    assert choose_model(10, None, seconds(small=0.9 * enough, medium=1.1 * enough))[0] == "detrove-small"
    assert choose_model(10, None, seconds(small=0.3 * enough, medium=0.9 * enough))[0] == "detrove-medium"
    assert choose_model(12, None, seconds(small=1.1 * enough, medium=9))[0] == "detrove-small"


def test_the_reason_names_numbers() -> None:
    assert choose_model(10, None, seconds(small=0.3))[1] == (
        "detrove-nano, as no --model is named: 10 min here would show detrove-small at most 2,000 pictures, and it "
        f"wants {ENOUGH_VIEWS:,}"
    )
    assert choose_model(100, 8e9, seconds(small=0.3))[1] == (
        "detrove-small, as no --model is named: 100 min here would show detrove-small at most 20,000 pictures, "
        f"{ENOUGH_VIEWS:,} are enough; detrove-medium wants 12 GB of memory, 8 GB are there"
    )


def test_a_detector_without_room_is_not_chosen() -> None:
    def none(name: str) -> float:
        raise torch.OutOfMemoryError(name)

    model, reason = choose_model(100, None, none)
    assert model == "detrove-nano"
    assert "detrove-small has no room in the memory here" in reason


@pytest.fixture
def weights_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As online."""
    monkeypatch.setattr(choice, "trunk_has_weights", lambda config: True)


def test_a_trunk_at_random_leaves_nothing_to_choose(
    monkeypatch: pytest.MonkeyPatch, squares: Path, shared: Path
) -> None:
    monkeypatch.setattr(choice, "picture_seconds", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(squares / "none"))
    for none in (None, "pretrained"):
        assert default_model(None, False, asks(squares, backbone_weights=none), None) == ("detrove-nano", [])
    file = shared / "weights" / "mobilenetv2_100.imagenet.safetensors"
    assert choice.trunk_has_weights(asks(squares, backbone_weights=str(file))("detrove-nano"))


def asks(data: Path | str = "data", **options: Any) -> Any:
    """What `train` is asked, as `default_model` hears it: a config by the detector's name."""

    def config(model: str) -> TrainingConfig:
        usual = {"settings": {}, "size": None, "batch_size": None, "minutes": 10.0, "backbone_weights": "pretrained"}
        values = {**usual, "data": str(data), "output": "run", "model": model, **options}
        return TrainingConfig.from_preset(catalogue.preset(model), **values)

    return config


def test_nothing_is_timed_where_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "picture_seconds", lambda *_: pytest.fail("timed"))
    for decided in (
        {"minutes": None},
        {"minutes": 0.5},
        {"size": 320},
        {"settings": {"model.num_queries": 50}},
        {"settings": {"preprocessing.longer": 500}},
        {"settings": {"advise": False}},
    ):
        assert default_model(None, False, asks(**decided), None) == ("detrove-nano", [])
    assert default_model(None, False, asks(), devices=2) == ("detrove-nano", [])


def test_two_lengths_are_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch, squares: Path) -> None:
    monkeypatch.setattr(choice, "picture_seconds", lambda *_: pytest.fail("timed"))
    with pytest.raises(InputError, match="not both"):
        train(squares, minutes=5, epochs=3, progress=False)


@pytest.mark.usefixtures("weights_at_hand")
def test_a_budget_is_timed_on_this_machine(monkeypatch: pytest.MonkeyPatch, squares: Path) -> None:
    asked = []

    def timed(config: TrainingConfig, device: torch.device) -> float:
        asked.append((config.model, config.preprocessing.longer, config.recipe.learning_rate, device.type))
        return 1.0

    monkeypatch.setattr(choice, "picture_seconds", timed)
    before = torch.get_rng_state()
    options = asks(squares, minutes=5.0, settings={"learning_rate": 1e-3})
    model, [reason] = default_model(None, False, options, 1)
    assert model == "detrove-nano"
    assert "at most 300 pictures" in reason
    assert asked == [("detrove-small", 480, 1e-3, "cuda" if torch.cuda.is_available() else "cpu")]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("weights_at_hand")
def test_what_is_timed_is_what_would_be_trained(monkeypatch: pytest.MonkeyPatch, squares: Path) -> None:
    """Pictures and queries as the data set asks for them."""
    facts = DataFacts(200, 20_000, 160, median_side=30, median_share=0.03, small_share=14 / 600, longer=2000)
    asked = []
    monkeypatch.setattr(choice, "facts_of", lambda data: facts)
    monkeypatch.setattr(choice, "picture_seconds", lambda config, device: asked.append(config) or 1.0)
    default_model(None, False, asks(squares), None)
    assert [config.preprocessing.longer for config in asked] == [640]
    assert [config.model_config["num_queries"] for config in asked] == [300]


@pytest.mark.slow
def test_a_larger_detector_takes_longer() -> None:
    times = [picture_seconds(asks()(name), torch.device("cpu")) for name in ("detrove-nano", "detrove-small")]
    assert 0 < times[0] < times[1]


def test_a_continued_run_keeps_its_detector(
    squares: Path, tmp_path: Path, tiny_options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "picture_seconds", lambda *_: pytest.fail("timed"))
    options = tiny_options(tmp_path / "run", epochs=1)
    train(squares, **options)
    train(squares, **{**options, "model": None, "epochs": 2, "resume": True})
    assert TrainingConfig.from_yaml(tmp_path / "run" / "config.yaml").model == "detr-nano"


def test_bad_input_is_refused_before_anything_is_timed(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "picture_seconds", lambda *_: pytest.fail("timed"))
    with pytest.raises(Exception, match="nowhere"):
        train(tmp_path / "nowhere", minutes=5, progress=False)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("")
    with pytest.raises(Exception, match="taken"):
        train(squares, minutes=5, output=tmp_path / "taken", progress=False)


@pytest.mark.usefixtures("weights_at_hand")
def test_the_reason_is_told_before_the_training(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "FEWEST_MINUTES", 0.0)
    monkeypatch.setattr(choice, "picture_seconds", lambda *_: 1.0)
    train(squares, minutes=0.02, output=tmp_path / "run", backbone_weights=None, settings={"workers": 0})
    told = " ".join(capsys.readouterr().err.split())
    assert told.index("detrove-nano, as no --model is named: 0.02 min here would show") < told.index("training detrove")


def test_a_gpu_is_told_which_larger_detector_so_many_epochs_could_train() -> None:
    assert larger_detector(config_of(epochs=10), None) == larger_detector(config_of(epochs=10), 4e9) == []
    [small], [medium] = larger_detector(config_of(epochs=10), 8e9), larger_detector(config_of(epochs=10), 24e9)
    assert "a GPU of 8 GB: --model detrove-small would find more" in small
    assert "a GPU of 24 GB: --model detrove-medium would find more" in medium
    assert larger_detector(config_of("detrove-small", epochs=10), 24e9) == []
    assert larger_detector(config_of(minutes=10.0), 24e9) == []
    assert larger_detector(config_of(epochs=10, weights="runs/cells"), 24e9) == []


def config_of(model: str = "detrove-nano", **options: Any) -> TrainingConfig:
    values = {"data": "data", "output": "run", "model": model, **options}
    return TrainingConfig.from_preset(catalogue.preset(model), settings={}, size=None, batch_size=None, **values)
