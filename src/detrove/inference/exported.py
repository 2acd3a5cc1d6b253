"""Exported files: what they tell of themselves, and how one becomes a detector."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.inference.detector import Detector
from detrove.inference.engines.files import FileEngine
from detrove.models import catalogue
from detrove.structures import ImageBatch, LabelMap, Predictions, Preprocessing
from detrove.tiling import Tiling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detrove.structures import Targets

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
"""The kinds of exported files, and how their names end."""

KEY = "detrove"
"""Where a file's metadata holds `FileFacts.to_text`: an entry of ONNX's, or of OpenVINO's runtime information."""

FORMAT, FORMAT_VERSION = "detrove export", 1


@dataclass(frozen=True)
class FileFacts:
    """What an exported file says of itself, beside its graph.

    `config` is the model's (`catalogue.config_to_json`), `preset` its catalogue name or None; `precision` is what it
    computes in: "float32", "float16", "bfloat16" or "int8". `postprocess`: it gives detections instead of logits.
    """

    config: dict[str, Any]
    preset: str | None
    label_map: LabelMap
    preprocessing: Preprocessing
    thresholds: Tensor | None
    tiling: Tiling | None
    precision: str
    postprocess: bool

    @classmethod
    def of(cls, detector: Detector, precision: str, postprocess: bool) -> FileFacts:
        """Those of a file that a detector is exported to."""
        return cls(
            catalogue.config_to_json(detector.model.config),
            detector.name or None,
            detector.label_map,
            detector.preprocessing,
            detector.thresholds,
            detector.tiling,
            precision,
            postprocess,
        )

    def to_text(self) -> str:
        """One JSON object; `format_version` grows when a reader of before could not read it."""
        return json.dumps(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "detrove_version": version("detrove"),
                "preset": self.preset,
                "config": self.config,
                "labels": self.label_map.to_json(),
                "preprocessing": self.preprocessing.to_json(),
                "thresholds": None if self.thresholds is None else self.thresholds.tolist(),
                "tiling": None if self.tiling is None else self.tiling.to_json(),
                "precision": self.precision,
                "postprocess": self.postprocess,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> FileFacts:
        """The inverse of `to_text`; raises `InputError`, naming the file, for another's or a newer one's metadata."""
        if text is None:
            raise InputError(
                f"{path}: was not written by detrove export (its metadata names no classes and no preprocessing); "
                "export the weights it came from"
            )
        try:
            values = json.loads(text)
            if values["format_version"] > FORMAT_VERSION:
                raise InputError(
                    f"{path}: format version {values['format_version']} is newer than this detrove reads "
                    f"({FORMAT_VERSION}); update it: pip install --upgrade detrove"
                )
            thresholds, tiling = values["thresholds"], values["tiling"]
            return cls(
                values["config"],
                values["preset"],
                LabelMap.from_json(values["labels"]),
                Preprocessing.from_json(values["preprocessing"]),
                None if thresholds is None else torch.tensor(thresholds),
                None if tiling is None else Tiling.from_json(tiling),
                values["precision"],
                values["postprocess"],
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: its metadata is damaged ({error!r}); export it again") from None


class ExportedModel(nn.Module):
    """An exported file in a model's place: it answers, and holds no weights that could be saved, taught or looked into.

    `config` is the model's it was made from; one with post-processing answers as if it knew "no object".
    """

    def __init__(self, engine: FileEngine, facts: FileFacts, path: Path) -> None:
        super().__init__()
        config = catalogue.config_from_json(facts.config)
        self.config: Any = dataclasses.replace(config, scores="softmax") if facts.postprocess else config
        self.engine, self.path = engine, path
        # Nothing in it, for those who ask a model's parameters where and in which type it computes.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:  # noqa: ARG002
        """The last layer's answer, as `FileEngine` gives it."""
        return self.engine(images)

    def state_dict(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:  # pyright: ignore  # noqa: ARG002
        """Raises `InputError`."""
        raise InputError(f"{self.path}: an exported file's weights cannot be saved; take those it came from")


def is_exported(path: Path) -> bool:
    """Whether a name is that of an exported file."""
    return path.suffix.lower() in SUFFIXES.values()


def load_exported(path: Path) -> Detector:
    """The detector of a file that `detrove export` wrote, under the engine of its kind, with torch's threads.

    Raises `InputError` where it is missing, damaged, another program's, or its engine is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    is_onnx = path.suffix.lower() == SUFFIXES["onnx"]
    facts, engine = _open_onnx(path) if is_onnx else _open_openvino(path)
    return Detector(
        ExportedModel(engine, facts, path),
        facts.preprocessing,
        facts.label_map,
        facts.thresholds,
        facts.preset or "",
        facts.tiling,
        engine,
    )


def _open_onnx(path: Path) -> tuple[FileFacts, FileEngine]:
    from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine

    try:
        engine = OnnxRuntimeEngine(path)
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime's own kinds of errors derive from nothing but Exception
        raise InputError(f"{path}: ONNX Runtime cannot read it ({_first_line(error)}); export it again") from None
    facts = FileFacts.from_text(engine.session.get_modelmeta().custom_metadata_map.get(KEY), path)
    engine.precision, engine.num_slots = facts.precision, len(facts.label_map)
    return facts, engine


def _open_openvino(path: Path) -> tuple[FileFacts, FileEngine]:
    from detrove.inference.engines.openvino import OpenVinoEngine, runtime_information

    try:
        text = runtime_information(path, KEY)
    except RuntimeError as error:
        raise InputError(
            f"{path}: OpenVINO cannot read it ({_first_line(error)}); it needs its {path.stem}.bin beside it, else "
            "export it again"
        ) from None
    facts = FileFacts.from_text(text, path)
    return facts, OpenVinoEngine(path, facts.precision, len(facts.label_map))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
