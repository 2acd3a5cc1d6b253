"""A model together with what it takes to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.inference.engines import Engine
from detrove.inference.postprocess import postprocess
from detrove.inference.sources import expand, read_source
from detrove.inference.tiling import detect_in_tiles
from detrove.structures import Detections, ImageBatch, LabelMap, Predictions, Preprocessing
from detrove.tiling import Tiling, asked_tiling

DEFAULT_THRESHOLD = 0.5


class Detector:
    """A model, its preprocessing and its labels: give it pictures, get detections.

    `thresholds` (C,) holds the score from which on a detection of each class slot is shown, chosen on validation
    pictures; None where nobody chose any. `name` is the catalogue name, or "". `tiling` is how it looks at large
    pictures, where it was trained on tiles; None: it sees every picture as a whole. `engine` computes in the model's
    place (`detrove.optimize`), where there is one; `model` stays what is saved and looked into.

    Saving, evaluating and exporting are functions beside it: `detrove.save`, `detrove.evaluate`, ….
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        label_map: LabelMap,
        thresholds: Tensor | None = None,
        name: str = "",
        tiling: Tiling | None = None,
        engine: Engine | None = None,
    ) -> None:
        if thresholds is not None and thresholds.shape != (len(label_map),):
            raise ValueError(f"{tuple(thresholds.shape)} thresholds for {len(label_map)} class slots")
        self.model = model
        self.preprocessing = preprocessing
        self.label_map = label_map
        self.thresholds = thresholds
        self.name = name
        self.tiling = tiling
        self.engine = engine

    def __repr__(self) -> str:
        classes = ", ".join(name for name in self.label_map.names[:5] if name)
        more = f", … {len(self.label_map)} in all" if len(self.label_map) > 5 else ""
        return f"Detector({self.name or type(self.model).__name__}, classes: {classes}{more})"

    @overload
    def predict(
        self,
        source: list[Any] | tuple[Any, ...],
        threshold: float | None = None,
        batch_size: int = 8,
        tiles: int | Tiling | None = None,
    ) -> list[Detections]: ...

    @overload
    def predict(
        self,
        source: Image.Image | np.ndarray | Tensor,
        threshold: float | None = None,
        batch_size: int = 8,
        tiles: int | Tiling | None = None,
    ) -> Detections: ...

    @overload
    def predict(
        self, source: str | Path, threshold: float | None = None, batch_size: int = 8, tiles: int | Tiling | None = None
    ) -> Detections | list[Detections]: ...

    def predict(
        self, source: Any, threshold: float | None = None, batch_size: int = 8, tiles: int | Tiling | None = None
    ) -> Detections | list[Detections]:
        """Detect objects in one picture, or in each of many.

        `source` is a path, a PIL picture, an (H, W, 3) RGB or (H, W) grey array, a (3, h, w) tensor (8-bit, or floats
        in [0, 1], not normalised), or a list of those, a folder or a glob. One picture gives `Detections`; a list,
        folder or glob gives a list of them, in its order.

        Kept are detections with a score of at least `threshold`, in [0, 1]; None means the stored threshold of each
        class, or 0.5 where none is stored. `batch_size` pictures at a time go through the model, padded to the
        largest of them, on the device and in the floating-point type of its parameters, or as its engine computes.

        `tiles` cuts large pictures: into squares of so many pixels, or as a `detrove.tiling.Tiling` says. Tiles and the
        whole picture go through the model, and what several of them have seen is joined (`inference.tiling`). 0 means
        whole pictures only; None as the detector was trained, which is whole pictures but for training on tiles.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        tiling = asked_tiling(tiles, default=self.tiling)
        sources = expand(source)
        if sources is None:
            return self._shown(self._detect([read_source(source)], tiling, batch_size)[0], threshold)
        found: list[Detections] = []
        for start in range(0, len(sources), batch_size):
            pictures = [read_source(item) for item in sources[start : start + batch_size]]
            found.extend(
                self._shown(detections, threshold) for detections in self._detect(pictures, tiling, batch_size)
            )
        return found

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """All detections, whatever their score, in upright RGB pictures, as one batch.

        What evaluation needs: the model's `config.num_detections` best of each picture, by descending score. A detector
        with a `tiling` looks at the tiles of large pictures, as many at a time as there are pictures, and answers so
        many for each tile's area.
        """
        return self._detect(pictures, self.tiling, len(pictures))

    def _detect(self, pictures: Sequence[Image.Image], tiling: Tiling | None, batch_size: int) -> list[Detections]:
        """As one batch those that are seen whole, the others in tiles, `batch_size` at a time."""
        is_large = [tiling is not None and len(tiling.tiles(*picture.size)) > 1 for picture in pictures]
        small = [picture for picture, large in zip(pictures, is_large, strict=True) if not large]
        seen_whole = iter(self._detect_batch(small) if small else [])
        config: Any = self.model.config
        return [
            detect_in_tiles(picture, tiling, self._detect_batch, batch_size, config.num_detections)
            if tiling is not None and large
            else next(seen_whole)
            for picture, large in zip(pictures, is_large, strict=True)
        ]

    def _detect_batch(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        images = ImageBatch.from_images([self.preprocessing(picture) for picture in pictures])
        predictions = self._ask_model(images) if self.engine is None else self.engine(images)
        config: Any = self.model.config
        sizes = [(picture.height, picture.width) for picture in pictures]
        return postprocess(predictions, sizes, self.label_map, config.scores, config.num_detections)

    def _ask_model(self, images: ImageBatch) -> Predictions:
        """In evaluation mode, on the device and in the type of its parameters; its mode stays as it was."""
        parameter = next(self.model.parameters())
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return self.model(images.to(device=parameter.device, dtype=parameter.dtype))
        finally:
            self.model.train(was_training)

    def _shown(self, detections: Detections, threshold: float | None) -> Detections:
        """Those that reach the threshold: the one given, else the stored ones, else 0.5."""
        if threshold is not None:
            return detections.above(threshold)
        return detections.above(DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds)
