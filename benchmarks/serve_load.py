"""Does the service keep its word when twice as many pictures come as it can serve?

The server runs on one core, the load on another. First a few clients that each wait for their answer measure what it
can serve: the capacity. Then requests come at twice that rate for a minute, on time whether or not others have been
answered. Prints how many were answered, refused (429) and anything else, the answered rate as a share of capacity, how
long answers took, and the server's memory second by second.

    python benchmarks/serve_load.py WEIGHTS --picture photo.jpg --seconds 60 --cores 0,1
    python benchmarks/serve_load.py                                      a small random detector, a generated picture

It exits with 1 where less than 80% of capacity was answered, or anything but 200 and 429 came back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detrove.checkpoints import save
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing

COMMAND = "import sys; from detrove.cli.main import run; sys.exit(run(sys.argv[1:]))"
CLIENTS = 4
"""That measure the capacity: enough that the server never waits for one of them."""
LEAST_SHARE = 0.8


@dataclass
class Outcome:
    """What came back: how often each status, and the seconds that answers (200) took."""

    seconds: float
    statuses: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.statuses["200"] / self.seconds


def toy_weights(folder: Path) -> Path:
    """A detector of random weights, of the size that small data is trained at."""
    torch.manual_seed(0)
    model = catalogue.create("detrove-nano", num_classes=2)
    return save(Detector(model, Preprocessing(longer=320), LabelMap.numbered(2)), folder / "toy.safetensors")


def toy_picture(folder: Path) -> Path:
    """Smooth noise of 640 x 480, as large a JPEG as a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(folder / "noise.jpg", quality=90)
    return folder / "noise.jpg"


def start(weights: Path, core: int, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server on one core with one thread, and its port."""
    command = ["taskset", "-c", str(core), sys.executable, "-c", COMMAND, "serve", str(weights), "--port", "0"]
    process = subprocess.Popen(command, stderr=log.open("wb"), env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (found := re.search(r"serving on http://[^:]+:(\d+)/", log.read_text())):
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.2)
    return process, int(found[1])


def request_of(file: bytes) -> bytes:
    """The bytes of one request."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + file + b"\r\n--x--\r\n"
    head = (
        "POST /v1/detect HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(port: int, request: bytes, outcome: Outcome) -> None:
    """One request on a connection of its own."""
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        status = answer.split(b" ", 2)[1].decode()
        if status == "429" and b"retry-after" not in answer.lower():
            status = "429 without Retry-After"
    except (OSError, IndexError) as error:
        status = type(error).__name__
    outcome.statuses[status] += 1
    if status == "200":
        outcome.took.append(time.perf_counter() - began)


async def closed_loop(port: int, request: bytes, seconds: float) -> Outcome:
    """A few clients, each of which asks again when it has been answered."""
    outcome = Outcome(seconds)
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            await ask(port, request, outcome)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def open_loop(port: int, request: bytes, seconds: float, rate: float, pid: int) -> tuple[Outcome, list[int]]:
    """Requests at a fixed rate, and the server's resident bytes each second."""
    outcome, memory, tasks = Outcome(seconds), [], set()
    began = time.perf_counter()
    for place in range(round(seconds * rate)):
        due = began + place / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(ask(port, request, outcome))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if time.perf_counter() - began > len(memory):
            memory.append(resident(pid))
    await asyncio.gather(*tasks)
    outcome.seconds = time.perf_counter() - began
    return outcome, memory


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def told(what: str, outcome: Outcome) -> None:
    """One line of figures."""
    took = sorted(outcome.took)
    middle, late = statistics.median(took), took[int(0.95 * (len(took) - 1))]
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(outcome.statuses.items()))
    print(f"{what}: {outcome.rate:.1f} answers/s; {counts}; median {middle:.2f} s, 95% within {late:.2f} s", flush=True)


async def measure(port: int, pid: int, request: bytes, seconds: float, factor: float) -> bool:
    """Capacity, then the load; whether the service kept its word."""
    await closed_loop(port, request, min(5.0, seconds))
    capacity = await closed_loop(port, request, seconds / 3)
    told("capacity", capacity)
    loaded, memory = await open_loop(port, request, seconds, factor * capacity.rate, pid)
    told(f"{factor:g} times as many", loaded)
    again = await closed_loop(port, request, min(5.0, seconds))
    told("afterwards", again)
    share = loaded.rate / capacity.rate
    third = len(memory) // 3
    print(f"answered {share:.0%} of capacity")
    print(
        f"memory: {memory[0] / 1e6:.0f} MB at the start, {max(memory[: third + 1]) / 1e6:.0f} MB at most in the first "
        f"third, {max(memory[-third - 1 :]) / 1e6:.0f} MB in the last"
    )
    others = set(loaded.statuses) - {"200", "429"}
    return share >= LEAST_SHARE and not others and loaded.statuses["429"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--cores", default="0,1", help="of the server, of the load")
    arguments = parser.parse_args()
    server_core, load_core = (int(core) for core in arguments.cores.split(","))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = arguments.weights or toy_weights(folder)
        request = request_of((arguments.picture or toy_picture(folder)).read_bytes())
        process, port = start(weights, server_core, folder / "log")
        os.sched_setaffinity(0, {load_core})
        try:
            kept = asyncio.run(measure(port, process.pid, request, arguments.seconds, arguments.factor))
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    print(f"the server stopped with status {status}")
    sys.exit(0 if kept and status == 0 else 1)


if __name__ == "__main__":
    main()
