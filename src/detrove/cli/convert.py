"""`detrove convert`: weights of another origin as a detrove file, or a detrove file for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.tables import format_table
from detrove.errors import InputError, nearest

if TYPE_CHECKING:
    from detrove.checkpoints import Checkpoint
    from detrove.checkpoints.official import ImportReport

FILE, HUGGING_FACE = "detrove", "hugging-face"
TARGETS = (FILE, HUGGING_FACE)
SUFFIX = ".safetensors"


def convert(
    weights: str,
    output: Path,
    /,
    *,
    model: str | None = None,
    to: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Turn weights into another layout.

    Weights of another origin become a detrove file, or weights a folder for Hugging Face. The classes, the settings
    and the picture size travel along. Nothing in a foreign file is run.

    Parameters
    ----------
    weights
        A run folder, a .safetensors file, a checkpoint of an official code (.pth, or the published name of one), or a
        folder or owner/name in Hugging Face's layout.
    output
        A new NAME.safetensors, or a new folder for Hugging Face.
    model
        The detector of the catalogue that the weights belong to, where they do not tell by themselves.
    to
        detrove (a file that predicts by itself) or hugging-face (a folder for `from_pretrained`). By default what the
        output's name looks like.
    as_json
        Print the report as JSON.
    """
    target = _target(to, output)
    if output.exists() and not (target == HUGGING_FACE and output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: exists already; choose another name, or remove it")
    from detrove.checkpoints.reading import read_with_report
    from detrove.inference.load import weights_file

    checkpoint, report = read_with_report(weights_file(Path(weights)), model)
    if target == FILE:
        from detrove.checkpoints import save

        save(checkpoint, output)
    else:
        from detrove.checkpoints.hugging_face import export_folder

        export_folder(checkpoint, output)
    facts = _facts(checkpoint, report, output)
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else _table(facts))


def _target(to: str | None, output: Path) -> str:
    """What to write, checked against the output's name before anything is read."""
    if to is None:
        to = HUGGING_FACE if output.suffix == "" else FILE
    if to not in TARGETS:
        raise InputError(f"--to {to}: unknown; {nearest(to, TARGETS)}")
    if to == FILE and output.suffix != SUFFIX:
        raise InputError(f"{output}: a detrove file's name ends in {SUFFIX}; name it so, or a folder for Hugging Face")
    if to == HUGGING_FACE and output.suffix == SUFFIX:
        raise InputError(f"{output}: for Hugging Face name a folder, not a file")
    return to


def _facts(checkpoint: Checkpoint, report: ImportReport, output: Path) -> dict[str, Any]:
    """What was read and written, as plain values."""
    import torch

    from detrove.models import catalogue

    with torch.device("meta"):  # to count, no numbers are needed
        model = catalogue.build(catalogue.config_from_json(checkpoint.config))
    return {
        "source": str(checkpoint.source),
        "layout": report.layout,
        "detector": checkpoint.config["detector"],
        "model": checkpoint.preset,
        "matched": len(report.matched),
        "left_out": {kind: list(keys) for kind, keys in report.dropped.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": [name for name in checkpoint.label_map.names if name],
        "class_slots": len(checkpoint.label_map),
        "written": str(output),
    }


def _table(facts: dict[str, Any]) -> str:
    left_out = [
        f"{len(keys)} {kind} ({keys[0]}{', …' if keys[1:] else ''})" for kind, keys in facts["left_out"].items()
    ]
    names = facts["classes"]
    some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    lines = {
        "from": f"{facts['source']} (layout: {facts['layout']})",
        "model": facts["model"] or facts["detector"],
        "tensors": f"{facts['matched']}, none missing, none unexpected",
        "left out": "; ".join(left_out) or "nothing",
        "parameters": f"{facts['parameters'] / 1e6:.1f} M",
        "classes": f"{len(names)} named of {facts['class_slots']} slots ({some})",
        "written": facts["written"],
    }
    return format_table(["", ""], [[name, text] for name, text in lines.items()]).lstrip("\n")
