"""Hugging Face's folders, both ways, for the detectors of `hugging_face_layouts`: `config.json`,
`preprocessor_config.json` and `model.safetensors` (or shards with an index).

Both the names that files have and those of the library's present modules are read; what is written are the names that
files have, which every version of the library reads.

Where Hugging Face's code computes otherwise than the official one, which detrove follows:

- DAB-DETR: its inverse sigmoid has epsilon 1e-5, not 1e-3, so boxes near the picture's border, or thinner than a
  thousandth of it, come out a little different; no epsilon in generalised IoU; the 100 best detections, not 300;
- Deformable DETR with refinement: the layers' heads are tied unless `tie_word_embeddings` is false, as it is in what
  `export_folder` writes; the matching cost of classes defaults to 1, not 2;
- DETR and Conditional DETR with `auxiliary_loss`: each layer's normed output goes on to the next layer, not the
  un-normed; an exported folder leaves the setting off;
- in training: the class loss of Conditional, DAB and Deformable DETR always weighs 1, a two-stage detector's encoder
  has no loss, and there is no dropout in attention.

So an imported detector has the published config's losses, epsilons and number of detections, not the folder's. Its
category ids are the class slots, as in the files for COCO: the format has no place for other ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
from torch import Tensor

from detrove.checkpoints import native
from detrove.checkpoints.coco_labels import labels_of_head
from detrove.checkpoints.conversion import to_ours, to_theirs
from detrove.checkpoints.files import write_atomically
from detrove.checkpoints.hugging_face_layouts import LAYOUTS, SAME, Layout, layout_of, their_settings
from detrove.checkpoints.native import Checkpoint
from detrove.checkpoints.official import ImportReport
from detrove.checkpoints.pickles import read_pickle
from detrove.checkpoints.recognition import facts_of
from detrove.errors import InputError
from detrove.hub import offline_where_unreachable
from detrove.models import catalogue, deformable
from detrove.nn.transformer import ACTIVATIONS
from detrove.structures import Category, LabelMap, Preprocessing

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX, PICKLE, CARD = "model.safetensors.index.json", "pytorch_model.bin", "README.md"
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which `resample` holds."""
NO_CATEGORY = "N/A"
UNNAMED = re.compile(r"LABEL_\d+")
"""What the library calls a class that nobody named."""
COUNTERS = "{rest...}.num_batches_tracked"
SECOND_NAMES = "second names of tied tensors"
DIFFERENCES = {
    "dab": "its inverse sigmoid has epsilon 1e-5 instead of 1e-3, and it keeps the 100 best detections instead of 300",
    "deformable": "its class loss weighs 1 and a two-stage encoder has no loss when it is trained further",
    "conditional": "its class loss weighs 1 when it is trained further",
    "detr": "its attention has no dropout when it is trained further",
}


def import_folder(folder: Path) -> Checkpoint:
    """A folder in Hugging Face's layout as a checkpoint of ours: names, config, labels, preprocessing, preset.

    Raises `InputError` with one line where something is missing or damaged, the detector is none of ours, or it has a
    setting that ours does not.
    """
    return import_with_report(folder)[0]


def import_with_report(folder: Path) -> tuple[Checkpoint, ImportReport]:
    """`import_folder`, and what became of the keys of the file."""
    described = _read_json(folder / CONFIG)
    detector = _detector(folder, described)
    layout = LAYOUTS[detector]
    tensors, dropped = _tensors(folder, layout, described)
    config = _config(folder, detector, described, tensors)
    if isinstance(config, deformable.Config):
        _refuse_different_heads(folder, config, tensors)
    preset = _preset(config)
    checkpoint = Checkpoint(
        tensors=tensors,
        config=catalogue.config_to_json(config),
        label_map=_labels(described, config.num_classes),
        preprocessing=_preprocessing(folder, preset),
        thresholds=None,
        preset=preset,
        training={"converted_from": folder.name},
        detrove_version=version("detrove"),
        source=folder,
    )
    return checkpoint, ImportReport("Hugging Face", tuple(tensors), dropped)


def export_folder(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint as a folder that transformers' `AutoModelForObjectDetection.from_pretrained` loads whole.

    Thresholds and category ids have no place there; a README.md says so, and how its code computes otherwise. Raises
    `InputError` where Hugging Face has no such detector, or not with these settings, or the folder cannot be written.
    """
    config = catalogue.config_from_json(checkpoint.config)
    layout, settings = layout_of(config), their_settings(config)
    names = [name or NO_CATEGORY for name in checkpoint.label_map.names]
    described = {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        "backbone_config": None,
        "backbone": config.backbone,
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "id2label": dict(enumerate(names)),
        "label2id": {name: slot for slot, name in enumerate(names)},
        "auxiliary_loss": False,
        "dtype": "float32",
        **settings,
    }
    tensors = _their_tensors(checkpoint, layout, config)
    write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    write_atomically(folder / PREPROCESSOR, _json(_their_preprocessing(checkpoint.preprocessing, layout)))
    write_atomically(folder / CARD, _card(checkpoint).encode())
    write_atomically(folder / CONFIG, _json(described))
    return folder


def download(hub_id: str) -> Path:
    """A model of the Hugging Face hub, `owner/name`, in the hub client's cache; only what `import_folder` reads.

    Raises `InputError` where there is no network and nothing in the cache, or no such model.
    """
    try:
        with offline_where_unreachable():
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
            if not any(folder.glob("*.safetensors")):
                folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=["*.json", PICKLE]))
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise InputError(f"{hub_id}: no such model on the hub, or a private one; check the name") from None
    except (huggingface_hub.errors.HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{hub_id}: cannot be had from the hub ({reason}); go online, or download its {CONFIG} and {WEIGHTS} into "
            "a folder elsewhere and name that folder"
        ) from None
    return folder


def _detector(folder: Path, described: Mapping[str, Any]) -> str:
    """Which of our detectors a config.json describes, once it is sure that it has no settings beyond ours."""
    model_type = described.get("model_type")
    detector = next((name for name, layout in LAYOUTS.items() if layout.model_type == model_type), None)
    if detector is None:
        known = ", ".join(layout.model_type for layout in LAYOUTS.values())
        raise InputError(f"{folder / CONFIG}: model_type {model_type!r} is no detector that detrove reads: {known}")
    fixed = dict(LAYOUTS[detector].theirs_fixed)
    same = {**SAME, "decoder_n_points": "encoder_n_points", "temperature_width": "temperature_height"}
    fixed |= {second: described[first] for second, first in same.items() if first in described}
    for name, value in fixed.items():
        if described.get(name, value) != value:
            raise InputError(
                f"{folder / CONFIG}: {name} is {described[name]!r}; detrove's {detector} computes with {value!r} only"
            )
    trunk = described.get("backbone_config") or {}
    if trunk.get("downsample_in_bottleneck"):
        raise InputError(f"{folder / CONFIG}: a ResNet with downsample_in_bottleneck is no trunk that detrove has")
    if detector == "deformable" and trunk.get("output_stride") not in (None, 32):
        raise InputError(f"{folder / CONFIG}: detrove's deformable has no dilated trunk (output_stride)")
    if described.get("activation_function", "relu") not in ACTIVATIONS:
        raise InputError(f"{folder / CONFIG}: detrove has no activation {described['activation_function']!r}")
    return detector


def _config(folder: Path, detector: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Our config: what config.json says, what shapes tell for sure, and the published values for the rest."""
    layout = LAYOUTS[detector]
    values = {ours: described[theirs] for ours, theirs in layout.settings.items() if theirs in described}
    trunk = described.get("backbone_config") or {}
    if detector != "deformable":
        values["dilation"] = bool(values.get("dilation")) or trunk.get("output_stride") == 16
    elif described.get("two_stage"):
        values["num_queries"] = described.get("two_stage_num_proposals", 300)
    if detector == "dab" and "temperature_height" in described:
        values["temperature"] = float(described["temperature_height"])
    try:
        facts = facts_of(detector, tensors)
    except (KeyError, StopIteration) as error:
        raise InputError(
            f"{folder}: only a part of a detector is there, without {error.args[0] if error.args else 'its head'}; "
            "download the folder again"
        ) from None
    values["num_classes"] = facts["num_classes"]
    values["backbone"] = facts.get("backbone") or trunk.get("backbone") or described.get("backbone")
    return layout.config_type(**values)


def _preset(config: Any) -> str | None:
    """The catalogue name whose detector computes the same, whatever the classes and the training."""

    def computing(config: Any) -> dict[str, Any]:
        values = catalogue.config_to_json(config)
        return {key: value for key, value in values.items() if key not in ("num_classes", "backbone_frozen", "dropout")}

    return next((name for name, each in catalogue.PRESETS.items() if computing(each.config) == computing(config)), None)


def _tensors(
    folder: Path, layout: Layout, described: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The tensors by our names, tied ones under all their names, and the keys without a counterpart by kind."""
    found: dict[str, Tensor] = {}
    again: dict[str, Tensor] = {}
    for key, tensor in _read_weights(folder).items():
        name = layout.file_key(key)
        first = layout.first_name(name)
        if first is None:
            found[name] = tensor
        else:
            again[first] = tensor
    named_twice = tuple(key for key in again if key in found)
    for key in named_twice:
        if not again[key].equal(found[key]):
            raise InputError(
                f"{folder}: {key} and the decoder's copy of it differ, but detrove has one tensor for both"
            )
    found = {**again, **found}
    if layout is LAYOUTS["deformable"]:
        found = _with_tied_heads(found, described)
    translation = to_ours(found, layout.rules, [*layout.dropped, COUNTERS])
    if translation.unknown:
        raise InputError(
            f"{folder}: {len(translation.unknown)} of its {len(found)} tensors are unknown in {layout.model_type} "
            f"({', '.join(translation.unknown[:4])}); it is a variant that detrove does not have"
        )
    kinds = {SECOND_NAMES: named_twice, "without a counterpart": translation.dropped}
    return translation.tensors, {kind: keys for kind, keys in kinds.items() if keys}


def _with_tied_heads(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Heads of all layers: a file of tied ones may hold the first alone."""
    num_heads = described.get("decoder_layers", 6) + bool(described.get("two_stage"))
    found = dict(tensors)
    for key, tensor in tensors.items():
        if key.startswith(("class_embed.0.", "bbox_embed.0.")):
            for index in range(1, num_heads):
                found.setdefault(key.replace(".0.", f".{index}.", 1), tensor)
    return found


def _refuse_different_heads(folder: Path, config: deformable.Config, tensors: Mapping[str, Tensor]) -> None:
    """Without refinement our layers share one head, and so do theirs but for `tie_word_embeddings=False`."""
    if config.refine or config.two_stage:
        return
    for key, tensor in tensors.items():
        first = re.sub(r"^((?:class|box)_heads)\.\d+\.", r"\1.0.", key)
        if not tensor.equal(tensors[first]):
            raise InputError(
                f"{folder}: {key} differs from {first}, but with_box_refine is false: detrove has heads of their own "
                "for each layer only where boxes are refined"
            )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The folder's tensors by its names: one file, shards, or a pickled file read as tensors alone."""
    if (folder / WEIGHTS).is_file():
        return native.read_safetensors(folder / WEIGHTS)[0]
    if (folder / INDEX).is_file():
        shards = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        if absent or not shards:
            raise InputError(
                f"{folder / INDEX}: {', '.join(absent) or 'no shard'} is missing; download the folder again"
            )
        return {key: value for shard in shards for key, value in native.read_safetensors(folder / shard)[0].items()}
    if (folder / PICKLE).is_file():
        return read_pickle(folder / PICKLE).tensors
    raise InputError(f"{folder}: neither {WEIGHTS} nor {PICKLE} in this folder; download the whole model")


def _labels(described: Mapping[str, Any], num_classes: int) -> LabelMap:
    """`id2label` by class slot, with the slot as category id, as in the files for COCO."""
    names = {int(slot): str(name) for slot, name in (described.get("id2label") or {}).items()}
    entries = [
        None if name == NO_CATEGORY or UNNAMED.fullmatch(name) else Category(slot, name)
        for slot in range(num_classes)
        for name in (names.get(slot, NO_CATEGORY),)
    ]
    return LabelMap(tuple(entries)) if any(entries) else labels_of_head(num_classes)


def _preprocessing(folder: Path, preset: str | None) -> Preprocessing:
    """What preprocessor_config.json says, else the preset's or the published size."""
    path = folder / PREPROCESSOR
    default = catalogue.preset(preset or "detr-r50").preprocessing
    if not path.is_file():
        return default
    values = _read_json(path)
    size = values.get("size", {"shortest_edge": default.shorter, "longest_edge": default.longer})
    if isinstance(size, int):  # as files before 2023 have it
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", default.longer)}
    if "longest_edge" in size:
        longer, shorter = size["longest_edge"], size.get("shortest_edge")
    elif "max_height" in size and size["max_height"] == size.get("max_width"):
        longer, shorter = size["max_height"], None
    else:
        raise InputError(f"{path}: size {size} does not keep the picture's aspect, as detrove always does")
    if not all(values.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")):
        raise InputError(f"{path}: detrove always resizes, rescales and normalises pictures; one of the three is off")
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise InputError(f"{path}: rescale_factor is {values['rescale_factor']}, but detrove scales pixels to [0, 1]")
    return Preprocessing(
        longer=longer,
        shorter=shorter,
        resize_filter=FILTERS.get(values.get("resample", 2), "bilinear"),
        mean=tuple(values.get("image_mean", default.mean)),
        std=tuple(values.get("image_std", default.std)),
    )


def _their_preprocessing(preprocessing: Preprocessing, layout: Layout) -> dict[str, Any]:
    longer, shorter = preprocessing.longer, preprocessing.shorter
    size = {"max_height": longer, "max_width": longer}
    return {
        "image_processor_type": layout.image_processor,
        "format": "coco_detection",
        "do_resize": True,
        "size": size if shorter is None else {"shortest_edge": shorter, "longest_edge": longer},
        "resample": next(number for number, name in FILTERS.items() if name == preprocessing.resize_filter),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": True,
    }


def _their_tensors(checkpoint: Checkpoint, layout: Layout, config: Any) -> dict[str, Tensor]:
    """The tensors by the names in files, each with memory of its own, as safetensors wants them."""
    own = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.endswith(".num_batches_tracked")}
    translation = to_theirs(own, layout.rules)
    if translation.unknown:
        raise InputError(
            f"{checkpoint.source}: {', '.join(translation.unknown[:4])} has no name in {layout.model_type}"
        )
    tensors = translation.tensors
    if isinstance(config, deformable.Config):
        tensors = _their_heads(tensors, config)
    return {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}


def _their_heads(tensors: Mapping[str, Tensor], config: deformable.Config) -> dict[str, Tensor]:
    """With refinement every layer's heads, and those that the decoder uses a second time; else the tied ones once."""
    if not (config.refine or config.two_stage):
        return {key: value for key, value in tensors.items() if not re.match(r"(class|bbox)_embed\.[1-9]", key)}
    used = ("bbox_embed.", "class_embed.") if config.two_stage else ("bbox_embed.",)
    return {**tensors, **{f"model.decoder.{key}": value for key, value in tensors.items() if key.startswith(used)}}


def _card(checkpoint: Checkpoint) -> str:
    """What a reader of the folder must know."""
    detector = checkpoint.config["detector"]
    return f"""---
library_name: transformers
pipeline_tag: object-detection
---

# {checkpoint.preset or detector}

Converted by detrove {version("detrove")} from its detector `{detector}`.

Where transformers computes otherwise than detrove and the official code: {DIFFERENCES[detector]}.

Score thresholds and the data set's own category ids are not stored here: classes are numbered by their slots.
{_about_tiles(checkpoint)}"""


def _about_tiles(checkpoint: Checkpoint) -> str:
    if checkpoint.tiling is None:
        return ""
    return f"""
It was trained to look at large pictures in {checkpoint.tiling.describe()}. That is not stored here either: cut them, or
say `--tiles {checkpoint.tiling.size}` to detrove.
"""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so the folder is no model in Hugging Face's layout") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__} instead of settings; download it again")
    return values


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
