"""The page in a real browser: boxes where the detector put them, and what is behind them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.boxes import inverse_sigmoid
from detrove.drawing import class_colour
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")

ANCHORS = [
    [0.25, 0.3, 0.2, 0.3],
    [0.65, 0.3, 0.3, 0.25],
    [0.3, 0.7, 0.3, 0.2],
    [0.75, 0.7, 0.2, 0.4],
    [0.5, 0.5, 0.1, 0.1],
]
"""Where the toy's queries look and answer: inside the picture, so that whole boxes can be seen."""


def toy() -> Detector:
    """A DAB-DETR of random weights whose boxes stay near its anchors."""
    torch.manual_seed(3)
    sizes = {"dim": 32, "num_heads": 2, "num_queries": 5, "num_encoder_layers": 1, "num_decoder_layers": 3}
    model = catalogue.create("dab-nano", num_classes=2, **sizes).eval()
    with torch.no_grad():
        model.anchors.copy_(inverse_sigmoid(torch.tensor(ANCHORS)))
        model.class_head.weight.normal_(std=0.4)
        model.class_head.bias.zero_()
        model.box_head.last.weight.normal_(std=0.02)
    labels = LabelMap.from_categories({3: "cell", 5: "debris"})
    return Detector(model, Preprocessing(longer=192), labels, None, "dab-nano")


@pytest.fixture(scope="module")
def address(served: Callable[..., Any]) -> Iterator[str]:
    with served(toy()) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An open page; `@pytest.mark.parametrize("page", [{…}], indirect=True)` sets the browser up otherwise."""
    options = {"viewport": {"width": 1200, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.locator("#model:not(:empty)").wait_for()
    yield page
    context.close()
    assert [text for text in complaints if "status of 422" not in text] == []


@pytest.fixture(scope="module")
def picture() -> bytes:
    """Grey noise, on which every colour is the page's."""
    content = BytesIO()
    grey = np.random.default_rng(0).integers(90, 120, (180, 240), dtype=np.uint8)
    Image.fromarray(grey).save(content, "PNG")
    return content.getvalue()


def drop(page: Any, file: bytes, name: str = "cells.png") -> None:
    """As a hand would: a file from outside onto the page."""
    transfer = page.evaluate_handle(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            return transfer;
        }""",
        [base64.b64encode(file).decode(), name],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def show(page: Any, file: bytes) -> list[dict[str, Any]]:
    """Drop the picture, show all that is found, and answer what the service said."""
    with page.expect_response("**/v1/detect") as answer:
        drop(page, file)
    page.locator("#threshold").fill("0")
    page.locator("#found button").first.wait_for()
    return answer.value.json()["annotations"]


def canvas_of(page: Any) -> np.ndarray:
    """What is to be seen of the picture, (h, w, 3)."""
    content = page.locator("#canvas").screenshot()
    return np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)


def is_drawn(seen: np.ndarray, box: list[float], colour: tuple[int, int, int]) -> bool:
    """Whether the sides of a box, in pixels of the 240 x 180 picture, have that colour at nine places."""
    x, y, width, height = (value * seen.shape[1] / 240 for value in box)
    places = [(x, y + share * height) for share in (0.3, 0.5, 0.7)]
    places += [(x + width, y + share * height) for share in (0.3, 0.5, 0.7)]
    places += [(x + share * width, y + height) for share in (0.3, 0.5, 0.7)]
    return all(
        np.abs(seen[round(row - 1) : round(row + 2), round(column - 1) : round(column + 2)] - colour).max(-1).min()
        <= 12
        for column, row in places
    )


def test_boxes_stand_where_the_detector_put_them(page: Any, picture: bytes) -> None:
    annotations = show(page, picture)
    assert page.locator("#found button").count() == len(annotations) == 10
    best = annotations[0]
    colour = class_colour({3: 0, 5: 1}[best["category_id"]])
    assert is_drawn(canvas_of(page), best["bbox"], colour)
    moved = [best["bbox"][0] + 6, best["bbox"][1] + 6, *best["bbox"][2:]]
    assert not is_drawn(canvas_of(page), moved, colour)

    name = {3: "cell", 5: "debris"}[best["category_id"]]
    page.get_by_label(f"{name} (").uncheck()
    assert not is_drawn(canvas_of(page), best["bbox"], colour)
    assert page.locator("#found button").count() == 5


def test_the_threshold_and_what_can_be_taken_home(page: Any, picture: bytes) -> None:
    annotations = show(page, picture)
    least = annotations[3]["score"]
    page.locator("#threshold").fill(f"{least - 0.01:.2f}")
    shown = [one for one in annotations if one["score"] >= round(least - 0.01, 2)]
    assert page.locator("#found button").count() == len(shown) < len(annotations)
    with page.expect_download() as download:
        page.get_by_text("Download JSON").click()
    content = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "cells.json"
    assert content["annotations"] == shown
    with page.expect_download() as download:
        page.get_by_text("Download picture").click()
    drawn = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert drawn.shape == (180, 240, 3)
    assert is_drawn(drawn, shown[0]["bbox"], class_colour({3: 0, 5: 1}[shown[0]["category_id"]]))


def test_a_click_shows_what_the_query_looks_at_layer_by_layer(page: Any, picture: bytes) -> None:
    best = show(page, picture)[0]
    box = page.locator("#canvas").bounding_box()
    scale = box["width"] / 240
    page.locator("#tab-boxes").focus()
    with page.expect_response("**/v1/explain") as answer:
        x, y, width, height = best["bbox"]
        page.mouse.click(box["x"] + (x + width / 2) * scale, box["y"] + (y + height / 2) * scale)
    layers = answer.value.json()["layers"]
    page.locator("#why-controls").wait_for()
    assert page.locator("#why-layers tr").count() == len(layers) == 3
    page.locator("#why-path").uncheck()
    views = []
    for place, layer in enumerate(layers, start=1):
        page.locator("#why-layer").fill(str(place))
        assert f"{layer['score']:.3f}" in page.locator("#why-layers tr.now").inner_text()
        views.append(canvas_of(page))
        hottest, coldest = (cell(layer["attention"], best_of) for best_of in (np.argmax, np.argmin))
        assert warmth(views[-1], hottest, layer) > warmth(views[-1], coldest, layer) + 20
    assert all(np.abs(one - other).mean() > 1 for one, other in pairwise(views))
    page.get_by_label("position alone").check()
    assert np.abs(canvas_of(page) - views[-1]).mean() > 1
    page.locator("#why-head").select_option("1")
    assert np.abs(canvas_of(page) - views[-1]).mean() > 1


def cell(maps: dict[str, Any], choose: Any) -> tuple[float, float]:
    """The centre (x, y) in shares of the picture of the hottest or coldest cell, by the mean of all heads."""
    size = maps["height"], maps["width"]
    values = np.frombuffer(base64.b64decode(maps["values"]), np.uint8).reshape(-1, *size)
    mean = (values * np.array(maps["peaks"])[:, None, None]).mean(0)
    row, column = np.unravel_index(choose(mean), size)
    right, bottom = maps["covers"]
    return min((column + 0.5) / size[1] * right, 0.98), min((row + 0.5) / size[0] * bottom, 0.98)


def warmth(seen: np.ndarray, place: tuple[float, float], layer: dict[str, Any]) -> float:
    """How much more red than blue there is around a place."""
    row, column = round(place[1] * seen.shape[0]), round(place[0] * seen.shape[1])
    around = seen[max(row - 6, 0) : row + 7, max(column - 6, 0) : column + 7]
    return float(np.median(around[..., 0] - around[..., 2]))


def test_qkva_follows_the_pointer(page: Any, picture: bytes) -> None:
    show(page, picture)
    page.locator("#tab-qkva").click()
    page.locator("#qkva-caption:not(:empty)").wait_for()
    box = page.locator("#canvas").bounding_box()
    views, told = [], []
    for share in (0.1, 0.9):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
        views.append(canvas_of(page))
        told.append(page.locator("#told").inner_text())
    assert "column 1, row 1 of 6 × 5" in told[0]
    assert "column 6, row 5 of 6 × 5" in told[1]
    assert np.abs(views[0] - views[1]).mean() > 1
    with page.expect_response("**/v1/attention"):
        page.locator("#qkva-head").select_option("2")
    for name in ("query", "key", "value"):
        colours = page.locator(f"#grid-{name}").screenshot()
        assert len(Image.open(BytesIO(colours)).convert("RGB").getcolors(1 << 20) or []) > 20


def test_by_keyboard_alone(page: Any, picture: bytes) -> None:
    def press(key: str, until: str) -> None:
        """Again and again, until the element is focused."""
        for _ in range(40):
            if page.locator(":focus").count() and page.locator(f"{until}:focus").count():
                return
            page.keyboard.press(key)
        raise AssertionError(f"{until} cannot be reached by {key}")

    press("Tab", "#choose")
    # The system's dialog is no part of the page: what counts is that the key asks for it.
    page.evaluate(
        """document.getElementById("files").addEventListener("click", (event) => {
            event.preventDefault();
            document.title = "asked for files";
        })"""
    )
    page.keyboard.press("Enter")
    playwright.expect(page).to_have_title("asked for files")
    page.set_input_files("#files", {"name": "cells.png", "mimeType": "image/png", "buffer": picture})
    page.locator("#work").wait_for()
    press("Tab", "#threshold")
    page.keyboard.press("Home")
    assert page.locator("#found button").count() == 10
    press("Tab", "#found button")
    page.keyboard.press("ArrowDown")
    assert page.locator("#found li:nth-child(2) button:focus").count() == 1
    page.keyboard.press("Enter")
    page.locator("#why-layer:focus").wait_for()
    before = canvas_of(page)
    page.keyboard.press("ArrowLeft")
    assert page.locator("#why-layer-value").inner_text() == "2 of 3"
    assert np.abs(canvas_of(page) - before).mean() > 1
    press("Shift+Tab", "#tab-why")
    page.keyboard.press("ArrowRight")
    page.locator("#qkva-caption:not(:empty)").wait_for()
    press("Shift+Tab", "#canvas")
    page.keyboard.press("ArrowRight")
    first = page.locator("#told").inner_text()
    page.keyboard.press("ArrowUp")
    assert page.locator("#told").inner_text() != first


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}], indirect=True)
def test_on_a_phone_in_the_dark(page: Any, picture: bytes) -> None:
    show(page, picture)
    for tab in ("boxes", "why", "qkva"):
        page.locator(f"#tab-{tab}").click()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        for control in page.locator("button:visible, select:visible").all():
            size = control.bounding_box()
            assert min(size["width"], size["height"]) >= 24
    shot = np.asarray(Image.open(BytesIO(page.screenshot())).convert("L"))
    assert np.median(shot) < 60


def test_what_went_wrong_is_said_on_the_page(page: Any, picture: bytes) -> None:
    drop(page, b"no picture", "notes.png")
    page.locator("#message.bad").wait_for()
    assert "notes.png: not a picture" in page.locator("#message").inner_text()
    show(page, picture)
    assert page.locator("#message").inner_text() == ""


def test_the_description_of_the_api(page: Any, address: str) -> None:
    page.goto(f"{address}/docs")
    page.locator("section").last.wait_for()
    headings = [heading.inner_text() for heading in page.locator("h2").all()]
    assert {"POST /v1/detect", "POST /v1/explain", "GET /healthz"} <= set(headings)
