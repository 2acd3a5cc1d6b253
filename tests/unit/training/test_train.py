import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from detrove.checkpoints import save
from detrove.errors import InputError
from detrove.evaluation import METRIC_NAMES, evaluate
from detrove.inference import load
from detrove.losses import Criterion
from detrove.models import catalogue
from detrove.nn.backbone import create_body
from detrove.tiling import Tiling
from detrove.training import TrainingConfig, run, run_folder, train, trainer

pytestmark = pytest.mark.slow


def lines_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory, tiny_options):
    output = tmp_path_factory.mktemp("runs") / "squares"
    return train(squares, **tiny_options(output, epochs=20))


def test_the_loss_falls(trained):
    losses = [line["loss"] for line in lines_of(trained.output)]
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]


def test_recomputed_layers_learn_the_same(squares, tmp_path, tiny_options):
    losses = []
    for recompute in (False, True):
        output = tmp_path / str(recompute)
        train(squares, **tiny_options(output, epochs=2, settings={"recompute": recompute}))
        losses.append([line["loss"] for line in lines_of(output)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_run_folder_is_complete(trained):
    names = {entry.name for entry in trained.output.iterdir()}
    assert names >= {"config.yaml", "labels.json", "metrics.jsonl", "last", "best.safetensors"}
    assert {entry.name for entry in (trained.output / "last").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    assert [entry["name"] for entry in json.loads((trained.output / "labels.json").read_text())] == ["red", "blue"]


def test_a_metrics_line_has_losses_rate_and_validation(trained):
    last = lines_of(trained.output)[-1]
    assert (last["epoch"], last["step"], last["pictures"]) == (20, 60, 240)
    assert {"class", "box", "giou", "loss", "learning_rate", "minutes", *METRIC_NAMES} <= set(last)


def test_the_best_weights_predict_by_themselves(trained):
    detector = trained.detector
    assert detector.thresholds is not None
    assert detector.label_map.names == ["red", "blue"]
    assert (detector.preprocessing.longer, detector.name) == (64, "detr-nano")
    best = max(line["ap"] for line in lines_of(trained.output))
    assert trained.metrics.ap == best


def test_config_gives_the_same_run_again(trained, tmp_path: Path):
    config = yaml.safe_load((trained.output / "config.yaml").read_text())
    config |= {"output": str(tmp_path / "again")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run(TrainingConfig.from_yaml(tmp_path / "config.yaml"), progress=False)
    first = safetensors.torch.load_file(trained.output / "last" / "model.safetensors")
    second = safetensors.torch.load_file(tmp_path / "again" / "last" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_gives_another_run(squares: Path, tmp_path: Path, tiny_options):
    for seed in (0, 1):
        train(squares, **tiny_options(tmp_path / str(seed), epochs=1, seed=seed))
    first, second = (lines_of(tmp_path / str(seed))[0]["loss"] for seed in (0, 1))
    assert first != second


def test_resume_goes_on_as_if_it_had_not_stopped(squares: Path, tmp_path: Path, tiny_options):
    options = {"schedule": "step", "drop_at": 1.0, "ema_decay": 0.9, "model.dropout": 0.1}
    train(squares, **tiny_options(tmp_path / "whole", epochs=4, settings=options))
    train(squares, **tiny_options(tmp_path / "parts", epochs=2, settings=options))
    train(squares, **tiny_options(tmp_path / "parts", epochs=4, settings=options, resume=True))
    for name in ("model", "average", "optimizer"):
        whole = safetensors.torch.load_file(tmp_path / "whole" / "last" / f"{name}.safetensors")
        parts = safetensors.torch.load_file(tmp_path / "parts" / "last" / f"{name}.safetensors")
        assert whole.keys() == parts.keys()
        for key in whole:
            assert torch.equal(parts[key], whole[key]), f"{name}: {key}"
    assert [line["epoch"] for line in lines_of(tmp_path / "parts")] == [1, 2, 3, 4]


def test_resume_may_change_the_length_from_epochs_to_minutes(squares: Path, tmp_path: Path, tiny_options):
    train(squares, **tiny_options(tmp_path / "run", epochs=1))
    options = tiny_options(tmp_path / "run", epochs=1, settings={"patience": 3})
    train(squares, **{**options, "epochs": None, "minutes": 0.02}, resume=True)
    assert len(lines_of(tmp_path / "run")) >= 1


def test_resume_begins_where_there_is_nothing_yet(squares: Path, tmp_path: Path, tiny_options):
    train(squares, **tiny_options(tmp_path / "new", epochs=1, resume=True))
    assert len(lines_of(tmp_path / "new")) == 1


def test_resume_refuses_other_options(squares: Path, tmp_path: Path, tiny_options):
    train(squares, **tiny_options(tmp_path / "run", epochs=1))
    with pytest.raises(InputError, match="seed was 0, now 3"):
        train(squares, **tiny_options(tmp_path / "run", epochs=2, seed=3, resume=True))
    with pytest.raises(InputError, match="--output"):
        train(squares, **{**tiny_options(tmp_path, epochs=1), "output": None}, resume=True)


def test_the_average_is_what_is_kept(squares: Path, tmp_path: Path, tiny_options):
    train(squares, **tiny_options(tmp_path / "run", epochs=1, settings={"ema_decay": 0.99}))
    average = safetensors.torch.load_file(tmp_path / "run" / "last" / "average.safetensors")
    model = safetensors.torch.load_file(tmp_path / "run" / "last" / "model.safetensors")
    best = load(tmp_path / "run").model.state_dict()
    assert all(torch.equal(best[key], average[key]) for key in average)
    assert not torch.equal(average["class_head.weight"], model["class_head.weight"])


def test_long_epochs_are_saved_within(squares: Path, tmp_path: Path, monkeypatch, tiny_options):
    monkeypatch.setattr(trainer, "LONGEST_UNSAVED", 0.0)
    saved = []
    monkeypatch.setattr(run_folder.RunFolder, "save_last", lambda self, state: saved.append(state.facts["step"]))
    train(squares, **tiny_options(tmp_path / "run", epochs=1))
    assert saved == [1, 2, 3, 3]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(squares: Path, tmp_path: Path, tiny_options, precision: str):
    train(squares, **tiny_options(tmp_path / "run", epochs=1, settings={"mixed_precision": precision}))
    assert math.isfinite(lines_of(tmp_path / "run")[0]["loss"])
    assert load(tmp_path / "run").model.get_parameter("class_head.weight").dtype == torch.float32


def test_the_scale_of_float16_losses_is_continued(squares: Path, tmp_path: Path, tiny_options):
    options = tiny_options(tmp_path / "run", epochs=1, settings={"mixed_precision": "fp16"})
    train(squares, **options)
    before = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["scaler"]
    assert before["_growth_tracker"] + before["scale"] > 1
    train(squares, **options | {"epochs": 2, "resume": True})
    after = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["scaler"]
    assert after["_growth_tracker"] > before["_growth_tracker"] or after["scale"] != before["scale"]


def test_parts_of_a_step_learn_the_same(squares: Path, tmp_path: Path, tiny_options):
    """Where no loss is a mean over queries: boxes and focal terms are divided by the objects of the whole step."""
    losses = []
    for accumulate in (1, 3):
        settings = {"accumulate": accumulate, "crop": 0.0, "scale": [1.0, 1.0], "model.backbone_frozen": True}
        options = tiny_options(tmp_path / str(accumulate), epochs=2, model="dab-nano", settings=settings)
        train(squares, **options)
        losses.append([line["loss"] for line in lines_of(tmp_path / str(accumulate))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_parts_without_a_picture_are_refused(squares: Path, tmp_path: Path, tiny_options):
    options = tiny_options(tmp_path / "run", epochs=1, batch_size=16, settings={"accumulate": 13})
    with pytest.raises(InputError, match=r"a step of 12 pictures .* by 1 processes in 13 parts each"):
        train(squares, **options)


def test_a_finished_run_of_minutes_is_not_trained_further(squares: Path, tmp_path: Path, tiny_options):
    options = tiny_options(tmp_path / "run", minutes=0.02)
    train(squares, **options)
    steps = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["step"]
    train(squares, **options, resume=True)
    state = json.loads((tmp_path / "run" / "last" / "state.json").read_text())
    assert state["step"] == steps
    assert state["clock"]["used"] >= 0.02 * 60 * 0.5


def test_a_state_of_another_version_is_named(squares: Path, tmp_path: Path, tiny_options):
    options = tiny_options(tmp_path / "run", epochs=1)
    train(squares, **options)
    path = tmp_path / "run" / "last" / "state.json"
    path.write_text(json.dumps({"epoch": 1, "used_seconds": 3.0}))
    with pytest.raises(InputError, match="of another version of detrove"):
        train(squares, **options | {"epochs": 2, "resume": True})


def test_a_trunk_that_had_weights_has_them_when_continued(
    squares: Path, tmp_path: Path, tiny_options, monkeypatch: pytest.MonkeyPatch
):
    """Begun online and continued where there is no network: its weights come with the run."""
    monkeypatch.setattr(catalogue, "download_body", lambda *body: create_body(*body, pretrained=False).state_dict())
    options = tiny_options(tmp_path / "run", epochs=1, backbone_weights="pretrained")
    train(squares, **options)
    monkeypatch.setattr(catalogue, "download_body", lambda *_: pytest.fail("asked the network"))
    train(squares, **options | {"epochs": 2, "resume": True})
    assert load(tmp_path / "run").model.get_submodule("backbone").frozen
    assert lines_of(tmp_path / "run")[-1]["epoch"] == 2


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (("blue", "red"), "was begun with the classes red, blue, and now there are the classes blue, red"),
        (("red", "blue", "green"), "and now there are the classes red, blue, green"),
    ],
)
def test_a_run_is_not_continued_with_other_classes(
    squares: Path, tmp_path: Path, tiny_options, classes: tuple[str, ...], told: str
):
    data = tmp_path / "squares"
    shutil.copytree(squares, data)
    options = tiny_options(tmp_path / "run", epochs=1)
    train(data, **options)
    labels = (tmp_path / "run" / "labels.json").read_text()
    for path in (data / "annotations").iterdir():
        coco = json.loads(path.read_text())
        coco["categories"] = [{"id": id, "name": name} for id, name in enumerate(classes, start=1)]
        path.write_text(json.dumps(coco))
    with pytest.raises(InputError, match=rf"{told}.*--weights {tmp_path / 'run'}"):
        train(data, **options | {"epochs": 2, "resume": True})
    assert (tmp_path / "run" / "labels.json").read_text() == labels


def test_a_run_is_not_continued_with_more_pictures(squares: Path, tmp_path: Path, tiny_options):
    data = tmp_path / "squares"
    shutil.copytree(squares, data)
    path = data / "annotations" / "instances_train.json"
    whole = json.loads(path.read_text())
    fewer = whole["images"][:10]
    kept = [entry for entry in whole["annotations"] if entry["image_id"] in {image["id"] for image in fewer}]
    path.write_text(json.dumps(whole | {"images": fewer, "annotations": kept}))
    options = tiny_options(tmp_path / "run", epochs=1)
    train(data, **options)
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="was begun with 10 pictures, and now there are 12 pictures"):
        train(data, **options | {"epochs": 2, "resume": True})


def test_what_was_advised_is_not_changed_by_a_continued_run(squares: Path, tmp_path: Path):
    """An option that says otherwise is another training, and one that says nothing is the same."""
    small = {"model.backbone": "test_resnet", "model.dim": 32, "model.num_heads": 4, "workers": 0, "preflight": False}
    options = {"model": "detrove-nano", "output": tmp_path / "run", "epochs": 1, "settings": small}
    options |= {"backbone_weights": None, "progress": False}
    train(squares, **options)
    path = tmp_path / "run" / "config.yaml"
    config = TrainingConfig.from_yaml(path)
    advised = dataclasses.replace(
        config,
        advice={"preprocessing.longer": 384},
        preprocessing=dataclasses.replace(config.preprocessing, longer=384),
    )
    path.write_text(advised.to_yaml())
    with pytest.raises(InputError, match=r"continued with the options it was begun with: preprocessing"):
        train(squares, **options | {"epochs": 2, "resume": True, "size": 320})
    train(squares, **options | {"epochs": 2, "resume": True})
    assert TrainingConfig.from_yaml(path).preprocessing.longer == 384


def test_minutes_are_kept(squares: Path, tmp_path: Path, tiny_options):
    run = train(squares, **tiny_options(tmp_path / "run", minutes=0.08))
    last = lines_of(run.output)[-1]
    assert last["minutes"] == pytest.approx(0.08, rel=0.1)
    assert last["ap"] is not None
    assert last["learning_rate"] < 1e-4  # the cosine has followed the clock


def test_without_a_val_split_pictures_are_held_out(squares_unsplit: Path, tmp_path: Path, capsys, tiny_options):
    train(squares_unsplit, **{**tiny_options(tmp_path / "run", epochs=1), "progress": True})
    assert "2 of its training pictures are held out" in capsys.readouterr().err
    assert lines_of(tmp_path / "run")[-1]["pictures"] == 10


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path, tiny_options):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        train(tmp_path, **tiny_options(tmp_path, epochs=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]


def test_weights_of_another_model_are_refused(trained, squares: Path, tmp_path: Path, tiny_options):
    weights = trained.output / "best.safetensors"
    settings = {"model.num_decoder_layers": 3}
    with pytest.raises(InputError, match="another model"):
        train(squares, **tiny_options(tmp_path / "run", epochs=1, weights=weights, settings=settings))
    assert not (tmp_path / "run").exists()


def test_weights_are_a_start(trained, squares: Path, tmp_path: Path, tiny_options):
    weights = trained.output / "best.safetensors"
    train(squares, **tiny_options(tmp_path / "run", epochs=1, weights=weights, settings={"learning_rate": 1e-8}))
    assert lines_of(tmp_path / "run")[0]["loss"] < lines_of(trained.output)[0]["loss"]


@pytest.fixture(scope="module")
def other_classes(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, whose classes are called, in this order, green, blue and red."""
    folder = tmp_path_factory.mktemp("others") / "squares"
    shutil.copytree(squares, folder)
    for path in (folder / "annotations").iterdir():
        coco = json.loads(path.read_text())
        coco["categories"] = [{"id": id, "name": name} for id, name in enumerate(("green", "blue", "red"), start=1)]
        for annotation in coco["annotations"]:
            annotation["category_id"] = 4 - annotation["category_id"]  # red from 1 to 3, blue stays 2
        path.write_text(json.dumps(coco))
    return folder


STILL = {"learning_rate": 1e-9, "backbone_learning_rate": 1e-9, "weight_decay": 0.0}


def started_from(trained, data: Path, output: Path, tiny_options, **options: Any) -> dict[str, Any]:
    """Keywords for a training that begins with the weights of `trained` and hardly changes them."""
    settings = STILL | options.pop("settings", {})
    weights = trained.output / "best.safetensors"
    return {
        "data": data,
        **tiny_options(output, epochs=1, weights=weights, settings=settings),
        "progress": True,
        **options,
    }


def test_classes_are_kept_by_name(trained, other_classes: Path, tmp_path: Path, capsys, tiny_options):
    train(**started_from(trained, other_classes, tmp_path / "run", tiny_options))
    weights = trained.output / "best.safetensors"
    assert f"classes kept from {weights}: blue, red (2 of 3); new: green" in capsys.readouterr().err
    before = trained.detector.model.state_dict()
    after = load(tmp_path / "run").model.state_dict()
    torch.testing.assert_close(after["class_head.weight"][[2, 1, 3]], before["class_head.weight"], rtol=0, atol=1e-6)


def test_ignored_heads_start_anew(trained, other_classes: Path, tmp_path: Path, capsys, tiny_options):
    train(**started_from(trained, other_classes, tmp_path / "run", tiny_options, ignore_heads=True))
    told = capsys.readouterr().err
    assert "best.safetensors left out: every class starts anew" in told
    assert "classes kept" not in told
    before = trained.detector.model.state_dict()
    after = load(tmp_path / "run").model.state_dict()
    torch.testing.assert_close(after["query_positions"], before["query_positions"], rtol=0, atol=1e-6)
    assert not torch.allclose(after["class_head.weight"][[2, 1, 3]], before["class_head.weight"], atol=1e-3)


def test_a_run_from_other_classes_can_be_continued(trained, other_classes: Path, tmp_path: Path, capsys, tiny_options):
    options = started_from(trained, other_classes, tmp_path / "parts", tiny_options, settings={"schedule": "step"})
    train(**options)
    capsys.readouterr()
    train(**options | {"epochs": 2, "resume": True})
    assert [line["epoch"] for line in lines_of(tmp_path / "parts")] == [1, 2]
    told = capsys.readouterr().err
    assert "after epoch 1" in told
    assert "classes kept" not in told  # that was when the run began
    train(**options | {"epochs": 2, "output": tmp_path / "whole"})
    whole, parts = (
        safetensors.torch.load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "parts")
    )
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], msg=key)


@pytest.mark.parametrize("model", [None, "detr-nano"])
def test_weights_decide_the_sizes_of_their_model(
    trained, squares: Path, tmp_path: Path, tiny_options, model: str | None
):
    options = started_from(trained, squares, tmp_path / "run", tiny_options, model=model, size=None)
    options["settings"] = {"workers": 0, "model.dropout": 0.2}
    train(**options)
    config = TrainingConfig.from_yaml(tmp_path / "run" / "config.yaml")
    before = TrainingConfig.from_yaml(trained.output / "config.yaml")
    assert config.model == "detr-nano"
    assert config.model_config == before.model_config | {"dropout": 0.2}
    assert config.preprocessing == before.preprocessing
    assert config.recipe.learning_rate == catalogue.preset("detr-nano").recipe.learning_rate


def test_weights_of_another_preset_decide_no_size(trained, squares: Path, tmp_path: Path, tiny_options):
    options = started_from(trained, squares, tmp_path / "run", tiny_options, model="detr-r50")
    options["settings"] = {"workers": 0, "model.backbone": "test_resnet"}
    with pytest.raises(InputError, match=r"belongs to another model.*\(100, 256\)"):
        train(**options)


def test_a_size_goes_before_that_of_the_weights(trained, squares: Path, tmp_path: Path, tiny_options):
    train(**started_from(trained, squares, tmp_path / "run", tiny_options, model=None, size=48))
    assert load(tmp_path / "run").preprocessing.longer == 48


def toy_sizes(tiny_options) -> dict[str, Any]:
    """The toy detector's config, as `catalogue.create` takes it."""
    settings = tiny_options(Path())["settings"]
    return {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}


def test_weights_of_no_known_preset_need_a_model(squares: Path, tmp_path: Path, tiny_options):
    model = catalogue.create("detr-nano", num_classes=2, **toy_sizes(tiny_options))
    weights = save(model, tmp_path / "mine.safetensors")
    options = tiny_options(tmp_path / "run", epochs=1, weights=weights, model=None)
    with pytest.raises(InputError, match=r"mine\.safetensors: does not say which detector.*--model"):
        train(squares, **options)


def test_weights_of_another_detector_are_refused(trained, squares: Path, tmp_path: Path, tiny_options):
    options = started_from(trained, squares, tmp_path / "run", tiny_options, model="conditional-r50")
    with pytest.raises(InputError, match=r"best\.safetensors: holds .* detr \(detr-nano\), but conditional-r50 .*"):
        train(**options)
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_names_the_pictures(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_options
):
    monkeypatch.setattr(Criterion, "total", lambda self, losses: sum(v.sum() for v in losses.values()) * math.nan)
    with pytest.raises(InputError, match=r"nan in step 1, on the pictures with the ids \d+, \d+, .*learning_rate"):
        train(squares, **tiny_options(tmp_path / "run", epochs=1))


def test_a_full_disk_keeps_what_was_written(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_options
):
    rename, renamed = os.replace, []

    def full_after_the_first_epoch(source, target):
        renamed.append(Path(target).name)
        if renamed.count("metrics.jsonl") == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", full_after_the_first_epoch)
    with pytest.raises(InputError, match="no room left on the disk"):
        train(squares, **tiny_options(tmp_path / "run", epochs=3))
    assert len(lines_of(tmp_path / "run")) == 1
    assert load(tmp_path / "run").label_map.names == ["red", "blue"]
    assert not list((tmp_path / "run").rglob("*partial*"))


TRAINING = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from conftest import make_options
from detrove.training import train

run = train({data!r}, **make_options(Path({output!r}), epochs=100000, settings={{"workers": 1}}))
print("done", run.metrics is not None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_ends_cleanly(squares: Path, tmp_path: Path):
    output = tmp_path / "run"
    script = TRAINING.format(here=str(Path(__file__).parent), data=str(squares), output=str(output))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (output / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loading processes too
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "done True" in printed
    assert load(output).thresholds is not None
    step = json.loads((output / "last" / "state.json").read_text())["step"]
    assert step >= 3
    last = lines_of(output)[-1]
    assert last["step"] == step
    assert last["ap"] is not None  # that of the weights that were kept


def test_a_run_on_tiles_is_validated_and_predicts_on_tiles(squares: Path, tmp_path: Path, capsys, tiny_options):
    options = tiny_options(tmp_path / "tiled", epochs=1, tiles=32, tile_overlap=0.25, progress=True)
    detector = train(squares, **options).detector
    assert detector.tiling == Tiling(32, 0.25)
    told = " ".join(capsys.readouterr().err.split())
    assert "tiles of 32 pixels that overlap by 25%, and the whole picture" in told
    # 3 x 3 tiles of each of 12 pictures and the pictures themselves, less what is empty.
    [line] = lines_of(tmp_path / "tiled")
    assert 12 < line["pictures"] <= 12 * 10
    config = TrainingConfig.from_yaml(tmp_path / "tiled" / "config.yaml")
    assert config.tiling == detector.tiling
    found = evaluate(detector, squares).to_json()
    assert found["ap50"] == line["ap50"]
    assert evaluate(tmp_path / "tiled", squares).to_json() == found


def test_tiles_that_cannot_be(squares: Path, tmp_path: Path, tiny_options):
    for options in ({"tiles": 3}, {"tile_overlap": 0.1}, {"tiles": 32, "settings": {"empty_tiles": 1}}):
        with pytest.raises(InputError):
            train(squares, **tiny_options(tmp_path / "no", **options))
    assert not (tmp_path / "no").exists()
