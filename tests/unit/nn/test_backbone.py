"""Trunks: freezing changes no output, strides and dilations, loading, and what is said when something does not fit."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from detrove.errors import InputError
from detrove.nn.backbone import (
    Backbone,
    Level,
    LevelProjection,
    create_body,
    download_body,
    freeze,
    load_body,
    resize_mask,
)
from detrove.structures import ImageBatch

TRUNKS = ["resnet18", "convnext_atto", "mobilenetv4_conv_small", "mobilenetv2_100"]


@torch.no_grad()
def settle(body: nn.Module) -> nn.Module:
    """Statistics and weights as of a trained trunk: none is 0 or 1."""
    torch.manual_seed(0)
    for key, tensor in body.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dim() == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return body


def images(*sizes: tuple[int, int]) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])


class TestFreezing:
    @pytest.mark.parametrize("name", TRUNKS)
    def test_changes_no_output(self, name):
        body = settle(create_body(name)).eval()
        pixels = images((64, 96)).pixels
        with torch.no_grad():
            before = body(pixels)
            after = freeze(body).train()(pixels)  # frozen statistics hold in training too
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)

    def test_changes_no_output_of_real_weights(self, shared):
        tensors = load_file(shared / "weights/mobilenetv2_100.imagenet.safetensors")
        body = create_body("mobilenetv2_100").eval()
        load_body(body, tensors, "weights do not fit")
        pixels = images((96, 64)).pixels
        with torch.no_grad():
            before, after = body(pixels), freeze(body)(pixels)
        for a, b in zip(before, after, strict=True):
            assert b.abs().max() < 100, "an activation went missing"
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("name", "inside"),
        [
            ("resnet18", ("conv1", "layer1")),
            ("convnext_atto", ("stem_0", "stem_1", "stages_0")),
            ("mobilenetv4_conv_small", ("conv_stem", "blocks.0")),
            ("mobilenetv2_100", ("conv_stem", "blocks.0", "blocks.1")),
            ("vgg11", ("features_0.", "features_3.", "features_6.", "features_8.")),
        ],
    )
    def test_fixes_exactly_stem_and_first_stage(self, name, inside):
        body = Backbone(name, (8, 16, 32)).body
        for key, parameter in body.named_parameters():
            assert parameter.requires_grad != key.startswith(inside), key

    @pytest.mark.parametrize("name", TRUNKS)
    def test_leaves_no_batchnorm_that_learns(self, name):
        body = Backbone(name, (32,)).body
        assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
        before = {key: value.clone() for key, value in body.state_dict().items()}
        body.train()(images((64, 64)).pixels)
        assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())

    def test_is_left_out_for_a_trunk_that_starts_at_random(self):
        body = Backbone("resnet18", (32,), frozen=False).body
        assert all(parameter.requires_grad for parameter in body.parameters())
        before = body.state_dict()["bn1.running_mean"].clone()
        body.train()(images((64, 64)).pixels)
        assert not torch.equal(body.state_dict()["bn1.running_mean"], before)


class TestLevels:
    @pytest.mark.parametrize("name", TRUNKS)
    def test_strides_channels_and_masks(self, name):
        backbone = Backbone(name, (8, 16, 32)).eval()
        batch = images((64, 96), (33, 70))
        levels = backbone(batch)
        for level, stride, channels in zip(levels, (8, 16, 32), backbone.channels, strict=True):
            assert level.features.shape == (2, channels, 64 // stride, 96 // stride)
            assert torch.equal(level.padding_mask, batch.padding_mask[:, ::stride, ::stride])
            assert level.shape == (64 // stride, 96 // stride)
            assert level.tokens().shape == (2, level.shape[0] * level.shape[1], channels)
            assert torch.equal(level.tokens()[1, level.shape[1] + 2], level.features[1, :, 1, 2])

    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_dilation_keeps_stride_16_and_starts_at_1(self, name):
        backbone = Backbone(name, (32,), dilation=True).eval()
        (level,) = backbone(images((64, 96)))
        assert level.features.shape == (1, {"resnet18": 512, "resnet50": 2048}[name], 4, 6)
        convolutions = [
            module
            for key, module in backbone.body.named_modules()
            if key.startswith("layer4") and isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        ]
        assert {convolution.stride for convolution in convolutions} == {(1, 1)}
        assert [convolution.dilation for convolution in convolutions[:2]] == [(1, 1), (2, 2)]
        assert {convolution.dilation for convolution in convolutions[1:]} == {(2, 2)}

    def test_dilated_finer_level_is_the_one_before(self):
        backbone = Backbone("resnet18", (16, 32), dilation=True)
        assert backbone.channels == [256, 512]

    def test_masks_of_odd_sizes_follow_nearest_neighbour(self):
        mask = torch.zeros(1, 10, 10, dtype=torch.bool)
        mask[:, :, 7:] = True
        assert resize_mask(mask, (3, 3))[0, 0].tolist() == [False, False, False]
        assert resize_mask(mask, (4, 4))[0, 0].tolist() == [False, False, False, True]

    def test_coarser_levels_come_from_the_raw_last_one(self):
        torch.manual_seed(0)
        projection = LevelProjection([8, 16], 64, num_levels=4)
        kernels = [(p[0].in_channels, p[0].kernel_size[0], p[0].stride[0]) for p in projection.projections]
        assert kernels == [(8, 1, 1), (16, 1, 1), (16, 3, 2), (64, 3, 2)]
        padding_mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        padding_mask[:, 40:] = True
        raw = [Level(torch.randn(1, 8, 8, 8), padding_mask[:, ::8, ::8])]
        raw.append(Level(torch.randn(1, 16, 4, 4), padding_mask[:, ::16, ::16]))
        levels = projection(raw, padding_mask)
        assert [level.shape for level in levels] == [(8, 8), (4, 4), (2, 2), (1, 1)]
        torch.testing.assert_close(levels[2].features, projection.projections[2](raw[1].features))
        assert torch.equal(levels[2].padding_mask, padding_mask[:, ::32, ::32])


class TestLoading:
    def test_takes_both_spellings_of_a_file(self, tmp_path):
        whole = settle(timm.create_model("convnext_atto", pretrained=False))  # "stem.0", and a classifier
        save_file(whole.state_dict(), tmp_path / "trunk.safetensors")
        backbone = Backbone("convnext_atto", (8,))
        backbone.load(tmp_path / "trunk.safetensors")
        loaded = backbone.body.state_dict()
        assert torch.equal(loaded["stem_0.weight"], whole.state_dict()["stem.0.weight"])
        pixels = images((64, 64)).pixels
        with torch.no_grad():
            expected = whole.eval().forward_intermediates(pixels, intermediates_only=True)
            for given, wanted in zip(backbone.eval().body(pixels), expected, strict=True):
                torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)

    def test_real_file(self, shared):
        backbone = Backbone("mobilenetv2_100", (8, 16, 32))
        before = backbone.body.state_dict()["conv_stem.weight"].clone()
        backbone.load(shared / "weights/mobilenetv2_100.imagenet.safetensors")
        assert not torch.equal(backbone.body.state_dict()["conv_stem.weight"], before)

    def test_refuses_weights_of_another_trunk(self, shared):
        with pytest.raises(InputError) as caught:
            Backbone("resnet18", (32,)).load(shared / "weights/mobilenetv2_100.imagenet.safetensors")
        message = str(caught.value)
        assert "\n" not in message
        for part in ("mobilenetv2_100.imagenet.safetensors", "not weights of resnet18", "conv1.weight", "bn1.bias"):
            assert part in message

    def test_refuses_what_is_no_file_of_weights(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
            Backbone("resnet18", (32,)).load(tmp_path / "none.safetensors")
        (tmp_path / "bad.safetensors").write_bytes(b"not weights")
        with pytest.raises(InputError, match=r"bad\.safetensors: not a safetensors file"):
            Backbone("resnet18", (32,)).load(tmp_path / "bad.safetensors")

    def test_offline_starts_at_random_with_a_notice(self, monkeypatch):
        def offline(*_, pretrained, **__):
            assert pretrained
            raise OSError("no route to host\nsecond line")

        monkeypatch.setattr("detrove.nn.backbone.create_body", offline)
        with pytest.warns(UserWarning, match=r"no pretrained weights for backbone resnet18 \(no route to host\)"):
            assert download_body("resnet18") is None

    def test_a_trunk_that_nobody_published_starts_at_random_with_a_notice(self):
        with pytest.warns(UserWarning, match=r"for backbone mobilenetv2_035 \(timm publishes none\)"):
            assert download_body("mobilenetv2_035") is None


class TestUnfit:
    def test_unknown_name_offers_the_nearest(self):
        with pytest.raises(InputError, match=r"unknown backbone 'resnet5O'.*resnet50"):
            create_body("resnet5O")

    def test_trunk_without_the_wanted_maps(self):
        with pytest.raises(
            InputError, match=r"vit_tiny_patch16_224 has feature maps at strides .*16.*not at \[8, 32\]"
        ):
            Backbone("vit_tiny_patch16_224", (8, 16, 32))

    @pytest.mark.parametrize("name", ["densenet121", "ghostnet_100"])
    def test_trunk_that_cannot_be_dilated(self, name):
        with pytest.raises(InputError, match=f"{name} cannot be dilated"):
            Backbone(name, (32,), dilation=True)


def test_levels_are_normed_as_exactly_as_torch_can():
    """5e-6 off; in channels-last torch's group norm on a CPU is 2e-4 off here."""
    torch.manual_seed(0)
    projection = LevelProjection([64], 64, 1)
    features = (5 + torch.randn(1, 64, 134, 134)).contiguous(memory_format=torch.channels_last)
    level = Level(features, torch.zeros(1, 134, 134, dtype=torch.bool))
    [given] = projection([level], level.padding_mask)
    exact = copy.deepcopy(projection).double().projections[0](features.double())
    assert (given.features - exact).abs().max() < 2e-5
