"""The HTTP API: what it answers, and how it refuses."""

from __future__ import annotations

import base64
import json
import logging
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from detrove.inference import Detector
from detrove.serving.application import make_app
from detrove.serving.limits import Limits
from detrove.serving.logs import LOGGERS, log_to
from detrove.structures import Category, Detections, LabelMap

from .conftest import encoded


def upload(*files: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{place}.png", file)) for place, file in enumerate(files)]


def in_json(*files: bytes, **options: object) -> dict[str, object]:
    return {"images": [{"data": base64.b64encode(file).decode()} for file in files], **options}


def test_the_answer_is_what_the_detector_says(
    client: TestClient, detector: Detector, picture: Image.Image, file: bytes
) -> None:
    answer = client.post("/v1/detect", files=upload(file))
    assert answer.status_code == 200
    content = answer.json()
    assert content["images"] == [{"id": 1, "file_name": "0.png", "width": 64, "height": 48}]
    assert content["categories"] == [{"id": 3, "name": "cell"}, {"id": 5, "name": "debris"}]
    expected = detector.predict(picture).to_coco(1)
    assert len(expected) == len(content["annotations"]) == 12
    for place, (found, entry) in enumerate(zip(content["annotations"], expected, strict=True), start=1):
        assert {key: found[key] for key in entry} == entry
        assert found["id"] == place
        assert found["area"] == pytest.approx(entry["bbox"][2] * entry["bbox"][3])


def test_several_pictures_in_a_form_or_in_json(client: TestClient, file: bytes) -> None:
    sideways = encoded(Image.new("RGB", (30, 40), "red"), "JPEG", exif=_orientation(6))
    form = client.post("/v1/detect", files=upload(file, sideways), data={"threshold": "0", "top_k": "2"}).json()
    body = client.post("/v1/detect", json=in_json(file, sideways, threshold=0, top_k=2)).json()
    assert [(image["width"], image["height"]) for image in form["images"]] == [(64, 48), (40, 30)]
    assert [found["image_id"] for found in form["annotations"]] == [1, 1, 2, 2]
    assert form["annotations"] == body["annotations"]
    assert [image["file_name"] for image in body["images"]] == ["picture 1", "picture 2"]


def test_a_png_that_says_behind_its_pixels_that_it_lies_sideways(client: TestClient) -> None:
    whole = encoded(Image.new("RGB", (30, 40), "red"), exif=_orientation(6))
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4])
    tail = whole.index(b"IEND") - 4
    late = whole[:start] + whole[end:tail] + whole[start:end] + whole[tail:]
    [image] = client.post("/v1/detect", files=upload(late)).json()["images"]
    assert (image["width"], image["height"]) == (40, 30)


def test_a_data_url_is_base64_too(client: TestClient, file: bytes) -> None:
    text = "data:image/png;base64," + base64.b64encode(file).decode()
    assert client.post("/v1/detect", json={"images": [{"data": text}]}).status_code == 200


def test_threshold_and_top_k(client: TestClient, file: bytes) -> None:
    scores = [one["score"] for one in client.post("/v1/detect", files=upload(file)).json()["annotations"]]
    assert scores == sorted(scores, reverse=True)
    least = (scores[3] + scores[4]) / 2
    above = client.post("/v1/detect", files=upload(file), data={"threshold": str(least)}).json()["annotations"]
    assert [one["score"] for one in above] == scores[:4]
    best = client.post("/v1/detect", files=upload(file), data={"top_k": "3"}).json()["annotations"]
    assert [one["score"] for one in best] == scores[:3]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"files": []}, 415, "multipart/form-data"),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "application/json"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "cannot be read"),
        ({"json": {}}, 422, "images: Field required"),
        ({"json": []}, 422, "dictionary"),
        ({"json": {"images": []}}, 422, "images: List should have at least 1 item"),
        ({"json": {"images": [{"data": "%%%"}]}}, 422, "picture 1: its data is not base64"),
        ({"json": {"images": [{"data": "aaaa"}]}}, 422, "picture 1: not a picture"),
        ({"json": {"images": [{"data": "aaaa"}], "treshold": 0.5}}, 422, "treshold"),
        ({"content": b'{"\\ud800": 1, "images": []}', "headers": {"content-type": "application/json"}}, 422, "unicode"),
        ({"files": upload(b"")}, 422, "empty"),
        ({"files": upload(b"GIF89a")}, 422, "0.png"),
        ({"files": upload(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}, 422, "not a picture"),
        ({"files": [("pictures", ("a.png", b"x"))]}, 422, "pictures: unknown"),
        (
            {"files": upload(b"x"), "data": {"threshold": "2"}},
            422,
            "threshold: Input should be less than or equal to 1",
        ),
        ({"files": upload(b"x"), "data": {"threshold": "nan"}}, 422, "threshold"),
        ({"files": upload(b"x"), "data": {"top_k": "0"}}, 422, "top_k"),
        ({"files": upload(*[b"x"] * 5)}, 400, "at most 4 files"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(client: TestClient, request_: dict, status: int, words: str) -> None:
    answer = client.post("/v1/detect", **request_)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_other_paths_and_methods(client: TestClient) -> None:
    assert client.get("/nowhere").json() == {"error": "there is nothing at /nowhere; see /docs"}
    answer = client.get("/v1/detect")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "GET" in answer.json()["error"]


def test_too_many_bytes_are_refused_without_reading_them(client: TestClient) -> None:
    answer = client.post("/v1/detect", files=upload(bytes(600_000)))
    assert answer.status_code == 413
    assert "0.5 MB" in answer.json()["error"]

    def dripping():
        for _ in range(10):
            yield bytes(100_000)

    answer = client.post("/v1/detect", content=dripping(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 1)])
def test_pictures_of_a_pixel_s_width(client: TestClient, size: tuple[int, int]) -> None:
    answer = client.post("/v1/detect", files=upload(encoded(Image.new("RGB", size))))
    assert answer.status_code == 200
    for found in answer.json()["annotations"]:
        x, y, width, height = found["bbox"]
        assert -1e-3 <= x <= x + width <= size[0] + 1e-3
        assert -1e-3 <= y <= y + height <= size[1] + 1e-3


@pytest.mark.parametrize("size", [(10_000, 10_000), (14_000, 14_000), (1_000_001, 1)])
def test_bombs_are_refused_by_their_header(
    client: TestClient, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = encoded(Image.new("1", size))
    assert len(bomb) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("was decoded"))
    answer = client.post("/v1/detect", files=upload(bomb))
    assert answer.status_code == 413
    assert "pixels" in answer.json()["error"]


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_damaged_picture_takes_no_other_with_it(client: TestClient, file: bytes, form: str, kept: float) -> None:
    generator = np.random.default_rng(1)
    whole = encoded(Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)), form)
    answer = client.post("/v1/detect", files=upload(whole[: round(len(whole) * kept)]))
    assert answer.status_code in (200, 422)  # GIF and WebP may show what there is
    if answer.status_code == 422:
        assert answer.json()["error"].startswith("0.png: ")
    assert client.post("/v1/detect", files=upload(file)).status_code == 200


def test_whatever_a_decoder_raises_ends_no_service(client: TestClient, file: bytes) -> None:
    """An empty iCCP chunk behind the pixels, on which Pillow fails with an IndexError."""
    data = (
        "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAADElEQVR4nGNgGB4AAADIAAGtQHYiAAAAAGlDQ1CliRk+AAAAAElFTkSuQmCC"
    )
    answer = client.post("/v1/detect", files=upload(base64.b64decode(data)))
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("0.png: damaged")
    assert client.get("/healthz").status_code == 200
    assert client.post("/v1/detect", files=upload(file)).status_code == 200


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_changed_bytes_are_answered(client: TestClient, file: bytes, form: str) -> None:
    generator = np.random.default_rng(2)
    whole = encoded(Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)), form)
    for _ in range(40):
        changed = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 400), 3):
            changed[place] = generator.integers(256)
        status = client.post("/v1/detect", files=upload(bytes(changed))).status_code
        assert status in (200, 413, 422)
    assert client.post("/v1/detect", files=upload(file)).status_code == 200


def test_a_fault_of_our_own_in_decoding_is_that_pictures_alone(
    client: TestClient, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("detrove.serving.uploads.to_rgb", lambda picture: 1 / 0)
        assert client.post("/v1/detect", files=upload(file)).status_code == 500
    assert client.get("/healthz").status_code == 200
    assert client.post("/v1/detect", files=upload(file)).status_code == 200


def test_the_surest_are_of_named_classes(client: TestClient) -> None:
    """COCO's heads have slots that stand for nothing."""
    labels = LabelMap((None, Category(1, "nut")))
    found = Detections(torch.rand(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]), labels)
    service = client.app.state.service
    assert service.shown(found, threshold=0.0, top_k=1).names == ["nut"]
    assert len(service.shown(found, threshold=0.0, top_k=None)) == 2


def test_a_key_opens_everything_but_the_page(detector: Detector, file: bytes) -> None:
    with TestClient(make_app(detector, api_key="sésame")) as client:
        for headers in ({}, {"Authorization": "Bearer open"}, {"X-API-Key": "sesame"}, {"Authorization": "Basic eA=="}):
            for answer in (
                client.get("/v1/model", headers=headers),
                client.get("/metrics", headers=headers),
                client.post("/v1/detect", files=upload(file), headers=headers),
                client.post("/v1/explain", files=upload(file), headers=headers),
            ):
                assert answer.status_code == 401
                assert "API key" in answer.json()["error"]
        for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/main.js"):
            assert client.get(path).status_code == 200
        key = "sésame".encode()
        assert client.get("/v1/model", headers={"Authorization": b"Bearer " + key}).status_code == 200
        assert client.get("/v1/model", headers={"X-API-Key": key}).status_code == 200


def test_the_model_describes_itself(client: TestClient) -> None:
    model = client.get("/v1/model").json()
    assert model["name"] == "dab-nano"
    assert model["thresholds"] == {"3": 0.0, "5": 0.0}
    assert [block["name"] for block in model["decoder"]] == ["decoder.0.cross_attention", "decoder.1.cross_attention"]
    assert all(block["content_and_position"] for block in model["decoder"])
    assert model["limits"] == {"megabytes": 0.5, "megapixels": 1.0, "pictures": 4, "seconds": 20.0}


def test_classes_of_one_name_keep_their_thresholds(detector: Detector, limits: Limits) -> None:
    labels = LabelMap((Category(3, "cell"), Category(5, "cell")))
    twins = Detector(detector.model, detector.preprocessing, labels, torch.tensor([0.2, 0.7]), detector.name)
    with TestClient(make_app(twins, limits)) as client:
        assert client.get("/v1/model").json()["thresholds"] == {"3": 0.2, "5": 0.7}


def test_metrics_count(client: TestClient, file: bytes) -> None:
    client.post("/v1/detect", files=upload(file, file))
    client.post("/v1/detect", files=upload(b"x"))
    client.request("INVENTED", "/made/up")
    text = client.get("/metrics").text
    assert 'detrove_requests_total{method="POST",path="/v1/detect",status="200"} 1.0' in text
    assert 'detrove_requests_total{method="POST",path="/v1/detect",status="422"} 1.0' in text
    assert 'detrove_requests_total{method="other",path="other",status="404"} 1.0' in text
    assert "detrove_pictures_total 2.0" in text
    assert "detrove_detections_total 24.0" in text
    assert "detrove_waiting_pictures 0.0" in text
    assert "made" not in text
    assert "INVENTED" not in text


def test_a_line_of_log_for_every_request(client: TestClient, file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOGGERS:  # as they are now, they are again after the test
        logger = logging.getLogger(name)
        for part in ("handlers", "propagate", "level"):
            monkeypatch.setattr(logger, part, getattr(logger, part))
    stream = StringIO()
    log_to(stream)
    answer = client.post("/v1/detect", files=upload(file))
    logging.captureWarnings(False)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    [line] = [line for line in lines if line["message"] == "request"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/detect", 200)
    assert line["received_bytes"] > len(file)


class Faulty(Detector):
    """Breaks on red pictures."""

    def detect(self, pictures):
        if any(picture.getpixel((0, 0)) == (255, 0, 0) for picture in pictures):
            raise RuntimeError("a fault of ours")
        return super().detect(pictures)


def test_our_faults_are_told_as_such_and_hit_no_one_else(detector: Detector, limits: Limits, file: bytes) -> None:
    faulty = Faulty(detector.model, detector.preprocessing, detector.label_map, detector.thresholds)
    red = encoded(Image.new("RGB", (64, 48), "red"))
    with TestClient(make_app(faulty, limits)) as client:
        answer = client.post("/v1/detect", files=upload(file, red))
        assert answer.status_code == 500
        assert answer.json() == {"error": "computing failed; see the log"}
        assert client.post("/v1/detect", files=upload(file)).status_code == 200
        assert client.get("/healthz").json() == {"status": "ok", "waiting": 0}


class Dying(Detector):
    """Ends the thread that asks it."""

    def detect(self, pictures) -> list[Detections]:
        raise SystemExit


def test_a_dead_worker_is_seen_by_everybody(detector: Detector, limits: Limits, file: bytes) -> None:
    dying = Dying(detector.model, detector.preprocessing, detector.label_map)
    with TestClient(make_app(dying, limits)) as client:
        assert client.get("/healthz").status_code == 200
        answer = client.post("/v1/detect", files=upload(file, file))
        assert answer.status_code == 503
        assert "broke down" in answer.json()["error"]
        for answer in (client.get("/healthz"), client.post("/v1/detect", files=upload(file))):
            assert answer.status_code == 503
            assert "start" in answer.json()["error"]


def test_the_page_s_files_are_there_and_ask_nobody_else(client: TestClient) -> None:
    folder = Path(make_app.__code__.co_filename).parent / "page"
    assert {"index.html", "docs.html", "style.css", "main.js"} <= {file.name for file in folder.iterdir()}
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, f"{file.name} names another machine"
        assert client.get(f"/page/{file.name}").status_code == 200
    answer = client.get("/")
    assert "text/html" in answer.headers["content-type"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif
