"""Trunks: any timm model with feature maps, frozen as the published detectors freeze theirs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureInfo, is_model_pretrained
from torch import Tensor, nn

from detrove.errors import InputError, nearest
from detrove.hub import offline_where_unreachable
from detrove.nn.fixed_trunk import FixedTrunk, can_be_folded
from detrove.nn.frozen_norm import compute_norms_in_convolutions
from detrove.nn.padding import group_norm_in_picture, zero_in_padding
from detrove.structures import ImageBatch

PRETRAINED = "pretrained"
"""As backbone weights: timm's own download, or random weights and a notice where it cannot be had."""


@dataclass
class Level:
    """One feature map: `features` (B, C, h, w) and `padding_mask` (B, h, w), True = padding."""

    features: Tensor
    padding_mask: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map."""
        return self.features.shape[-2], self.features.shape[-1]

    def tokens(self) -> Tensor:
        """The map as tokens (B, h · w, C), row by row."""
        return self.features.flatten(2).transpose(1, 2)


def resize_mask(padding_mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """A full picture's padding mask (B, H, W) at a level's (height, width), by nearest neighbour as officially."""
    return F.interpolate(padding_mask[:, None].float(), size=shape, mode="nearest")[:, 0].bool()


class Backbone(nn.Module):
    """A timm trunk that gives the levels of the wanted strides.

    With `dilation`, the last stage keeps stride 16 by dilation 2 (DETR's DC5), its first 3×3 convolution at dilation 1;
    strides then name the level before dilation (32 is the last stage).
    With `frozen`, everything up to stride 4 gets no gradient and every BatchNorm is fixed, as published; a trunk that
    starts at random must be learned, so it is not frozen.
    """

    def __init__(self, name: str, strides: tuple[int, ...], dilation: bool = False, frozen: bool = True) -> None:
        super().__init__()
        self.name, self.strides, self.frozen = name, strides, frozen
        body = create_body(name, dilation)
        reductions = [16 if dilation and stride == 32 else stride for stride in strides]
        available = feature_info(body).reduction()
        missing = [stride for stride in reductions if stride not in available]
        if missing:
            raise InputError(
                f"backbone {name} has feature maps at strides {available}, not at {missing}: "
                "choose a convolutional timm model"
            )
        # the last level of a stride is the deepest: with dilation two levels share stride 16
        first_level = {stride: available.index(stride) for stride in available}
        last_level = {stride: index for index, stride in enumerate(available)}
        self.indices = [
            (last_level if stride == 32 else first_level)[reduction]
            for stride, reduction in zip(strides, reductions, strict=True)
        ]
        self.channels: list[int] = [feature_info(body).channels()[index] for index in self.indices]
        if frozen:
            body = compute_norms_in_convolutions(freeze(body))
        self.body = body.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._fixed = FixedTrunk()

    def forward(self, images: ImageBatch) -> list[Level]:
        """One `Level` per wanted stride, finest first."""
        pixels = images.pixels.contiguous(memory_format=torch.channels_last)
        if self.training and can_be_folded(self.body, pixels):
            features = self._fixed(self.body, pixels)
        else:
            features = self.body(pixels)
        levels = [features[index] for index in self.indices]
        return [Level(x, resize_mask(images.padding_mask, (x.shape[-2], x.shape[-1]))) for x in levels]

    def load(self, weights: str | Path) -> None:
        """Fill the trunk from a safetensors file in timm's names; heads there are ignored, anything missing fails."""
        path = Path(weights)
        try:
            tensors = load_file(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file of backbone weights") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a safetensors file of backbone weights ({error})") from None
        load_body(self.body, tensors, f"{path}: not weights of {self.name}")


class ProjectedLevel(nn.Sequential):
    """A convolution and a group norm. The norm gets its map in torch's own layout: on a CPU it is an order of magnitude
    less exact in the trunk's, channels-last (2e-4 against 5e-6 on random maps of 134×134 cells)."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.GroupNorm) -> None:
        super().__init__(convolution, norm)

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, C, h, w) to (B, D, h', w'); what the full picture's mask (B, H, W), where given, says is padding is no
        part of the norm."""
        convolution, norm = self
        projected = convolution(features).contiguous()
        if padding_mask is None:
            return norm(projected)
        assert isinstance(norm, nn.GroupNorm)
        mask = resize_mask(padding_mask, (projected.shape[-2], projected.shape[-1]))
        return group_norm_in_picture(norm, projected, mask)


class LevelProjection(nn.Module):
    """The trunk's levels at the transformer's width, and coarser ones made by 3×3 convolutions of stride 2.

    Convolutions and norms see what lies in the padding, as in the published detectors, unless `padding_counts` is off.
    """

    def __init__(self, channels: Sequence[int], dim: int, num_levels: int, padding_counts: bool = True) -> None:
        super().__init__()
        self.padding_counts = padding_counts
        kernels = [(c, 1) for c in channels] + [(channels[-1], 3)] + [(dim, 3)] * num_levels
        self.projections = nn.ModuleList()
        for channels_in, kernel in kernels[:num_levels]:
            convolution = nn.Conv2d(channels_in, dim, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2)
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
            self.projections.append(ProjectedLevel(convolution, nn.GroupNorm(32, dim)))

    def forward(self, levels: list[Level], padding_mask: Tensor) -> list[Level]:
        """Levels of the trunk and the full picture's padding mask to `num_levels` levels."""
        seen = None if self.padding_counts else padding_mask
        projected = [
            Level(project(x.features, seen), x.padding_mask)
            for project, x in zip(self.projections, levels, strict=False)
        ]
        coarse = levels[-1]
        for project in self.projections[len(levels) :]:
            features = coarse.features
            if not self.padding_counts:
                features = zero_in_padding(features, coarse.padding_mask)
            features = project(features, seen)
            coarse = Level(features, resize_mask(padding_mask, (features.shape[-2], features.shape[-1])))
            projected.append(coarse)
        return projected


def create_body(name: str, dilation: bool = False, pretrained: bool = False) -> nn.Module:
    """timm's feature extractor of that name; an unknown name offers the nearest."""
    if not timm.is_model(name):
        raise InputError(f"unknown backbone {name!r}: {nearest(name, timm.list_models())}")
    try:
        # timm leaves out what is None
        return timm.create_model(
            name, features_only=True, pretrained=pretrained, output_stride=16 if dilation else None
        )
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"backbone {name} gives no feature maps ({error}): choose a convolutional timm model"
        ) from error
    except (TypeError, AssertionError) as error:
        if not dilation:
            raise
        raise InputError(f"backbone {name} cannot be dilated: choose a ResNet, or leave dilation out") from error


def feature_info(body: nn.Module) -> FeatureInfo:
    """What timm knows of the maps that a trunk gives."""
    info = body.feature_info
    assert isinstance(info, FeatureInfo)
    return info


def freeze(body: nn.Module) -> nn.Module:
    """Fix every BatchNorm by timm's own means (its norms may carry an activation), and all weights up to stride 4."""
    body = freeze_batch_norm_2d(body)
    info = feature_info(body)
    stem_end = [name for name, stride in zip(info.module_name(), info.reduction(), strict=True) if stride <= 4]
    if not stem_end:
        return body
    last = stem_end[-1].replace(".", "_") + "_"
    modules = list(body.named_modules())  # in the order in which they run
    inside = [index for index, (name, _) in enumerate(modules) if f"{name}.".replace(".", "_").startswith(last)]
    for _, module in modules[: max(inside, default=-1) + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return body


def load_body(body: nn.Module, tensors: dict[str, Tensor], failure: str) -> None:
    """Copy tensors into a trunk by name. timm's extractors spell `stem.0` as `stem_0`: both are taken."""
    given = {key.removeprefix("backbone.").replace(".", "_"): value for key, value in tensors.items()}
    wanted = body.state_dict()
    found = {key: given.get(key.replace(".", "_")) for key in wanted if not key.endswith("num_batches_tracked")}
    bad = [key for key, value in found.items() if value is None or value.shape != wanted[key].shape]
    if bad:
        raise InputError(
            f"{failure}: {len(bad)} of {len(found)} tensors missing or of another shape "
            f"(wanted {', '.join(bad[:3])} …; the file has {', '.join(list(tensors)[:3])} …)"
        )
    body.load_state_dict({key: value for key, value in found.items() if value is not None}, strict=False)


def download_body(name: str, dilation: bool = False) -> dict[str, Tensor] | None:
    """timm's pretrained weights of a trunk, or None with a notice where there are none (offline, none published)."""
    if timm.is_model(name) and not is_model_pretrained(name):
        return _none_of(name, "timm publishes none")
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # it would tell of every failed request; the notice says it once
    try:
        with offline_where_unreachable():
            return create_body(name, dilation, pretrained=True).state_dict()
    except InputError:
        raise
    except Exception as error:  # whatever the hub client raises when there is no network
        return _none_of(name, str(error).splitlines()[0][:120] if str(error) else type(error).__name__)
    finally:
        hub_log.setLevel(level)


def _none_of(name: str, reason: str) -> None:
    """The notice."""
    warnings.warn(
        f"no pretrained weights for backbone {name} ({reason}): starting from random ones. "
        "Name a file with --backbone-weights FILE, or go online once; learning from few pictures needs them.",
        stacklevel=3,
    )
