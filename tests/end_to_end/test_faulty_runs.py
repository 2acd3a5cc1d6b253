"""Trainings in which something goes wrong: what is at fault is named, and what was good is kept."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from detrove.cli.main import run as run_command
from detrove.data import dataset as dataset_file
from detrove.data import open_dataset
from detrove.data.annotations import Annotations, PackedTexts
from detrove.data.writers import write_coco
from detrove.errors import InputError
from detrove.inference import load
from detrove.losses import Criterion
from detrove.structures import Targets
from detrove.training import train, trainer
from detrove.training.callbacks import EpochDone

SETTINGS = {
    "model.backbone": "test_resnet",
    "model.dim": 32,
    "model.num_heads": 4,
    "model.feedforward_dim": 64,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 10,
    "learning_rate": 1e-3,
    "clip_norm": 1.0,
    "crop": 0.0,
    "workers": 0,
}


def options(output: Path, **settings: Any) -> dict[str, Any]:
    """Keywords for `train`: a toy DETR on 64-pixel pictures."""
    return {
        "model": "detr-nano",
        "output": output,
        "size": 64,
        "batch_size": 4,
        "backbone_weights": None,
        "settings": SETTINGS | settings,
    }


def command(data: Path, output: Path) -> list[str]:
    """The same for an epoch, as a command line."""
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    lengths = ["--size", "64", "--epochs", "1", "--backbone-weights", "none"]
    return ["train", str(data), "--output", str(output), "--model", "detr-nano", *lengths, *settings]


def write_squares(
    folder: Path,
    num_pictures: int = 12,
    boxes_of: Callable[[list[int]], list[int]] | None = None,
) -> Path:
    """Pictures 64 pixels wide with two squares each, as COCO JSON; `boxes_of` may write other boxes."""
    generator = np.random.default_rng(5)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, num_pictures + 1):
            pixels = generator.integers(90, 130, size=(64, 64, 3), dtype=np.uint8)
            for category in (1, 2):
                side = int(generator.integers(10, 18))
                x, y = (int(value) for value in generator.integers(0, 64 - side, size=2))
                pixels[y : y + side, x : x + side] = (220, 20, 20) if category == 1 else (20, 20, 220)
                box = [x, y, side, side]
                written = box if boxes_of is None else boxes_of(box)
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": written}
                annotations.append(entry)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (folder / split / "_annotations.coco.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, squares: Path) -> None:
    """The second box of the training picture 7 becomes nan on its way to the trainer."""
    targets_of = dataset_file.targets_of

    def with_nan(record: Any) -> Targets:
        targets = targets_of(record)
        if record.path.parts[-2:] == ("train", "7.png"):
            targets.boxes[1, 2] = math.nan
        return targets

    monkeypatch.setattr("detrove.data.originals.targets_of", with_nan)


@pytest.mark.usefixtures("planted")
def test_the_picture_and_the_box_that_yield_nan_are_named(squares: Path, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        train(squares, epochs=2, progress=False, **options(tmp_path / "run", horizontal_flip=0.0))
    told = str(caught.value)
    assert "\n" not in told
    assert f"{squares / 'train' / '7.png'} (id 7): box 2 of 2 (blue; " in told
    assert told.count(".png") == 1
    assert "the loss became nan in step " in told
    assert "on_nonfinite=skip" in told


@pytest.mark.usefixtures("planted")
def test_a_step_that_yields_nan_may_be_skipped(squares: Path, tmp_path: Path, capsys):
    run = train(squares, epochs=3, **options(tmp_path / "run", on_nonfinite="skip"))
    told = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert told
    assert all("7.png (id 7): box 2 of 2 (blue" in line for line in told)
    lines = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]  # a skipped step is one of the epoch's
    assert [line["pictures"] for line in lines] == [8, 16, 24]  # of which four pictures were left out
    assert [line["skipped"] for line in lines] == [1, 1, 1]
    weights = load(run.output).model.state_dict()
    assert all(value.isfinite().all() for value in weights.values())


def test_a_gradient_that_is_no_number_names_its_picture(squares: Path, tmp_path: Path, monkeypatch):
    """The loss of picture 3 is finite and its gradient is not: the root of zero."""
    whole = Criterion.__call__

    def with_bad_slope(self: Criterion, predictions: Any, targets: Any, *rest: Any) -> dict[str, torch.Tensor]:
        losses = whole(self, predictions, targets, *rest)
        if any(target.image_id == 3 for target in targets):
            losses["class"] = losses["class"] + (predictions.logits.sum() * 0).sqrt()
        return losses

    monkeypatch.setattr(Criterion, "__call__", with_bad_slope)
    with pytest.raises(InputError, match=r"the gradient became nan in step \d, on \S+3\.png \(id 3\): lower the rate"):
        train(squares, epochs=1, progress=False, **options(tmp_path / "run"))


def test_a_rate_that_breaks_the_weights_is_told_as_such(squares: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"(no numbers any more|each of them|together).*lower the rate"):
        train(squares, epochs=20, progress=False, **options(tmp_path / "run", learning_rate=1e30, clip_norm=1e30))


def test_skipping_does_not_go_on_for_ever(squares: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Criterion, "total", lambda self, losses: sum(v.sum() for v in losses.values()) * math.nan)
    with pytest.raises(InputError, match="10 steps in a row were skipped: it is not a single picture"):
        train(squares, epochs=9, progress=False, **options(tmp_path / "run", on_nonfinite="skip"))


@contextmanager
def limit_undone() -> Iterator[None]:
    """After this block files may grow as large as before."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullAfter:
    """From the end of an epoch on, the system writes no file beyond a few kilobytes: a disk that is nearly full."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, event: EpochDone) -> None:
        import resource

        if event.line["epoch"] == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.skipif(sys.platform == "win32", reason="files are limited by POSIX means")
def test_a_full_disk_keeps_the_last_state_and_says_so(squares: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trainer, "SAVING_SHARE", 1e9)  # a state after every epoch
    whole = train(squares, epochs=4, progress=False, **options(tmp_path / "whole"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep modules that it could write in part
    arguments = options(tmp_path / "run")
    with limit_undone(), pytest.raises(InputError) as caught:
        train(squares, epochs=4, progress=False, callbacks=[FullAfter(2)], **arguments)
    told = str(caught.value)
    assert "no room left on the disk for" in told
    assert told.endswith("what was saved last is whole (epoch 1, step 3): once there is room, continue with --resume")
    assert not list((tmp_path / "run").rglob("*partial*"))
    assert load(tmp_path / "run").label_map.names == ["red", "blue"]
    again = train(squares, epochs=4, progress=False, resume=True, **arguments)
    assert again.metrics == whole.metrics


def test_a_place_that_cannot_be_written_is_one_line_and_exit_2(squares: Path, tmp_path: Path, monkeypatch, capsys):
    replace = os.replace

    def read_only(source: Any, target: Any) -> None:
        if Path(target).name == "config.yaml":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", read_only)
    status = run_command(command(squares, tmp_path / "run"))
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert last.startswith(f"detrove: error: {tmp_path / 'run' / 'config.yaml'}: cannot be written (Permission denied)")
    assert last.endswith("nothing of the run was saved yet")


def test_a_data_set_whose_boxes_are_all_misread_ends_in_preflight(tmp_path: Path, capsys):
    data = write_squares(tmp_path / "data", boxes_of=lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]])
    status = run_command(command(data, tmp_path / "run"))
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert status == 2
    assert len(told) == 1
    assert "looks like corners" in told[0]
    assert not (tmp_path / "run").exists()


def test_a_data_set_whose_boxes_are_those_of_other_pictures_ends_in_preflight(shared: Path, tmp_path: Path, capsys):
    data, cells = tmp_path / "data", shared / "data" / "bccd"
    write_coco(
        data, {split: with_boxes_of_the_next(open_dataset(cells, split).annotations) for split in ("train", "val")}
    )
    words = ["train", str(data), "--output", str(tmp_path / "run"), "--epochs", "20", "--size", "320"]
    weights = shared / "weights" / "mobilenetv2_100.imagenet.safetensors"
    status = run_command([*words, "--backbone-weights", str(weights)])
    [told] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert status == 2
    assert "the boxes do not belong to their pictures" in told
    assert told.endswith("--set preflight=false to train all the same")
    assert not (tmp_path / "run").exists()


def with_boxes_of_the_next(annotations: Annotations) -> Annotations:
    """The same boxes, each picture's laid on the one before; pictures of one size."""
    paths = list(annotations.paths)
    return dataclasses.replace(annotations, paths=PackedTexts(paths[-1:] + paths[:-1]))


def test_preflight_changes_nothing_in_the_training(squares: Path, tmp_path: Path, capsys):
    runs = {}
    for preflight in (True, False):
        output = tmp_path / str(preflight)
        # A training of a thousand epochs, cut after the first: so long a one is rehearsed.
        train(squares, epochs=1000, callbacks=[EndsAfterTheFirst()], **options(output, preflight=preflight))
        runs[preflight] = safetensors.torch.load_file(output / "last" / "model.safetensors")
        told = capsys.readouterr().err
        assert ("preflight: 4 pictures by heart: loss" in told) == preflight
    assert all(torch.equal(runs[True][name], runs[False][name]) for name in runs[True])


class EndsAfterTheFirst:
    def on_epoch(self, event: EpochDone) -> bool:
        return True


def test_a_detector_trained_at_a_rate_that_collapses_it_alarms(squares: Path, tmp_path: Path, capsys):
    hot = {"learning_rate": 0.1, "backbone_learning_rate": 0.1, "clip_norm": 1e6, "preflight": False}
    run = train(squares, epochs=4, **options(tmp_path / "hot", **hot))
    told = capsys.readouterr().err
    assert told.count("alarm: all queries answer alike") == 1
    assert "Nothing was learned (AP 0.00" in told
    lines = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert ["alarm" in line["watch"] for line in lines].count(True) == 1
    assert "the detector has collapsed" in (run.output / "report.html").read_text()


def test_a_sound_training_does_not_alarm_and_ends_with_a_verdict(squares: Path, tmp_path: Path, capsys):
    run = train(squares, epochs=4, **options(tmp_path / "sound"))
    told = capsys.readouterr().err
    assert "alarm" not in told
    assert "what stood out:" in told
    assert "loss  " in told
    page = (run.output / "report.html").read_text()
    assert "What its queries do" in page
    assert "How far queries differ" in page
