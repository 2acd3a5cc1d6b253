"""`detrove models`: the catalogue as a table, computed from the built models."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.tables import format_table

if TYPE_CHECKING:
    from detrove.models.facts import Facts

COLUMNS = {
    "name": "model",
    "backbone": "trunk",
    "encoder": "encoder",
    "queries": "queries",
    "cross_attention": "cross-att.",
    "boxes": "box from",
    "loss": "loss",
    "parameters": "params",
    "multiply_adds": "GMACs",
}
WIDTH = 120


def models(
    name: str | None = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """List the detectors, or show all settings of one.

    One is shown with its paper and its differences from DETR.

    Parameters
    ----------
    name
        One detector of the list.
    as_json
        Print JSON.
    """
    from detrove.models.facts import all_facts, facts

    everything = [facts(name)] if name else all_facts()
    if as_json:
        rows = [dataclasses.asdict(each) for each in everything]
        print(json.dumps(rows[0] if name else rows, indent=2, ensure_ascii=False))
    else:
        print(_settings(everything[0]) if name else _table(everything))


def _table(everything: list[Facts]) -> str:
    from detrove.models.facts import explanation

    rows = [[_narrow(key, getattr(each, key)) for key in COLUMNS] for each in everything]
    told = f"{explanation(everything)} DN: denoising in training."
    return "\n".join([format_table(list(COLUMNS.values()), rows), "", *textwrap.wrap(told, WIDTH)])


def _narrow(key: str, value: Any) -> Any:
    """A fact in as few columns as it can be read in; figures end below each other."""
    from detrove.models.facts import shorten

    text = shorten(key, value)
    if key == "queries":
        return value
    if key in ("parameters", "multiply_adds"):
        return text.rjust(len(COLUMNS[key]))
    if key == "cross_attention":  # modulated attention is concatenated, too
        return text.replace("concatenated, modulated", "modulated").replace("concatenated", "concat.")
    if key == "boxes":  # anchors and proposals are always refined
        return text.replace("refined anchor", "anchor").replace("refined proposal", "proposal")
    if key == "loss":
        return text.replace(", denoising", "+DN")
    return text.replace(" + ", "+").replace("(", "").replace(" heads)", "")


def _settings(each: Facts) -> str:
    """One detector: its paper, what differs, lines of name and value, and all its settings."""
    from detrove.models.facts import shorten

    lines = {
        **{heading: getattr(each, key) for key, heading in COLUMNS.items()},
        "strides": each.levels,
        "params": f"{each.parameters:,}, of which {each.trainable:,} learn in the published recipe",
        "GMACs": f"{shorten('multiply_adds', each.multiply_adds)} at {each.width}×{each.height} pixels",
        "published": each.published or "nothing",
    }
    settings = format_table(["setting", "value"], [[key, str(value)] for key, value in each.settings.items()])
    parts = [
        "\n".join(textwrap.wrap(each.paper, WIDTH)),
        each.differences,
        format_table(["", ""], [[heading, str(value)] for heading, value in lines.items()]).split("\n", 1)[1],
        settings,
    ]
    return "\n\n".join(part for part in parts if part)
