"""A model together with what it takes to use it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.inference.ahead import ahead
from detrove.inference.engines import Engine
from detrove.inference.postprocess import postprocess
from detrove.inference.sources import expand, read_source
from detrove.inference.tiling import detect_in_tiles
from detrove.structures import Detections, ImageBatch, LabelMap, Predictions, Preprocessing
from detrove.tiling import Tiling, asked_tiling

DEFAULT_THRESHOLD = 0.5

BATCHES_SORTED = 4
"""How many batches of pictures are read before they are put into batches by their size."""


@dataclass(frozen=True)
class _Ready:
    """A picture that waits for the model: resized, or whole where it is large and will be cut into tiles."""

    picture: Image.Image
    size: tuple[int, int]
    is_large: bool


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

    def with_engine(self, engine: Engine) -> Detector:
        """The same detector, in whose model's place an engine computes; the model is shared."""
        return Detector(self.model, self.preprocessing, self.label_map, self.thresholds, self.name, self.tiling, engine)

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
        folder or glob gives a list of them, in its order; the next pictures are read while the model computes.

        Kept are detections with a score of at least `threshold`, in [0, 1]; None means the stored threshold of each
        class, or 0.5 where none is stored. `batch_size` pictures at a time go through the model, those of one size
        together where possible, padded to the largest of them, on the device and in the floating-point type of its
        parameters, or as its engine computes.

        `tiles` cuts large pictures: into squares of so many pixels, or as a `detrove.tiling.Tiling` says. Tiles and the
        whole picture go through the model, and what several of them have seen is joined (`inference.tiling`). 0 means
        whole pictures only; None as the detector was trained, which is whole pictures but for training on tiles.
        """
        _refuse_impossible(threshold, batch_size)
        tiling = asked_tiling(tiles, default=self.tiling)
        sources = expand(source)
        if sources is None:
            return self._shown(self._detect([read_source(source)], tiling, batch_size)[0], threshold)
        return list(self._stream(sources, threshold, batch_size, tiling))

    def stream(
        self,
        sources: Iterable[Any] | str | Path,
        threshold: float | None = None,
        batch_size: int = 8,
        tiles: int | Tiling | None = None,
    ) -> Generator[Detections, None, None]:
        """As `predict` with a list, one `Detections` after the other as they come, in the order of the pictures.

        `sources` may be any iterable, endless ones too: it is read no further ahead than a few batches, and memory
        stays the same however many pictures there are. With a `batch_size` of 1 every picture is answered before the
        next one is computed. A picture that cannot be read raises `InputError` after all before it are answered.
        """
        _refuse_impossible(threshold, batch_size)
        tiling = asked_tiling(tiles, default=self.tiling)
        return self._stream(_singles(sources), threshold, batch_size, tiling)

    def _stream(
        self, sources: Iterable[Any], threshold: float | None, batch_size: int, tiling: Tiling | None
    ) -> Generator[Detections, None, None]:
        def ready(source: Any) -> _Ready | InputError:
            try:
                return self._ready(read_source(source), tiling)
            except InputError as error:
                return error

        # Pictures are sorted by their size within a few batches, so that little padding is computed.
        window = batch_size if batch_size == 1 else BATCHES_SORTED * batch_size
        pictures = ahead(sources, ready, window)
        while waiting := list(islice(pictures, window)):
            failed = next((index for index, one in enumerate(waiting) if isinstance(one, InputError)), None)
            readable = [one for one in waiting[:failed] if isinstance(one, _Ready)]
            for detections in self._detect_ready(readable, tiling, batch_size):
                yield self._shown(detections, threshold)
            if failed is not None:
                error = waiting[failed]
                assert isinstance(error, InputError)
                raise error

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """All detections, whatever their score, in upright RGB pictures, as one batch.

        What evaluation needs: the model's `config.num_detections` best of each picture, by descending score. A detector
        with a `tiling` looks at the tiles of large pictures, as many at a time as there are pictures, and answers so
        many for each tile's area.
        """
        return self._detect(pictures, self.tiling, len(pictures))

    def _detect(self, pictures: Sequence[Image.Image], tiling: Tiling | None, batch_size: int) -> list[Detections]:
        """As one batch those that are seen whole, the others in tiles, `batch_size` at a time."""
        return self._detect_ready([self._ready(picture, tiling) for picture in pictures], tiling, batch_size)

    def _ready(self, picture: Image.Image, tiling: Tiling | None) -> _Ready:
        """Resized, but for a large picture that will be cut."""
        is_large = tiling is not None and len(tiling.tiles(*picture.size)) > 1
        size = picture.height, picture.width
        return _Ready(picture if is_large else self.preprocessing.resize(picture), size, is_large)

    def _detect_ready(self, pictures: Sequence[_Ready], tiling: Tiling | None, batch_size: int) -> list[Detections]:
        """In their order; those that are seen whole go into batches by their size."""
        config: Any = self.model.config
        found: dict[int, Detections] = {}
        small = [index for index, picture in enumerate(pictures) if not picture.is_large]
        small.sort(key=lambda index: (pictures[index].picture.height, pictures[index].picture.width))
        for start in range(0, len(small), batch_size):
            batch = small[start : start + batch_size]
            resized, sizes = [pictures[i].picture for i in batch], [pictures[i].size for i in batch]
            found.update(zip(batch, self._detect_resized(resized, sizes), strict=True))
        for index, one in enumerate(pictures):
            if one.is_large:
                assert tiling is not None
                found[index] = detect_in_tiles(
                    one.picture, tiling, self._detect_batch, batch_size, config.num_detections
                )
        return [found[index] for index in range(len(pictures))]

    def _detect_batch(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        sizes = [(picture.height, picture.width) for picture in pictures]
        return self._detect_resized([self.preprocessing.resize(picture) for picture in pictures], sizes)

    def _detect_resized(self, pictures: Sequence[Image.Image], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """One batch of resized pictures, and what (height, width) they had before."""
        images = ImageBatch.from_images([self.preprocessing.normalise(picture) for picture in pictures])
        predictions = self._ask_model(images) if self.engine is None else self.engine(images)
        config: Any = self.model.config
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


def _refuse_impossible(threshold: float | None, batch_size: int) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")


def _singles(sources: Iterable[Any] | str | Path) -> Iterator[Any]:
    """The single pictures of a path or an array, or of an iterable, which is read one by one."""
    is_array = isinstance(sources, (np.ndarray, Tensor)) and sources.ndim < 4
    if is_array or isinstance(sources, (str, Path)) or not isinstance(sources, Iterable):
        sources = [sources]
    for item in sources:
        yield from expand([item]) or []
