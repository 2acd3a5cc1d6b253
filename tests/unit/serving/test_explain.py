"""Explanations: the numbers are those of the forward pass, for detectors of every kind."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from detrove.boxes import xyxy_to_cxcywh
from detrove.inference import Detector
from detrove.serving.application import make_app
from detrove.serving.explain import attention, explain
from detrove.serving.refusals import Refusal
from detrove.structures import ImageBatch
from detrove.study.record import record

from .conftest import toy_detector

KINDS = ("detr-nano", "conditional-nano", "dab-nano", "deformable-nano", "detrove-nano", "stacked-nano", "dino-nano")


@pytest.fixture(scope="module", params=KINDS)
def each(request: pytest.FixtureRequest) -> Detector:
    return toy_detector(request.param)


def forward(detector: Detector, picture: Image.Image) -> Any:
    """Everything recorded in one pass over the picture."""
    with torch.inference_mode(), record(detector.model) as seen:
        detector.model(ImageBatch.from_images([detector.preprocessing(picture)]))
    return seen


def maps_of(values: dict[str, Any]) -> np.ndarray:
    """The maps (N, h, w) that an answer encodes."""
    shares = np.frombuffer(base64.b64decode(values["values"]), np.uint8) / 255
    return shares.reshape(-1, values["height"], values["width"]) * np.array(values["peaks"])[:, None, None]


def test_every_box_is_explained_by_the_query_that_gave_it(each: Detector, picture: Image.Image) -> None:
    seen = forward(each, picture)
    found = each.detect([picture])[0]
    for box, score, result in list(zip(found.boxes, found.scores, found.to_coco(1), strict=True))[:4]:
        answer = explain(each, picture, result["bbox"], result["category_id"]).model_dump()
        assert answer["overlap"] == pytest.approx(1, abs=1e-3)
        assert len(answer["layers"]) == len(seen.boxes())
        assert answer["layers"][-1]["score"] == pytest.approx(score.item(), abs=1e-5)
        x, y, width, height = answer["layers"][-1]["bbox"]
        clipped = torch.tensor([x, y, x + width, y + height]).clamp(min=0).minimum(torch.tensor([64, 48, 64, 48]))
        torch.testing.assert_close(clipped, box, atol=1e-3, rtol=0)
        for layer, boxes in zip(answer["layers"], seen.boxes()[:, 0, answer["query"]], strict=True):
            own = torch.tensor([layer["bbox"]])
            own[:, 2:] += own[:, :2]
            scale = torch.tensor([64.0, 48.0, 64.0, 48.0])
            torch.testing.assert_close(xyxy_to_cxcywh(own)[0] / scale, boxes, atol=1e-5, rtol=0)


def test_what_a_query_looks_at_is_what_the_layer_computed_with(each: Detector, picture: Image.Image) -> None:
    seen = forward(each, picture)
    answer = explain(each, picture, None, None).model_dump()
    query = answer["query"]
    for layer in answer["layers"]:
        if layer["samples"]:
            points = np.array(layer["samples"]["points"])
            record = seen.sampled[layer["name"]]
            np.testing.assert_allclose(points[..., :2] / (64, 48), record.locations[0, query], atol=1e-4)
            np.testing.assert_allclose(points[..., 2], record.weights[0, query], atol=1e-4)
            assert points[..., 2].sum(axis=(1, 2)) == pytest.approx(1, abs=1e-3)
        else:
            maps = maps_of(layer["attention"])
            expected = seen.dense[layer["name"]].attention[0, :, query].numpy()
            np.testing.assert_allclose(maps.reshape(expected.shape), expected, atol=1 / 255)


def test_content_and_position_together_are_the_attention(picture: Image.Image) -> None:
    detector = toy_detector("conditional-nano")
    for layer in explain(detector, picture, None, None).model_dump()["layers"]:
        content, position, both = (maps_of(layer[part]) for part in ("content", "position", "attention"))
        product = content * position  # exponentials of two terms of a sum
        np.testing.assert_allclose(product / product.sum(axis=(1, 2), keepdims=True), both, atol=0.02)
    assert explain(toy_detector("detr-nano"), picture, None, None).layers[0].content is None


def test_anchors_lead_from_layer_to_layer(picture: Image.Image) -> None:
    layers = explain(toy_detector("deformable-nano"), picture, None, None).layers
    assert layers[0].anchor is not None
    assert len(layers[0].anchor) == 2
    layers = explain(toy_detector("detrove-nano"), picture, None, None).layers
    assert layers[1].anchor == pytest.approx(layers[0].bbox, abs=1e-3)
    assert explain(toy_detector("detr-nano"), picture, None, None).layers[0].anchor is None


def test_layers_over_the_picture_s_cells(each: Detector, picture: Image.Image) -> None:
    seen = forward(each, picture)
    name = seen.names("encoder", "self")[0]
    answer = attention(each, picture, 0, 1, 0).model_dump()
    height, width = answer["height"], answer["width"]
    assert (answer["name"], len(answer["rows"])) == (name, height * width)
    if answer["kind"] == "dense":
        expected = seen.dense[name].attention[0, 1].numpy()
        np.testing.assert_allclose(maps_of(answer["attention"]).reshape(expected.shape), expected, atol=1 / 255)
        assert all(share >= 1 for share in answer["attention"]["covers"])
    else:
        samples = np.frombuffer(base64.b64decode(answer["samples"]), "<f4").reshape(height * width, -1, 3)
        record = seen.sampled[name]
        expected = record.locations[0, : height * width, 1].flatten(1, 2).numpy()
        np.testing.assert_allclose(samples[..., :2], expected, atol=1e-6)
        np.testing.assert_allclose(samples[..., 2].sum(axis=1), 1, atol=1e-5)
    for part in ("query", "key", "value"):
        if answer[part]:
            assert len(base64.b64decode(answer[part]["rgb"])) == 3 * height * width


def test_a_large_map_is_told_by_a_raster(monkeypatch: pytest.MonkeyPatch, detector: Detector) -> None:
    monkeypatch.setattr("detrove.serving.explain.MOST_ROWS", 4)
    answer = attention(detector, Image.new("RGB", (96, 96)), 0, 0, 0)
    assert answer.rows == [4]
    assert answer.attention is not None
    assert len(base64.b64decode(answer.attention.values)) == 9


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("explain", {"category_id": "4"}, "category_id 4: unknown; this detector has 3, 5"),
        ("explain", {"bbox": "[1, 2, 0, 4]"}, "width and height must be above 0"),
        ("explain", {"bbox": "[1, 2, 3]"}, "bbox"),
        ("explain", {"bbox": "here"}, "four numbers in brackets"),
        ("explain", {"bbox": "[1e999, 0, 1, 1]"}, "bbox"),
        ("attention", {"layer": "1"}, "layer 1: this detector has 1"),
        ("attention", {"head": "2"}, "head 2: this layer has 2"),
    ],
)
def test_what_is_not_there(client: TestClient, file: bytes, path: str, fields: dict[str, str], words: str) -> None:
    answer = client.post(f"/v1/{path}", files={"files": ("a.png", file)}, data=fields)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_over_http(client: TestClient, file: bytes) -> None:
    found = client.post("/v1/detect", files={"files": ("a.png", file)}, data={"top_k": "1"}).json()["annotations"][0]
    asked = {"bbox": json.dumps(found["bbox"]), "category_id": str(found["category_id"])}
    answer = client.post("/v1/explain", files={"files": ("a.png", file)}, data=asked).json()
    assert answer["layers"][-1]["score"] == pytest.approx(found["score"], abs=1e-6)
    image = {"data": base64.b64encode(file).decode()}
    body = {"images": [image], "bbox": found["bbox"], "category_id": found["category_id"]}
    assert client.post("/v1/explain", json=body).json() == answer
    assert client.post("/v1/attention", json={"images": [image], "head": 1}).json()["kind"] == "dense"
    assert client.post("/v1/explain", json={"images": [image, image]}).status_code == 422


def test_a_model_without_attention_says_so(picture: Image.Image, file: bytes) -> None:
    class Computed(torch.nn.Module):
        """As an exported file's model: it has a config, and nothing inside."""

        config = toy_detector("detr-nano").model.config

    detector = toy_detector("detr-nano")
    detector.model = Computed()
    with pytest.raises(Refusal, match=r"\.safetensors") as refused:
        explain(detector, picture, None, None)
    assert refused.value.status == 409
    with TestClient(make_app(detector)) as client:
        assert client.get("/v1/model").json()["decoder"] == []
        assert client.post("/v1/attention", files={"files": ("a.png", file)}).status_code == 409
