"""The files in deploy/ say what the service understands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from detrove.cli.main import make_app
from detrove.serving.limits import Limits

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture
def container() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text()))
    service = next(document for document in documents if document["kind"] == "InferenceService")
    [container] = service["spec"]["predictor"]["containers"]
    secret = next(document for document in documents if document["kind"] == "Secret")
    reference = next(one for one in container["env"] if one["name"] == "DETROVE_API_KEY")["valueFrom"]["secretKeyRef"]
    assert reference["name"] == secret["metadata"]["name"]
    assert reference["key"] in secret["stringData"]
    return container


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What `detrove serve` understands of a command line."""
    _, bound, _ = make_app().parse_args(["serve", *arguments], print_error=False, exit_on_error=False)
    return bound.arguments


def test_kserve_starts_the_service_and_asks_for_its_health(client: TestClient, container: dict[str, Any]) -> None:
    arguments = parsed(container["args"])
    assert arguments["host"] == "0.0.0.0"
    assert arguments["port"] == container["ports"][0]["containerPort"]
    mount = container["volumeMounts"][0]["mountPath"]
    assert arguments["weights"].is_relative_to(mount)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == arguments["port"]
        assert client.get(container[probe]["httpGet"]["path"]).status_code == 200


def test_the_container_file(client: TestClient) -> None:
    text = (DEPLOY / "Containerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.M)[0])
    arguments = parsed(json.loads(re.findall(r"^CMD (.*)$", text, re.M)[0]))
    assert entry == ["detrove", "serve"]
    assert f"EXPOSE {arguments['port']}" in text
    [health] = re.findall(rf"http://127\.0\.0\.1:{arguments['port']}(\S+?)'", text)
    assert client.get(health).status_code == 200


def test_the_proxy_takes_as_much_as_the_service() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    assert f"client_max_body_size {Limits().megabytes:g}m;" in text
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(seconds) >= 2 * Limits().seconds
