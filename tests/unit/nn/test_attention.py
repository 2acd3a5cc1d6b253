"""Dense attention against torch's own module; what a recorder receives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.nn.attention import MultiHeadAttention, attend, merge_heads, split_heads
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.recording import active_recorder, recording


@pytest.fixture
def ours() -> MultiHeadAttention:
    torch.manual_seed(0)
    block = MultiHeadAttention(24, 4)
    nn.init.normal_(block.in_proj_bias)
    nn.init.normal_(block.out_proj.bias)
    return block


@pytest.fixture
def reference(ours) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(24, 4, batch_first=True)
    module.load_state_dict(ours.state_dict())
    return module


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, n, 24, generator=generator) for name, n in (("query", 5), ("key", 7), ("value", 7))}


PADDING = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
HIDDEN = torch.ones(5, 7, dtype=torch.bool).triu(3)


@pytest.mark.parametrize("padding_mask", [None, PADDING])
@pytest.mark.parametrize("attention_mask", [None, HIDDEN])
def test_as_torch(ours, reference, inputs, padding_mask, attention_mask):
    expected, _ = reference(**inputs, key_padding_mask=padding_mask, attn_mask=attention_mask)
    given = ours(**inputs, padding_mask=padding_mask, attention_mask=attention_mask)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def test_masks_of_each_picture(ours, inputs):
    masks = torch.stack((HIDDEN, HIDDEN.flip(1)))[:, None]
    masks[..., 0, :] = False
    masks = masks & ~torch.eye(5, 7, dtype=torch.bool)
    both = ours(**inputs, attention_mask=masks)
    for picture in range(2):
        alone = {name: value[picture : picture + 1] for name, value in inputs.items()}
        torch.testing.assert_close(ours(**alone, attention_mask=masks[picture, 0]), both[picture : picture + 1])


def test_without_keys_the_queries_are_the_keys(ours, reference, inputs):
    query, value = inputs["key"], inputs["value"]
    expected, _ = reference(query, query, value)
    torch.testing.assert_close(ours(query, value), expected, rtol=0, atol=1e-6)


def test_dropout_acts_in_training_only(inputs):
    block = MultiHeadAttention(24, 4, dropout=0.5)
    assert not torch.equal(block(**inputs), block(**inputs))
    block.eval()
    assert torch.equal(block(**inputs), block(**inputs))


def test_refuses_a_width_that_heads_do_not_divide():
    for block in (lambda: MultiHeadAttention(25, 4), lambda: DeformableAttention(25, 4, 1, 1)):
        with pytest.raises(ValueError, match="25 is not divisible by num_heads 4"):
            block()


def test_heads_split_and_merge():
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    assert torch.equal(split_heads(x, 4)[1, 2, 0], x[1, 0, 4:6])
    assert torch.equal(merge_heads(split_heads(x, 4)), x)


@pytest.mark.parametrize("padding_mask", [None, PADDING])
def test_recorded_attention_times_value_is_the_output(ours, inputs, padding_mask):
    model = nn.ModuleDict({"layer": ours}).eval()
    with recording(model) as recorder:
        output = ours(**inputs, padding_mask=padding_mask)
    (seen,) = recorder.dense
    assert seen.name == "layer"
    assert seen.query.shape == (2, 4, 5, 6)
    assert seen.attention.shape == (2, 4, 5, 7)
    torch.testing.assert_close(seen.attention.sum(dim=-1), torch.ones(2, 4, 5))
    torch.testing.assert_close(ours.out_proj(merge_heads(seen.attention @ seen.value)), output, rtol=0, atol=1e-5)
    if padding_mask is not None:
        assert (seen.attention[1, :, :, 4:] == 0).all()


def test_nothing_is_computed_or_kept_outside(ours, inputs, monkeypatch):
    with recording(ours) as recorder:
        pass
    assert active_recorder() is None

    def fail(*_):
        raise AssertionError("the attention matrix was computed though nobody records")

    monkeypatch.setattr("detrove.nn.attention.explicit_attention", fail)
    ours(**inputs)
    assert recorder.dense == []
    assert recorder.sampled == []


def test_recording_ends_with_an_error_inside(ours):
    with pytest.raises(RuntimeError), recording(ours):
        ours(torch.zeros(1, 1, 7), torch.zeros(1, 1, 7))  # of another width than the block
    assert active_recorder() is None


def test_recording_changes_no_output(ours, inputs):
    plain = ours(**inputs)
    with recording(ours):
        torch.testing.assert_close(ours(**inputs), plain, rtol=0, atol=1e-6)


def test_values_may_be_wider_than_keys():
    query, key, value = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 4)
    weights = (query @ key.mT / 4).softmax(dim=-1)
    torch.testing.assert_close(attend(nn.Identity(), query, key, value), weights @ value)
