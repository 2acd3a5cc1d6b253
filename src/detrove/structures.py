"""What crosses borders in detrove: pictures in, predictions and detections out.

Shapes use one vocabulary: batch B, decoder layer L, query Q, class C, token T, embedding D. Boxes are either
`cxcywh` in [0, 1] **of the unpadded picture** (targets, predictions) or `xyxy` in pixels of the original picture
(detections). Masks are boolean and say their polarity: `padding_mask` is True where there is padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrove.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class ImageBatch:
    """Normalised pictures of different sizes, padded at the bottom and the right to the largest of them.

    `pixels` (B, 3, H, W) float, zero in the padding; `padding_mask` (B, H, W) bool, True = padding;
    `sizes` (B, 2) int64, height and width before padding.
    """

    pixels: Tensor
    padding_mask: Tensor
    sizes: Tensor

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Batch normalised pictures, each (3, h, w); pads only as far as the largest height and width among them."""
        if not images:
            raise InputError("cannot make a batch of no pictures: pass at least one (3, h, w) tensor")
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3:
                raise InputError(f"a picture must be a (3, h, w) tensor, got shape {tuple(image.shape)}")
        sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64)
        height, width = sizes.amax(dim=0).tolist()
        first = images[0]
        pixels = first.new_zeros(len(images), 3, height, width)
        padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=first.device)
        for index, image in enumerate(images):
            pixels[index, :, : image.shape[1], : image.shape[2]] = image
            padding_mask[index, : image.shape[1], : image.shape[2]] = False
        return cls(pixels, padding_mask, sizes.to(first.device))

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> ImageBatch:
        """Move to a device, or cast the pixels to a floating-point type; arguments as `Tensor.to`."""
        pixels = self.pixels.to(*args, **kwargs)
        return ImageBatch(pixels, self.padding_mask.to(pixels.device), self.sizes.to(pixels.device))


@dataclass
class Targets:
    """The true objects of one picture.

    `labels` (N,) int64, contiguous class slots 0..K-1; `boxes` (N, 4) cxcywh in [0, 1] of the unpadded picture;
    optional `is_crowd` (N,) bool, `area` (N,) in pixels² of the original picture, `image_id` as in the data set,
    `original_size` (height, width) in pixels.
    """

    labels: Tensor
    boxes: Tensor
    is_crowd: Tensor | None = None
    area: Tensor | None = None
    image_id: int | str | None = None
    original_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, *args: Any, **kwargs: Any) -> Targets:
        """Move to a device, or cast the boxes to a floating-point type; arguments as `Tensor.to`."""
        boxes = self.boxes.to(*args, **kwargs)
        return dataclasses.replace(
            self,
            boxes=boxes,
            labels=self.labels.to(boxes.device),
            is_crowd=None if self.is_crowd is None else self.is_crowd.to(boxes.device),
            area=None if self.area is None else self.area.to(boxes.device),
        )

    def select(self, keep: Tensor) -> Targets:
        """The objects that the boolean mask or index `keep` names."""
        return dataclasses.replace(
            self,
            labels=self.labels[keep],
            boxes=self.boxes[keep],
            is_crowd=None if self.is_crowd is None else self.is_crowd[keep],
            area=None if self.area is None else self.area[keep],
        )


@dataclass
class Proposals:
    """What a two-stage detector's encoder predicts before any query: `logits` (B, T, C), `boxes` (B, T, 4) cxcywh."""

    logits: Tensor
    boxes: Tensor


@dataclass
class Denoised:
    """What became of the N noised objects that training shows to a decoder beside its queries.

    `logits` (L, B, N, C), `boxes` (L, B, N, 4) cxcywh; `targets` (B, N) int64, the picture's object that a slot is to
    restore, -1 for none; `supervised` (B, N) bool, the slots that count in the class loss. The loss is divided by
    objects times `num_groups`, where `per_process` counts this process's objects, else the mean over all processes.
    """

    logits: Tensor
    boxes: Tensor
    targets: Tensor
    supervised: Tensor
    num_groups: int
    per_process: bool


@dataclass
class Predictions:
    """What a detector predicts: `logits` (L, B, Q, C), `boxes` (L, B, Q, 4) cxcywh in [0, 1]; last layer last.

    `encoder` holds the proposals of a two-stage detector, else None; `denoising` what became of noised objects, in
    training with denoising, else None.
    """

    logits: Tensor
    boxes: Tensor
    encoder: Proposals | None = None
    denoising: Denoised | None = None


@dataclass(frozen=True)
class Category:
    """A class of a data set: its own id there and its name."""

    id: int
    name: str


@dataclass(frozen=True)
class LabelMap:
    """What each class slot of a model stands for: the data set's category, or None for a slot that means nothing.

    Official COCO heads keep 91 slots indexed by raw category id, some of them empty.
    """

    entries: tuple[Category | None, ...]

    @classmethod
    def from_categories(cls, categories: Mapping[int, str]) -> LabelMap:
        """Contiguous slots for categories given as id -> name, in the order of their ids."""
        return cls(tuple(Category(id, categories[id]) for id in sorted(categories)))

    @classmethod
    def numbered(cls, num_classes: int) -> LabelMap:
        """Names "0", "1", … for a model that nobody told what its classes are called."""
        return cls(tuple(Category(index, str(index)) for index in range(num_classes)))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        """One name per slot; "" for an empty slot."""
        return [entry.name if entry else "" for entry in self.entries]

    def slot_of_name(self, name: str) -> int | None:
        """The slot that carries this name, or None."""
        return next((slot for slot, entry in enumerate(self.entries) if entry and entry.name == name), None)

    def slot_of_id(self, category_id: int) -> int | None:
        """The slot that carries the data set's category id, or None."""
        return next((slot for slot, entry in enumerate(self.entries) if entry and entry.id == category_id), None)

    def to_json(self) -> list[dict[str, Any] | None]:
        """A plain list for JSON: {"id", "name"} or null per slot."""
        return [None if entry is None else {"id": entry.id, "name": entry.name} for entry in self.entries]

    @classmethod
    def from_json(cls, entries: Iterable[Mapping[str, Any] | None]) -> LabelMap:
        """The inverse of `to_json`."""
        return cls(tuple(None if e is None else Category(int(e["id"]), str(e["name"])) for e in entries))


@dataclass
class Detections:
    """What a detector saw in one picture.

    `boxes` (N, 4) xyxy in pixels of the original picture; `scores` (N,) in [0, 1], descending; `labels` (N,) class
    slots of `label_map`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    label_map: LabelMap = field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The name of each detection's class."""
        names = self.label_map.names
        return [names[label] for label in self.labels.tolist()]

    def select(self, keep: Tensor) -> Detections:
        """The detections that the boolean mask or index `keep` names."""
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.label_map)

    def above(self, threshold: float | Tensor) -> Detections:
        """Those with a score of at least `threshold`: one number, or a (C,) tensor of one threshold per class slot."""
        if isinstance(threshold, Tensor):
            threshold = threshold.to(self.scores)[self.labels]
        return self.select(self.scores >= threshold)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO result entries: image_id, category_id (the data set's), bbox [x, y, w, h] in pixels, score."""
        results = []
        for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            category = self.label_map.entries[label]
            if category is None:
                continue
            x1, y1, x2, y2 = box
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category.id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
        return results

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, for its trackers and annotators (pip install supervision)."""
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError("to_supervision needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.double().numpy(force=True).reshape(-1, 4),
            confidence=self.scores.double().numpy(force=True),
            class_id=self.labels.numpy(force=True),
            data={"class_name": np.array(self.names, dtype=str)},
        )


RESIZE_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """The one path from a decoded picture to `pixels`, for training, evaluation, prediction, export and serving.

    The picture is resized with its aspect kept: so that its shorter side is `shorter` pixels, unless that would make
    its longer side exceed `longer`; where `shorter` is None the longer side becomes `longer`. Then it is scaled to
    [0, 1] and normalised by `mean` and `std` per channel.

    The published models use shorter 800, longer 1333; rounding follows DETR's `datasets/transforms.py`.
    """

    longer: int = 1333
    shorter: int | None = None
    resize_filter: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.longer < 1 or (self.shorter is not None and self.shorter < 1):
            raise InputError(f"picture size must be positive, got longer={self.longer}, shorter={self.shorter}")
        if self.resize_filter not in RESIZE_FILTERS:
            raise InputError(f"unknown resize filter {self.resize_filter!r}: choose from {', '.join(RESIZE_FILTERS)}")

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture of this size is resized to; neither is ever 0."""
        short, long = min(height, width), max(height, width)
        if self.shorter is None:
            new_short, new_long = round(short * self.longer / long), self.longer
        else:
            new_short = self.shorter
            if long / short * new_short > self.longer:
                new_short = round(self.longer * short / long)
            new_short = max(new_short, 1)
            new_long = long if new_short == short else int(new_short * long / short)
        new_short = max(new_short, 1)
        return (new_short, new_long) if height <= width else (new_long, new_short)

    def resize(self, picture: Image.Image) -> Image.Image:
        """The picture at its target size."""
        height, width = self.target_size(picture.height, picture.width)
        if (width, height) == picture.size:
            return picture
        return picture.resize((width, height), RESIZE_FILTERS[self.resize_filter])

    def normalise(self, picture: Image.Image | Tensor, out: np.ndarray | None = None) -> Tensor:
        """An RGB picture, or its (3, h, w) uint8 values, as a normalised (3, h, w) float32 tensor, not resized.

        `out` is where to write it, if not into new memory.
        """
        values = (
            picture.numpy() if isinstance(picture, Tensor) else np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)
        )
        if out is None:
            out = np.empty(values.shape, dtype=np.float32)
        # In place, and without torch's threads: those wait for their next work at full speed, on a core that a process
        # which loads pictures may need.
        np.divide(values, np.float32(255), out=out)
        out -= np.array(self.mean, dtype=np.float32)[:, None, None]
        out /= np.array(self.std, dtype=np.float32)[:, None, None]
        return torch.from_numpy(out)

    def __call__(self, picture: Image.Image) -> Tensor:
        """A decoded RGB picture, resized and normalised: (3, h, w) float32."""
        return self.normalise(self.resize(picture))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`."""
        values = dict(values)
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
