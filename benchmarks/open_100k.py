"""How long does a set of 100,000 pictures take to open, and how much memory?

    python benchmarks/open_100k.py [--pictures 100000] [--boxes 7]

Writes a COCO file, in one line and indented, and as many empty picture files (they are not read: opening looks at the
folder's listing), opens the set in a fresh process each time and prints the seconds, by the clock and of the processor,
the peak of its memory (`ru_maxrss`, with Python, numpy and torch in it), and how much a worker process, forked from the
opened set, grows by asking for every record.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

OPEN = """
import json, os, resource, sys, time
import detrove.data
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def private():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
before, start, cpu = peak(), time.perf_counter(), time.process_time()
data = detrove.data.open_dataset(sys.argv[1], "train")
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
answer = {"seconds": seconds, "cpu": cpu, "before_mib": before, "peak_mib": peak(), "pictures": len(data)}
reading, writing = os.pipe()
if os.fork() == 0:
    first = private()
    boxes = sum(len(record.labels) for record in data.records)
    os.write(writing, json.dumps({"boxes": boxes, "worker_mib": private() - first}).encode())
    os._exit(0)
print(json.dumps(answer | json.loads(os.read(reading, 1000))))
"""


def write_set(root: Path, num_pictures: int, num_boxes: int, indent: int | None) -> float:
    """A COCO data set of empty picture files; gives the size of its annotation file in MB."""
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images = [
        {"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480, "license": 1, "date_captured": "2013-11-14"}
        for i in range(num_pictures)
    ]
    annotations = []
    for i in range(num_pictures * num_boxes):
        x, y, w, h = i % 487 + 0.25, i % 331 + 0.5, i % 97 + 20.75, i % 89 + 15.5
        annotations.append(
            {
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "area": w * h,
                "iscrowd": 0,
                "image_id": i // num_boxes,
                "bbox": [x, y, w, h],
                "category_id": 1 + i % 80,
                "id": i,
            }
        )
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    for image in images:
        (root / "train2017" / str(image["file_name"])).touch()
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(content, indent=indent))
    return file.stat().st_size / 1e6


def main() -> None:
    """Print a line for each way to write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=7)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.processor() or platform.machine()}")
    for name, indent in (("one line", None), ("indented", 1)):
        with tempfile.TemporaryDirectory() as folder:
            # In a process of its own: a child inherits the peak of the process that starts it.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                megabytes = pool.apply(write_set, (Path(folder), options.pictures, options.boxes, indent))
            answer = subprocess.run([sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=True)
        measured = json.loads(answer.stdout)
        print(
            f"{name}, {megabytes:.0f} MB: {measured['pictures']:,} pictures, {measured['boxes']:,} boxes in "
            f"{measured['seconds']:.1f} s ({measured['cpu']:.1f} s of one core), peak {measured['peak_mib']:.0f} MiB "
            f"({measured['before_mib']:.0f} before opening); a forked worker grows by {measured['worker_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
