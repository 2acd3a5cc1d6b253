"""Content and position apart, against what the blocks computed and plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detrove.errors import InputError
from detrove.models.dab import modulate
from detrove.study.position_similarity import (
    CONTENT,
    MIXED,
    POSITION,
    entropy_share,
    half_width,
    modulation,
    score_terms,
    sine_similarity,
    softmax_map,
)
from detrove.study.record import record


def recorded(detector, picture):
    with record(detector) as seen:
        detector.predict(picture)
    return seen


@pytest.mark.parametrize(
    ("name", "cross_terms"),
    [
        ("detr-nano", [CONTENT, *MIXED, POSITION]),
        ("conditional-nano", [CONTENT, POSITION]),
        ("dab-nano", [CONTENT, POSITION]),
        ("deformable-nano", None),
    ],
)
def test_terms_add_up_to_the_scores(toy_detector, picture, name, cross_terms):
    seen = recorded(toy_detector(name), picture)
    for block, entry in seen.dense.items():
        terms = score_terms(entry)
        scores = entry.query[0] @ entry.key[0].mT / math.sqrt(entry.query.shape[-1])
        torch.testing.assert_close(terms.total, scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(terms.alone(*terms.terms), entry.attention[0], rtol=0, atol=1e-5)
        assert sum(terms.shares().values()) == pytest.approx(1, abs=1e-4)
        some = score_terms(entry, [2, 5])
        torch.testing.assert_close(some.total, terms.total[:, [2, 5]])
        if ".cross" in block:
            assert list(terms.terms) == cross_terms


def test_shares_by_hand():
    """A term that is the same everywhere decides nothing."""
    from detrove.study.position_similarity import ScoreTerms

    content, position = torch.tensor([[[1.0, 2, 4]]]), torch.tensor([[[7.0, 7, 7]]])
    alone = ScoreTerms({CONTENT: content, POSITION: position}).shares()
    assert alone[CONTENT] == pytest.approx(1)
    assert alone[POSITION] == 0
    both = ScoreTerms({CONTENT: content, POSITION: 3 * content + 5}).shares()
    assert both[CONTENT] == pytest.approx(0.25)
    assert both[POSITION] == pytest.approx(0.75)
    heads = ScoreTerms({CONTENT: torch.cat((content, 0 * content)), POSITION: torch.cat((0 * content, 2 * content))})
    assert heads.shares(0) == pytest.approx({CONTENT: 1, POSITION: 0})
    assert heads.shares(1) == pytest.approx({CONTENT: 0, POSITION: 1})
    assert heads.shares()[CONTENT] == pytest.approx(0.2)


def test_a_block_outside_of_a_layer_has_no_parts(toy_detector, picture):
    seen = recorded(toy_detector("detr-nano"), picture)
    entry = replace(seen.dense["encoder.0.self_attention"], parts=None)
    with pytest.raises(InputError, match="recorded without its parts"):
        score_terms(entry)


def test_modulation_is_what_the_layer_did(toy_detector, picture):
    detector = toy_detector("dab-nano")
    seen = recorded(detector, picture)
    name, query = "decoder.1.cross_attention", 3
    found = modulation(detector.model, seen, name, query)
    after = score_terms(seen.dense[name], [query]).terms[POSITION][:, 0]
    np.testing.assert_allclose(found.after.reshape(4, -1), after.numpy(), atol=1e-4)
    anchor = seen.anchors["decoder.1"].anchors[0, query]
    assert found.anchor == pytest.approx(anchor.tolist())
    model = detector.model
    with torch.no_grad():
        ratio = model.size_head(seen.layers["decoder.1"].content[0, query]).sigmoid() / anchor[2:]
        again = modulate(seen.anchors["decoder.1"].sine, ratio.expand(1, 7, 2))
    assert found.size_ratio == pytest.approx(tuple(ratio.tolist()), rel=1e-3)
    torch.testing.assert_close(again[0, query], seen.layers["decoder.1"].sine[0, query])
    assert not np.allclose(found.before, found.after, atol=1e-2)


def test_without_modulation_nothing_changes(toy_detector, picture):
    detector = toy_detector("dab-nano", num_coordinates=2, modulate=False)
    found = modulation(detector.model, recorded(detector, picture), "decoder.0.cross_attention", 0)
    np.testing.assert_allclose(found.before, found.after, atol=1e-6)
    assert found.size_ratio == pytest.approx((1, 1), abs=1e-5)
    assert len(found.anchor) == 2


def test_only_anchors_modulate(toy_detector, picture):
    detector = toy_detector("detr-nano")
    with pytest.raises(InputError, match="only DAB-DETR's cross-attention is modulated"):
        modulation(detector.model, recorded(detector, picture), "decoder.0.cross_attention", 0)


@pytest.mark.parametrize("size_ratio", [(1.0, 1.0), (0.5, 3.0)])
def test_sine_similarity_against_the_formula(size_ratio):
    """Σ over frequencies of cos(angle - angle'), halves weighted; sines and cosines of one frequency make a cosine."""
    height, width, dim, temperature, centre = 3, 5, 16, 20.0, (0.3, 0.7)
    ours = sine_similarity(centre, (height, width), dim, temperature, size_ratio)
    frequencies = [temperature ** -(2 * i / (dim // 2)) for i in range(dim // 4)]
    for row in range(height):
        for column in range(width):
            apart_x = 2 * math.pi * ((column + 0.5) / width - centre[0])
            apart_y = 2 * math.pi * ((row + 0.5) / height - centre[1])
            expected = size_ratio[0] * sum(math.cos(apart_x * f) for f in frequencies)
            expected += size_ratio[1] * sum(math.cos(apart_y * f) for f in frequencies)
            assert ours[row, column] == pytest.approx(expected / (dim / 4) / sum(size_ratio), abs=1e-5)


def test_the_map_peaks_at_the_anchor_and_narrows_with_a_low_temperature():
    maps = [sine_similarity((0.525, 0.275), (20, 20), 64, temperature) for temperature in (2.0, 20.0, 10000.0)]
    for similarity in maps:
        assert np.unravel_index(similarity.argmax(), (20, 20)) == (5, 10)
        assert similarity.max() == pytest.approx(1, abs=1e-4)
    widths = [half_width(similarity) for similarity in maps]
    assert 0 < widths[0] < widths[1] < widths[2]


def test_a_wide_ratio_makes_a_narrow_map():
    """wanted / own size above 1 along a side: attention falls off faster along it."""
    wide = sine_similarity((0.525, 0.525), (20, 20), 64, 20.0, (1.0, 4.0))
    assert wide[10, 10] - wide[10, 14] < wide[10, 10] - wide[14, 10]


def test_small_helpers():
    np.testing.assert_allclose(softmax_map(np.zeros((2, 2, 4))), 1 / 8)
    assert entropy_share(np.full((2, 4), 1 / 8)) == pytest.approx(1)
    assert entropy_share(np.eye(3)[:1]) == 0
