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
from detrove.data.writers import write_coco
from detrove.training import train

WANTED = 0.80


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
        pictures = open_dataset(arguments.data, "train").subset(range(arguments.pictures)).annotations
        data = write_coco(folder / "data", {"train": pictures, "val": pictures})
        run = train(
            data.folder,
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
