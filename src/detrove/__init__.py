"""Detection transformers that train on small data, show why, and export only what they can prove.

The public names below are all there is to learn; each is imported when it is first used, so that `import detrove` is
instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detrove.lazily import imported_on_use

if TYPE_CHECKING:
    from detrove.checkpoints import save
    from detrove.errors import InputError
    from detrove.evaluation import evaluate
    from detrove.export import optimize
    from detrove.inference import Detector, load
    from detrove.models.catalogue import create, criterion_for
    from detrove.structures import Detections, ImageBatch, LabelMap, Predictions, Preprocessing, Targets
    from detrove.study import record
    from detrove.training import train

    __version__: str

_HOMES = {
    "Detections": "detrove.structures",
    "Detector": "detrove.inference",
    "ImageBatch": "detrove.structures",
    "InputError": "detrove.errors",
    "LabelMap": "detrove.structures",
    "Predictions": "detrove.structures",
    "Preprocessing": "detrove.structures",
    "Targets": "detrove.structures",
    "create": "detrove.models.catalogue",
    "criterion_for": "detrove.models.catalogue",
    "evaluate": "detrove.evaluation",
    "load": "detrove.inference",
    "optimize": "detrove.export",
    "record": "detrove.study",
    "save": "detrove.checkpoints",
    "train": "detrove.training",
}

__all__ = [
    "Detections",
    "Detector",
    "ImageBatch",
    "InputError",
    "LabelMap",
    "Predictions",
    "Preprocessing",
    "Targets",
    "__version__",
    "create",
    "criterion_for",
    "evaluate",
    "load",
    "optimize",
    "record",
    "save",
    "train",
]

_find = imported_on_use(__name__, globals(), _HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name != "__version__":
        return _find(name)
    from importlib.metadata import version

    value = globals()[name] = version("detrove")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
