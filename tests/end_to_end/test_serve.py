"""`detrove serve` as a process; and its API asked at random, from its own description."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans
from PIL import Image

from detrove.checkpoints import save
from detrove.inference import Detector, load
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

COMMAND = "import sys; from detrove.cli.main import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = catalogue.create(
        "detr-nano", num_classes=2, num_queries=6, dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1
    )
    labels = LabelMap.from_categories({3: "cell", 5: "debris"})
    detector = Detector(model, Preprocessing(longer=480), labels, torch.zeros(2), "detr-nano")
    return save(detector, tmp_path_factory.mktemp("weights") / "toy.safetensors")


@pytest.fixture(scope="module")
def file() -> bytes:
    content = BytesIO()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


@dataclass
class Running:
    """A service as a process of its own; `log` is where its standard error goes."""

    process: subprocess.Popen[bytes]
    log: Path

    def url(self) -> str:
        """The address that it prints when it begins to listen."""
        deadline = time.monotonic() + 120
        while not (found := re.search(r"serving on (http://\S+)/ until", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found[1]


@pytest.fixture
def running(weights: Path, tmp_path: Path) -> Iterator[Running]:
    log = tmp_path / "log"
    options = ["--port", "0", "--max-batch", "1"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", str(weights), *options],
            stderr=stream,
            env={**os.environ, "DETROVE_API_KEY": "secret"},
        )
    yield Running(process, log)
    process.kill()
    process.wait()


def test_a_process_told_to_stop_answers_what_it_accepted(running: Running, file: bytes) -> None:
    process, url = running.process, running.url()
    headers = {"Authorization": "Bearer secret"}
    assert httpx.post(f"{url}/v1/detect", files={"files": ("a.png", file)}, timeout=60).status_code == 401

    def ask(_: int) -> int:
        files = [("files", (f"{place}.png", file)) for place in range(8)]
        return httpx.post(f"{url}/v1/detect", files=files, headers=headers, timeout=120).status_code

    with ThreadPoolExecutor(4) as clients:
        answers = clients.map(ask, range(4))
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/healthz", timeout=60).json()["waiting"] < 25:  # three requests alone have 24
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert list(answers) == [200] * 4
    assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if not line.startswith("serving on")]
    assert sum(line.get("path") == "/v1/detect" and line["status"] == 200 for line in lines) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999999"], "cannot listen"),
        (["--host", "256.0.0.1"], "cannot listen"),
        (["--max-queue", "0"], "--max-queue must be above 0"),
        (["--max-pictures", "99"], "would never fit"),
        (["--api-key", " "], "API key is empty"),
        (["--tiles", "3"], "at least 16"),
    ],
)
def test_options_that_cannot_be(
    weights: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrove.cli.main import run

    assert run(["serve", str(weights), *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("detrove: error: ")
    assert words in line


@pytest.fixture
def url(weights: Path, served: Callable[..., Any]) -> Iterator[str]:
    with served(load(weights)) as address:
        yield address


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_api_asked_at_random_never_breaks(url: str, file: bytes, mode: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import load_all_checks, not_a_server_error
    from schemathesis.specs.openapi import checks

    load_all_checks()
    conform = (checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance)
    statuses: set[int] = set()
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = result.ok()
        if mode == "negative" and operation.method == "get":
            continue  # there is nothing in it that could be wrong
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @settings(
            max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=strategy, true_picture=booleans())
        def ask(case: Any, true_picture: bool) -> None:
            if true_picture and isinstance(case.body, dict):  # random bytes are never one
                if "files" in case.body:
                    case.body = {**case.body, "files": [file]}
                elif "images" in case.body:
                    case.body = {**case.body, "images": [{"data": base64.b64encode(file).decode()}]}
            answer = case.call()
            case.validate_response(answer, checks=[not_a_server_error, *conform])
            statuses.add(answer.status_code)

        ask()
    assert ({200, 422} if mode == "positive" else {400, 415, 422} & statuses) <= statuses != set()
