"""What an exported detector sees in a picture, with ONNX Runtime, NumPy and Pillow alone.

    pip install onnxruntime numpy pillow
    python onnx_numpy_pillow.py model.onnx picture.jpg [threshold]

`model.onnx` is what `detrove export … --output model.onnx` wrote, in any precision, of free or fixed size, with or
without post-processing. Everything else it takes stands in the file's metadata.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class OnnxDetector:
    """A file and what it tells of itself."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.facts = json.loads(self.session.get_modelmeta().custom_metadata_map["detrove"])
        self.names = [entry["name"] if entry else "" for entry in self.facts["labels"]]
        thresholds = self.facts["thresholds"] or [0.5] * len(self.names)
        self.thresholds = np.array(thresholds, dtype=np.float32)

    def predict(self, picture: Image.Image, threshold: float | None = None) -> list[tuple[str, float, list[float]]]:
        """Name, score and box (left, top, right, bottom in pixels) of each detection, best first."""
        inputs = self.inputs(picture)
        outputs = dict(zip((o.name for o in self.session.get_outputs()), self.session.run(None, inputs), strict=True))
        if self.facts["postprocess"]:
            boxes, scores, labels = (outputs[name][0] for name in ("boxes", "scores", "labels"))
        else:
            boxes, scores, labels = self.detections(outputs["logits"][0], outputs["boxes"][0], picture.size)
        keep = scores >= (self.thresholds[labels] if threshold is None else threshold)
        found = zip(labels[keep], scores[keep], boxes[keep], strict=True)
        return [(self.names[label], float(score), box.tolist()) for label, score, box in found]

    def inputs(self, picture: Image.Image) -> dict[str, np.ndarray]:
        """An upright RGB picture as the file takes it: resized, normalised, padded where its size is fixed."""
        preprocessing = self.facts["preprocessing"]
        width, height = target_size(*picture.size, preprocessing["longer"], preprocessing["shorter"])
        resized = picture.resize((width, height), FILTERS[preprocessing["resize_filter"]])
        mean, std = (np.array(preprocessing[name], dtype=np.float32) for name in ("mean", "std"))
        pixels = ((np.asarray(resized, dtype=np.float32) / 255 - mean) / std).transpose(2, 0, 1)

        wanted = {value.name: value.shape for value in self.session.get_inputs()}
        batch, _, most_rows, most_columns = (
            wanted["pixels"] if isinstance(wanted["pixels"][2], int) else (1, 3, height, width)
        )
        given = {
            "pixels": np.zeros((batch, 3, most_rows, most_columns), dtype=np.float32),
            "padding_mask": np.ones((batch, most_rows, most_columns), dtype=bool),  # True = padding
            "original_sizes": np.array([[picture.height, picture.width]] * batch, dtype=np.int64),
        }
        given["pixels"][:, :, :height, :width] = pixels
        given["padding_mask"][:, :height, :width] = False
        return {name: given[name] for name in wanted}

    def detections(
        self, logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits (Q, C) and boxes (Q, 4), centre and size in [0, 1], to boxes in pixels, scores and labels."""
        config, logits = self.facts["config"], logits.astype(np.float64)
        if config["scores"] == "softmax":  # the last class is "no object"; each query gives its best one
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores = (scores / scores.sum(axis=1, keepdims=True))[:, :-1]
            queries, labels = np.arange(len(scores)), scores.argmax(axis=1)
        else:  # every query and class may be a detection
            scores = 1 / (1 + np.exp(-logits))
            queries, labels = (index.ravel() for index in np.indices(scores.shape))
        scores = scores[queries, labels]
        best = np.argsort(-scores, kind="stable")[: config["num_detections"]]
        centre, extent = boxes[queries[best], :2], boxes[queries[best], 2:]
        corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1).clip(0, 1)
        return corners * np.array([*size, *size]), scores[best], labels[best]


def target_size(width: int, height: int, longer: int, shorter: int | None) -> tuple[int, int]:
    """Width and height to resize to, aspect kept: the shorter side becomes `shorter`, the longer at most `longer`.

    Where there is no `shorter`, the longer side becomes `longer`.
    """
    short, long = min(width, height), max(width, height)
    if shorter is None:
        new_short, new_long = round(short * longer / long), longer
    else:
        new_short = round(longer * short / long) if long / short * shorter > longer else shorter
        new_short = max(new_short, 1)
        new_long = long if new_short == short else int(new_short * long / short)
    new_short = max(new_short, 1)
    return (new_long, new_short) if width >= height else (new_short, new_long)


if __name__ == "__main__":
    upright = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    for name, score, box in OnnxDetector(sys.argv[1]).predict(upright, *map(float, sys.argv[3:])):
        print(f"{name:20} {score:.3f}  {' '.join(f'{value:.1f}' for value in box)}")
