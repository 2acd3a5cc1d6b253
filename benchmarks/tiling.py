"""What do tiles find that the whole picture does not show, and is what they find joined well?

Detects with the COCO-trained detector "atto" (320 pixels), once in whole pictures and once in tiles as `detrove predict
--tiles` does. Two sets, both of coco-mini's validation pictures: nine of them stitched into one large picture, at their
own sizes, so that neither they nor their objects lie on the grid of tiles; and the pictures as they are, in tiles of
320. For comparison the same tiles with nothing joined, and joined by torchvision's suppression per class alone.

Prints AP and its parts, and each row's ratio to the whole pictures' AP.

    python benchmarks/tiling.py ../shared
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torchvision.ops import batched_nms

from detrove.data import DetectionDataset, open_dataset
from detrove.evaluation import coco_metrics, coco_results
from detrove.inference.tiling import batches_of_one_size, merge
from detrove.structures import Detections, LabelMap
from detrove.tiling import Tiling, Window

SIZE, NUM_DETECTIONS = 320, 300
STITCHED = 9
COLUMNS = 3

Merge = Callable[[Sequence[Detections], Sequence[Window], tuple[int, int], int], Detections]


class Atto:
    """The detector: all pictures are squeezed into 320 x 320, 300 detections each."""

    def __init__(self, path: Path, label_map: LabelMap) -> None:
        self.session: Any = onnxruntime.InferenceSession(str(path))
        self.label_map = label_map

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """All detections, by descending score, in pixels of each picture."""
        pixels = [np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for picture in pictures]
        inputs = {
            "images": np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32) / 255,
            "orig_target_sizes": np.array([picture.size for picture in pictures], dtype=np.int64),
        }
        found = []
        for picture, labels, boxes, scores in zip(
            pictures, *self.session.run(["labels", "boxes", "scores"], inputs), strict=True
        ):
            order = torch.from_numpy(scores).argsort(descending=True, stable=True)
            limits = torch.tensor([*picture.size, *picture.size], dtype=torch.float32)
            clipped = torch.from_numpy(boxes).clamp(min=0).minimum(limits)
            found.append(
                Detections(
                    clipped[order], torch.from_numpy(scores)[order], torch.from_numpy(labels)[order], self.label_map
                )
            )
        return found


def moved(found: Sequence[Detections], views: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, in pixels of the picture, scores and labels of all views."""
    boxes = [one.boxes + torch.tensor([*view[:2], *view[:2]]) for one, view in zip(found, views, strict=True)]
    return torch.cat(boxes), torch.cat([one.scores for one in found]), torch.cat([one.labels for one in found])


def unjoined(found: Sequence[Detections], views: Sequence[Window], _: tuple[int, int], limit: int) -> Detections:
    """Everything that any view has found."""
    boxes, scores, labels = moved(found, views)
    order = scores.argsort(descending=True)[:limit]
    return Detections(boxes[order], scores[order], labels[order], found[0].label_map)


def suppressed(found: Sequence[Detections], views: Sequence[Window], _: tuple[int, int], limit: int) -> Detections:
    """Joined by suppression per class at an IoU of 0.5, within a view as between them."""
    boxes, scores, labels = moved(found, views)
    order = batched_nms(boxes, scores, labels, 0.5)[:limit]
    return Detections(boxes[order], scores[order], labels[order], found[0].label_map)


def in_views(detector: Atto, picture: Image.Image, tiling: Tiling, join: Merge) -> Detections:
    """As `detect_in_tiles`, with another way to join."""
    views = tiling.views(*picture.size)
    found: list[Detections] = []
    for batch in batches_of_one_size(views, 8):
        found.extend(detector.detect([picture.crop(view) for view in batch]))
    return join(found, views, picture.size, NUM_DETECTIONS * len(views))


def stitch(dataset: DetectionDataset) -> tuple[list[Image.Image], dict[str, Any]]:
    """Pictures of nine each, in three rows, and their ground truth. A last group that is not full is left out."""
    truth = dataset.ground_truth()
    boxes_of: dict[Any, list[dict[str, Any]]] = {}
    for annotation in truth["annotations"]:
        boxes_of.setdefault(annotation["image_id"], []).append(annotation)
    pictures, images, annotations = [], [], []
    for number in range(len(dataset) // STITCHED):
        group = range(number * STITCHED, (number + 1) * STITCHED)
        picture, places = _stitch([dataset[index].image for index in group])
        pictures.append(picture)
        images.append({"id": number, "file_name": f"{number}.png", "width": picture.width, "height": picture.height})
        for index, (left, top) in zip(group, places, strict=True):
            for annotation in boxes_of.get(dataset.records[index].image_id, []):
                x, y, width, height = annotation["bbox"]
                box = [x + left, y + top, width, height]
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number, "bbox": box})
    return pictures, {**truth, "images": images, "annotations": annotations}


def _stitch(pictures: Sequence[Image.Image]) -> tuple[Image.Image, list[tuple[int, int]]]:
    rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
    heights = [max(picture.height for picture in row) for row in rows]
    canvas = Image.new("RGB", (max(sum(picture.width for picture in row) for row in rows), sum(heights)))
    places, top = [], 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            canvas.paste(picture, (left, top))
            places.append((left, top))
            left += picture.width
        top += height
    return canvas, places


def report(title: str, detector: Atto, pictures: Sequence[Image.Image], truth: dict[str, Any], tiling: Tiling) -> None:
    """The table of one set."""
    tiles_alone = Tiling(tiling.size, tiling.overlap, whole=False)
    ways: dict[str, Callable[[Image.Image], Detections]] = {
        "whole pictures": lambda picture: detector.detect([picture])[0],
        "tiles and whole, joined": lambda picture: in_views(detector, picture, tiling, merge),
        "tiles alone, joined": lambda picture: in_views(detector, picture, tiles_alone, merge),
        "tiles and whole, not joined": lambda picture: in_views(detector, picture, tiling, unjoined),
        "tiles and whole, suppression": lambda picture: in_views(detector, picture, tiling, suppressed),
    }
    ids = [image["id"] for image in truth["images"]]
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    print(f"\n{title}: {len(pictures)} pictures of {np.mean(widths):.0f}x{np.mean(heights):.0f} on average, ", end="")
    print(f"{len(truth['annotations'])} boxes; {tiling.describe()}\n")
    print("| | AP | AP50 | small | medium | large | ratio | detections above 0.4 |\n|---|---|---|---|---|---|---|---|")
    base = None
    for name, detect in ways.items():
        found = {id: detect(picture) for id, picture in zip(ids, pictures, strict=True)}
        metrics = coco_metrics(truth, coco_results(found, truth))
        base = base or metrics["ap"]
        parts = " | ".join(f"{metrics[key]:.3f}" for key in ("ap", "ap50", "ap_small", "ap_medium", "ap_large"))
        shown = sum(int((one.scores >= 0.4).sum()) for one in found.values())
        print(f"| {name} | {parts} | {metrics['ap'] / base:.2f} | {shown} |", flush=True)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder of real pictures and weights")
    shared = parser.parse_args().shared
    dataset = open_dataset(shared / "data" / "coco-mini", "val")
    detector = Atto(shared / "weights" / "deimv2_hgnetv2_atto_coco.onnx", dataset.label_map)
    report("stitched", detector, *stitch(dataset), Tiling(640))
    originals = [dataset[index].image for index in range(len(dataset))]
    report("as they are", detector, originals, dataset.ground_truth(), Tiling(320))


if __name__ == "__main__":
    main()
