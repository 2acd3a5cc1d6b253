"""`detrove train`: from labelled pictures to a run folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detrove.errors import InputError


def train(
    data: Path | None = None,
    /,
    *,
    model: str | None = None,
    output: Path | None = None,
    format: str | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    size: int | None = None,
    batch_size: str | None = None,
    backbone_weights: str = "pretrained",
    weights: Path | None = None,
    ignore_heads: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    resume: Annotated[bool, Parameter(negative=())] = False,
    rectangular: Annotated[bool, Parameter(negative=())] = False,
    cache: str | None = None,
    tiles: int | None = None,
    tile_overlap: float | None = None,
    devices: int | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    config: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Train a detector on your own labelled pictures.

    The run folder gets the best weights (all that predicting needs), the state to continue from, the numbers of every
    epoch and a report. Ctrl-C ends a training early, with all of that; it counts as done (exit status 0). A second
    Ctrl-C skips what is left to do.

    Parameters
    ----------
    data
        The data set: a folder in COCO, VOC, YOLO or CSV format (found by looking). It is validated on its split val;
        where there is none, on 15% of the training pictures, which are held out.
    model
        A detector of the catalogue: see detrove models. Default: what --weights hold, else detrove-nano; with --minutes
        alone the largest of detrove's own that this machine shows enough pictures in them.
    output
        The run folder, which must not exist yet. Default: runs/DATA-MODEL, numbered.
    format
        The format of the data, where its folder holds several: coco, voc, yolo or csv.
    epochs
        Length of the training: times through the data. Default: the model's recipe.
    minutes
        Length of the training: a budget of training time instead; the learning rate follows the clock.
    size
        The longer side, in pixels, that pictures are resized to; the aspect is kept. Default: the model's own.
    batch_size
        Pictures in a step, of all devices together. The learning rate is not changed with it. "auto" keeps the recipe's
        number and finds by measuring in how many parts a step fits the memory.
    backbone_weights
        Weights of the trunk: a .safetensors file in timm's names, "pretrained" for timm's own download (random where
        offline), or "none".
    weights
        Start from a trained detector: a run folder, a best.safetensors or another checkpoint. Its classes that the
        data set also has, by name, are kept; the others start anew.
    ignore_heads
        Start all classes anew, whatever --weights know of them.
    seed
        The same seed and --epochs give the same training again.
    resume
        Continue the run in --output; repeat the options it was begun with (its length may change).
    rectangular
        Batches of pictures of similar shape: hardly any padding, so faster where shapes differ. All pictures of a batch
        share one random size.
    cache
        Keep decoded pictures for the next epoch, in at most this much memory and disk, for example 2GB.
    tiles
        For large pictures with small objects: learn from tiles of this many pixels, and from the whole pictures. The
        detector is validated and will predict in the same way. Tiles without objects are a fifth of all at most (--set
        empty_tiles=0.2).
    tile_overlap
        What neighbouring tiles share, 0 to 0.8 of their side; objects up to that size are whole in a tile. Default 0.2.
    devices
        Train in so many processes on this machine, one on each GPU (or all on the CPU), which share every batch. With
        torchrun or accelerate launch: leave it out.
    settings
        Override one value of the recipe, of the model or of the preprocessing, as KEY=VALUE; may be repeated. For
        example --set learning_rate=2e-4 --set model.num_queries=50.
    config
        Train again as the config.yaml of another run says, instead of DATA and options; --output names the new folder.
    as_json
        Print the validation numbers as JSON.
    """
    from detrove.training import TrainingConfig, parse_setting
    from detrove.training import run as run_config
    from detrove.training import train as run_training

    if config is not None:
        if data is not None or output is None:
            raise InputError("--config takes everything but the place from its file: leave out DATA and name --output")
        values = dataclasses.replace(TrainingConfig.from_yaml(config), output=str(output))
        run = run_config(values, resume=resume, devices=devices)
    elif data is None:
        raise InputError("which data? name the folder of a data set: detrove train DATA")
    else:
        run = run_training(
            data,
            model=model,
            output=output,
            format=format,
            epochs=epochs,
            minutes=minutes,
            size=size,
            batch_size=batch_size if batch_size is None or batch_size == "auto" else _whole_number(batch_size),
            weights=weights,
            ignore_heads=ignore_heads,
            backbone_weights=backbone_weights,
            seed=seed,
            resume=resume,
            rectangular=rectangular or None,
            cache=cache,
            tiles=tiles,
            tile_overlap=tile_overlap,
            devices=devices,
            settings=dict(parse_setting(text) for text in settings or []),
        )
    if as_json:
        metrics = run.metrics.to_json() if run.metrics else None
        print(json.dumps({"output": str(run.output), "metrics": metrics}, indent=2))
    else:
        print(f"next: detrove predict {run.output} PICTURES --output found")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--batch-size {text}: give a whole number, or auto") from None
