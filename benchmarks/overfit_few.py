"""Does the default detector learn a few real pictures by heart, with a user's plain options?

The first pictures of a data set are both what is learned and what is validated on. Prints AP and AP50 on them as
training goes on.

    python benchmarks/overfit_few.py ../shared/data/coco-mini --backbone-weights FILE --minutes 30

It exits with 1 where AP50 stays under 0.80.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from detrove.data import open_dataset
from detrove.training import train

WANTED = 0.80


def write_first(data: Path, number: int, folder: Path) -> Path:
    """The first pictures of the training split as a COCO data set, the same ones under `train` and `val`."""
    dataset = open_dataset(data, "train")
    records = [dataset.records[index] for index in range(number)]
    names = {entry.id: entry.name for entry in dataset.label_map.entries if entry}
    slots = [entry.id if entry else None for entry in dataset.label_map.entries]
    boxes = [(image, record, place) for image, record in enumerate(records, 1) for place in range(len(record.labels))]
    content = {
        "images": [
            {"id": image, "file_name": record.path.name, "width": record.width, "height": record.height}
            for image, record in enumerate(records, 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": slots[int(record.labels[place])],
                "bbox": xywh(record.boxes_xyxy[place].tolist()),
                "area": float(record.area[place]),
                "iscrowd": int(record.is_crowd[place]),
            }
            for number, (image, record, place) in enumerate(boxes, 1)
        ],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }
    for split in ("train", "val"):
        (folder / split).symlink_to(records[0].path.parent.resolve(), target_is_directory=True)
        annotations = folder / "annotations" / f"instances_{split}.json"
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps(content))
    return folder


def xywh(corners: list[float]) -> list[float]:
    """COCO's form of a box."""
    left, top, right, bottom = corners
    return [left, top, right - left, bottom - top]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone-weights", required=True)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--size", type=int, default=320)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_first(arguments.data, arguments.pictures, folder)
        run = train(
            data,
            output=folder / "run",
            minutes=arguments.minutes,
            size=arguments.size,
            backbone_weights=arguments.backbone_weights,
        )
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "ap50" in line:
            print(f"epoch {line['epoch']}, {line['minutes']:.1f} min: AP {line['ap']:.3f}, AP50 {line['ap50']:.3f}")
    assert run.metrics is not None
    print(f"{arguments.pictures} pictures by heart: AP {run.metrics.ap or 0:.3f}, AP50 {run.metrics.ap50 or 0:.3f}")
    sys.exit(0 if run.metrics.ap50 and run.metrics.ap50 >= WANTED else 1)


if __name__ == "__main__":
    main()
