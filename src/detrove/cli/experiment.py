"""`detrove experiment`: the family's arguments, run on anybody's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detrove.cli.compare import parse_seeds, print_comparison
from detrove.errors import InputError


def experiment(
    name: str | None = None,
    data: Path | None = None,
    /,
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    seeds: str = "0",
    size: int | None = None,
    batch_size: int | None = None,
    backbone_weights: str = "pretrained",
    format: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Run one of the family's arguments on a data set.

    Small arms under one budget, one table, one page. Without a name: lists the experiments. Give --output and call it
    again to go on after an interruption.

    Parameters
    ----------
    name
        fixed-queries, anchors or heads.
    data
        The data set, as for detrove train.
    epochs
        The budget of each arm: times through the data.
    minutes
        The budget of each arm: minutes of training.
    seeds
        Seeds, separated by commas; several tell what is luck.
    size
        The longer side, in pixels, that pictures are resized to. Default: 320.
    batch_size
        Pictures in a step. Default: each recipe's own.
    backbone_weights
        Weights of the trunk, as for detrove train.
    format
        The format of the data, where its folder holds several: coco, voc, yolo or csv.
    settings
        Override one value for all arms, as KEY=VALUE; may be repeated. See detrove train.
    output
        The folder for report.html, comparison.json and the runs; one that the experiment was begun in is gone on with.
        Default: runs/NAME-DATA, numbered.
    as_json
        Print comparison.json, or the list of experiments, as JSON.
    """
    if name is None:
        print(_listed(as_json))
        return
    if data is None:
        raise InputError(f"which data? name the folder of a data set: detrove experiment {name} DATA")
    from detrove.study import experiment as run_experiment
    from detrove.training import parse_setting
    from detrove.training.run_folder import free_folder

    found = run_experiment(
        name,
        data,
        output=output or free_folder(Path("runs"), f"{name}-{data.resolve().name}"),
        epochs=epochs,
        minutes=minutes,
        seeds=parse_seeds(seeds),
        size=size,
        batch_size=batch_size,
        backbone_weights=backbone_weights,
        format=format,
        settings=dict(parse_setting(text) for text in settings or []),
    )
    print_comparison(found, as_json)


def _listed(as_json: bool) -> str:
    """The experiments, what they ask and with which arms."""
    import textwrap

    from detrove.study.experiments import EXPERIMENTS

    if as_json:
        values = {
            name: {"question": each.question, "arms": {arm.name: arm.model for arm in each.arms}}
            for name, each in EXPERIMENTS.items()
        }
        return json.dumps(values, indent=1, ensure_ascii=False)
    parts = []
    for name, each in EXPERIMENTS.items():
        question = textwrap.fill(each.question, width=96, initial_indent="  ", subsequent_indent="  ")
        arms = [f"    {arm.name} ({arm.model})" for arm in each.arms]
        parts.append("\n".join([name, question, *arms]))
    return "\n\n".join([*parts, "run one: detrove experiment NAME DATA --epochs 20"])
