"""The study of one picture: what is chosen, what is refused, and the page with its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from detrove.errors import InputError
from detrove.study import figures, study_picture, write_study
from detrove.study.picture import parse_pixel
from detrove.study.qkva_grid import QKVAGrid


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 40)


def test_the_surest_query_and_the_middle_of_its_box(toy_detector, picture):
    study = study_picture(toy_detector("conditional-nano"), picture)
    found = toy_detector("conditional-nano").predict(picture, threshold=0.0)
    answer = study.answers([study.query])[0]
    assert answer["score"] == pytest.approx(float(found.scores[0]), abs=1e-6)
    assert answer["name"] == found.names[0]
    box = np.clip(study.last_boxes()[study.query].numpy(), 0, [128, 96, 128, 96])
    np.testing.assert_allclose(box, found.boxes[0].numpy(), atol=1e-3)
    x1, y1, x2, y2 = study.last_boxes()[study.query].tolist()
    assert study.pixel == pytest.approx((min((x1 + x2) / 2, 127), min((y1 + y2) / 2, 95)), abs=1e-3)
    assert study.encoders == ["encoder.1.self_attention"]
    assert study.cross == "decoder.1.cross_attention"
    assert study.shown_queries()[0] == study.query
    assert len(study.shown_queries()) == 7


@pytest.mark.parametrize(("layer", "encoder", "decoder"), [(0, 0, 0), (-3, 0, 0), (2, 1, 2), (-1, 1, 2), (-2, 0, 1)])
def test_a_part_with_fewer_layers_shows_its_last(toy_detector, picture, layer, encoder, decoder):
    study = study_picture(toy_detector("detr-nano", num_decoder_layers=3), picture, layer=layer)
    assert study.encoders == [f"encoder.{encoder}.self_attention"]
    assert study.cross == f"decoder.{decoder}.cross_attention"


def test_stacks_are_shown_side_by_side(toy_detector, picture):
    study = study_picture(toy_detector("stacked-nano"), picture)
    assert study.encoders == ["stacks.0.encoder.1.self_attention", "stacks.1.encoder.0.self_attention"]
    assert study.cross == "stacks.1.decoder.0.cross_attention"
    assert set(study.encoders) <= set(study.seen.dense)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 2}, "layer 2: this detector has layers 0 to 1"),
        ({"layer": -3}, "layer -3: this detector has layers 0 to 1"),
        ({"head": 4}, "head 4: this detector has heads 0 to 3"),
        ({"query": 7}, "query 7: this detector has queries 0 to 6"),
        ({"query": -1}, "query -1: this detector has queries 0 to 6"),
        ({"pixel": (128.0, 3.0)}, "pixel 128,3 lies outside the picture of 128×96 pixels"),
    ],
)
def test_what_is_not_there_is_refused(toy_detector, picture, asked, message):
    with pytest.raises(InputError, match=message):
        study_picture(toy_detector("detr-nano"), picture, **asked)


@pytest.mark.parametrize("text", ["12", "a,b", "1,2,3", "nan,1", ""])
def test_a_pixel_that_is_none(text):
    with pytest.raises(InputError, match="give x,y in pixels"):
        parse_pixel(text)


BOTH = {"picture", "layers", "queries", "self_attention"}
CROSS = {"cross_attention", "cross_attention_key", "cross_attention_value"}
DENSE = BOTH | CROSS | {"content_and_position", "position_alone"}
GRID = {"query", "key", "value", "looks", "grid_of_grids", "overlap"}
SAMPLED = BOTH | {"sampling_by_level", "sampling_by_head"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("detr-nano", DENSE | {f"encoder_1_{x}" for x in GRID}, ["The mixed terms", "No anchors"]),
        (
            "dab-nano",
            DENSE | {f"encoder_1_{x}" for x in GRID} | {"modulation", "temperature"},
            ["Wanted by own size", "T = 10000"],
        ),
        (
            "deformable-nano",
            SAMPLED | {"encoder_sampling_level_0", "encoder_sampling_level_3"},
            ["Content and position cannot be told apart", "No QKVA grid"],
        ),
        ("detrove-nano", SAMPLED | {f"encoder_1_{x}" for x in GRID}, ["Content and position cannot be told apart"]),
        (
            "stacked-nano",
            DENSE | {f"stacks_0_encoder_1_{x}" for x in GRID} | {f"stacks_1_encoder_0_{x}" for x in GRID - {"overlap"}},
            ["with 1 head", "with 8 heads"],
        ),
    ],
)
def test_the_page(toy_detector, picture, tmp_path, name, files, said):
    settings = {"num_levels": 4} if name == "deformable-nano" else {}
    numbers = write_study(study_picture(toy_detector(name, **settings), picture), tmp_path / "page")
    assert {path.stem for path in (tmp_path / "page").glob("*.png")} == files
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("<img") == len(files)
    assert page.count('src="data:image') == len(files)
    assert "://" not in page
    for text in [*said, "Look for", "Here ", "Layer by layer"]:
        assert text in page
    for picture_file in (tmp_path / "page").glob("*.png"):
        assert np.asarray(Image.open(picture_file).convert("L")).std() > 1, picture_file
    assert json.loads((tmp_path / "page" / "study.json").read_text()) == numbers
    assert numbers["detector"] == name
    assert len(numbers["layers"]) == (3 if name == "stacked-nano" else 2)
    if "terms" in numbers:
        assert sum(numbers["terms"].values()) == pytest.approx(1, abs=1e-3)
    else:
        assert sum(level["attention"] for level in numbers["sampling"]) == pytest.approx(1, abs=1e-3)


def test_a_grid_of_grids_lies_as_its_cells_do():
    """Every cell looks at itself and the cell below: each tile is bright where its cell is, and nowhere else."""
    height, width = 3, 4
    attention = np.zeros((1, 12, 12), dtype=np.float32)
    attention[0, np.arange(12), np.arange(12)] = 0.5
    attention[0, np.arange(12), (np.arange(12) + 4) % 12] = 0.5
    nothing = np.zeros((1, height, width, 2), dtype=np.float32)
    grid = QKVAGrid("encoder.0.self_attention", nothing, nothing, nothing, attention.reshape(1, 12, height, width))
    image = figures.grid_of_grids(grid)
    zoom = 1040 // 16
    side_y, side_x = height * zoom + 4, width * zoom + 4
    assert image.shape == (height * side_y, width * side_x, 3)
    tile = image[side_y : 2 * side_y, 2 * side_x : 3 * side_x][2:-2, 2:-2]  # of the cell at row 1, column 2
    cells = tile[zoom // 2 :: zoom, zoom // 2 :: zoom].sum(axis=-1)
    assert tile[zoom + 1, 2 * zoom + 1] == pytest.approx(np.array([86, 180, 233]) / 255)
    assert cells[2, 2] > 2
    assert np.delete(cells.ravel(), [1 * 4 + 2, 2 * 4 + 2]).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 10), (25, 38), (60, 5)])
def test_rasters_have_few_tiles_that_differ(shape):
    rows, columns = figures.raster_of(shape)
    assert 1 <= len(rows) * len(columns) <= max(figures.RASTER, 1)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.max() < shape[0]
    assert columns.max() < shape[1]


@pytest.mark.parametrize("shape", [(20, 4), (40, 5), (42, 8), (4, 40), (60, 1)])
def test_a_strip_is_made_no_longer_than_it_must_be(shape):
    height, width = shape
    rows, columns = figures.raster_of(shape)
    whole = len(rows) * height / (len(columns) * width)
    assert max(whole, 1 / whole) <= max(figures.LONGEST, height / width, width / height)


def test_boxes_in_pixels():
    assert figures.pixel_box([0.5, 0.25, 0.5, 0.5], (200, 100)) == (50, 0, 150, 50)


def test_the_share_of_attention_inside_a_box():
    """Cells at the edge count by the part that is covered."""
    from detrove.study.report_decoder import share_in_box

    looks = np.array([[0.1, 0.2], [0.3, 0.4]])
    assert share_in_box(looks, np.array([0.5, 0.5, 1.0, 1.0])) == pytest.approx(1)
    assert share_in_box(looks, np.array([0.25, 0.25, 0.5, 0.5])) == pytest.approx(0.1)
    assert share_in_box(looks, np.array([0.5, 0.75, 0.5, 0.5])) == pytest.approx(0.3 / 2 + 0.4 / 2)
    assert share_in_box(looks, np.array([0.75, 0.75, 0.1, 0.1])) == pytest.approx(0.4 * 0.04)
    assert share_in_box(looks, np.array([0.9, 0.9, 0.4, 0.4])) == pytest.approx(0.4 * 0.36)
