"""`detrove train` and `detrove demo` as commands."""

import json
from pathlib import Path

import pytest

from detrove.cli import demo as demo_verb
from detrove.cli.main import run
from detrove.data import scenes

pytestmark = pytest.mark.slow


def settings_of(options: dict) -> list[str]:
    return [part for key, value in options["settings"].items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def command(squares: Path, tiny_options, tmp_path: Path):
    """A command line that trains the toy detector for an epoch."""
    basic = ["--model", "detr-nano", "--size", "64", "--batch-size", "4", "--backbone-weights", "none"]
    return ["train", str(squares), *basic, *settings_of(tiny_options(tmp_path))]


def test_train_and_train_again_from_its_config(command, tmp_path: Path, capsys):
    assert run([*command, "--epochs", "1", "--output", str(tmp_path / "a"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["output"] == str(tmp_path / "a")
    assert "ap50" in printed["metrics"]
    assert run(["train", "--config", str(tmp_path / "a" / "config.yaml"), "--output", str(tmp_path / "b")]) == 0
    assert "detrove predict" in capsys.readouterr().out
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"] for name in "ab"]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "detrove-nan"], "did you mean detrove-nano"),
        (["--set", "learning_rat=1"], "did you mean learning_rate"),
        (["--set", "learning_rate"], "key=value"),
        (["--epochs", "1", "--minutes", "1"], "not both"),
        (["--minutes", "0"], "minutes must be above 0"),
        (["--size", "0"], "size must be positive"),
        (["--resume"], "--output"),
        (["--weights", "missing.safetensors"], "missing.safetensors: no such"),
        (["--config", "config.yaml"], "leave out DATA"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    squares: Path, options: list[str], words: str, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(squares), "--backbone-weights", "none", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error
    assert not list(tmp_path.iterdir())


def test_missing_data(tmp_path: Path, capsys):
    assert run(["train", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert run(["train"]) == 2
    assert "which data?" in capsys.readouterr().err


def test_the_demo_tells_where_everything_is(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(scenes, "SIZES", {"train": 8, "val": 2, "test": 2})
    monkeypatch.setattr(demo_verb, "MODEL", "detr-nano")
    output = tmp_path / "demo"
    demo_verb.demo(output=output, minutes=0.001)
    captured = capsys.readouterr()
    assert "On pictures that it never saw: AP50 0." in captured.out
    for path in ("evaluation/report.html", "run/report.html", "run/best.safetensors", "predictions/pictures"):
        assert str(output / path) in captured.out
        assert (output / path).exists()
    assert [line.split()[2] for line in captured.err.splitlines() if line.startswith("$")] == [
        "train",
        "eval",
        "predict",
    ]
