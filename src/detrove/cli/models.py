"""`detrove models`: the catalogue as a table, computed from the built models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.tables import format_table

if TYPE_CHECKING:
    from torch import nn

COLUMNS = {
    "name": "model",
    "backbone": "trunk",
    "encoder": "encoder",
    "num_queries": "queries",
    "cross_attention": "cross-attention",
    "boxes": "boxes",
    "loss": "loss",
    "parameters": "parameters",
    "longer": "size",
}


def models(
    name: str | None = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """List the detectors of the catalogue, or show one with all its settings.

    Size is the longer side, in pixels, that pictures are resized to unless `--size` says otherwise.

    Parameters
    ----------
    name
        One detector of the list.
    as_json
        Print JSON.
    """
    from detrove.models import catalogue

    rows = [summarise(each) for each in ([name] if name else catalogue.preset_names())]
    if as_json:
        print(json.dumps(rows[0] if name else rows, indent=2))
    elif name:
        print(_settings(rows[0]))
    else:
        print(format_table(list(COLUMNS.values()), [[_short(row[key]) for key in COLUMNS] for row in rows]))


def summarise(name: str) -> dict[str, Any]:
    """What one detector of the catalogue is made of, as plain values; an unknown name raises `InputError`."""
    import torch

    from detrove.models import catalogue

    preset = catalogue.preset(name)
    with torch.device("meta"):  # shapes without numbers: built at once, and no memory taken
        model = catalogue.build(preset.config)
    criterion = catalogue.criterion_for(model)
    settings = catalogue.config_to_json(preset.config)
    cross_attention = _attention(model, "cross_attention")
    if criterion.encoder_classes != "none":
        boxes = "proposed, refined"
    elif settings.get("refine"):
        boxes = "refined"
    else:
        boxes = "from a point" if "deformable" in cross_attention else "from the query"
    return {
        "name": name,
        "backbone": settings["backbone"] + (" (DC5)" if settings.get("dilation") else ""),
        "encoder": _attention(model.get_submodule("encoder"), "self_attention"),
        "num_queries": settings["num_queries"],
        "cross_attention": cross_attention,
        "boxes": boxes,
        "loss": criterion.class_loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "longer": preset.preprocessing.longer,
        "published": preset.published,
        "settings": settings,
    }


def _attention(module: nn.Module, name: str) -> str:
    """How many layers have an attention of that name, and of which kind it is."""
    kinds = [type(part).__name__ for path, part in module.named_modules() if path.rpartition(".")[2] == name]
    if not kinds:
        return "none"
    return f"{len(kinds)} {'deformable' if 'Deformable' in kinds[0] else 'dense'}"


def _short(value: Any) -> Any:
    """Counts of parameters in millions."""
    return f"{value / 1e6:.1f} M" if isinstance(value, int) and value >= 100_000 else value


def _settings(row: dict[str, Any]) -> str:
    """One detector as lines of name and value."""
    facts = {heading: _short(row[key]) for key, heading in COLUMNS.items()}
    if row["published"]:
        facts["published"] = row["published"]
    lines = format_table(["", ""], [[heading, str(value)] for heading, value in facts.items()]).splitlines()[1:]
    settings = format_table(["setting", "value"], [[key, str(value)] for key, value in row["settings"].items()])
    return "\n".join([*lines, "", settings])
