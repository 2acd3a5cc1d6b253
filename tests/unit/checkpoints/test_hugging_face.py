"""Folders as transformers writes and reads them, both ways, at toy size."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import huggingface_hub
import pytest
import safetensors.torch
import torch

from detrove.checkpoints import Checkpoint, hugging_face
from detrove.checkpoints.hugging_face_layouts import layout_of, their_settings
from detrove.errors import InputError
from detrove.models import catalogue, conditional, dab, dab_deformable, deformable, detr
from detrove.structures import Category, ImageBatch, LabelMap, Preprocessing
from detrove.tiling import Tiling

transformers = pytest.importorskip("transformers")

TOY = {
    "num_classes": 5,
    "num_queries": 7,
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "feedforward_dim": 48,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
    "dropout": 0.0,
}
FORMS = {
    "detr": replace(detr.Config(), **TOY),
    "detr-dc5": replace(detr.Config(), **TOY, dilation=True),
    "deformable": replace(deformable.Config(), **TOY),
    "deformable-refine": replace(deformable.Config(), **TOY, refine=True),
    "deformable-two-stage": replace(deformable.Config(), **TOY, refine=True, two_stage=True),
    "conditional": replace(conditional.Config(), **TOY),
    "dab": replace(dab.Config(), **TOY),
    "dab-dc5-patterns": replace(dab.Config(), **TOY, dilation=True, num_patterns=2),
}
LABELS = LabelMap((None, Category(1, "cell"), Category(2, "crystal"), None, Category(4, "fibre")))


@pytest.fixture(params=FORMS)
def config(request):
    return FORMS[request.param]


@torch.no_grad()
def disturb(model: torch.nn.Module) -> torch.nn.Module:
    """Values that are no initialisation: nothing is 0, 1 or alike by accident, and no box near the border."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif key.endswith("running_var"):
                tensor.copy_(1 + 0.5 * noise.abs())
            else:
                tensor.add_(0.2 * noise)
    return model.eval()


def checkpoint_of(config, preprocessing=Preprocessing(longer=96)) -> Checkpoint:  # noqa: B008
    model = disturb(catalogue.build(config))
    return Checkpoint(
        tensors=model.state_dict(),
        config=catalogue.config_to_json(config),
        label_map=LABELS,
        preprocessing=preprocessing,
        thresholds=None,
        preset=None,
        training={},
        detrove_version="0",
        source=None,
    )


def saved_by_transformers(config, folder, **options):
    """A folder that `save_pretrained` wrote, and the model in it, with the settings of our config."""
    architecture = getattr(transformers, layout_of(config).architecture)
    settings = {
        "backbone": config.backbone,
        "use_pretrained_backbone": False,
        "id2label": {slot: name or "N/A" for slot, name in enumerate(LABELS.names)},
        **their_settings(config),
        **options,
    }
    model = disturb(architecture(architecture.config_class(**settings)))
    model.tie_weights()
    for heads in ("bbox_embed", "class_embed"):  # untied, the decoder's are copies, which no training keeps equal
        if hasattr(model.model.decoder, heads) and isinstance(config, deformable.Config):
            copies = getattr(model.model.decoder, heads)
            if copies is not None:
                copies.load_state_dict(getattr(model, heads).state_dict())
    model.save_pretrained(folder)
    return model


def loaded_by_transformers(folder):
    model, report = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], f"{kind}: {report[kind]}"
    return model.eval()


@torch.no_grad()
def assert_equal_outputs(theirs, ours):
    generator = torch.Generator().manual_seed(1)
    images = ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in [(96, 64), (70, 96)]])
    wanted = theirs(pixel_values=images.pixels, pixel_mask=(~images.padding_mask).long())
    given = ours(images)
    assert given.logits.std() > 0.1
    torch.testing.assert_close(given.logits[-1], wanted.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(given.boxes[-1], wanted.pred_boxes, rtol=0, atol=1e-4)


def build_as_theirs(checkpoint):
    """Our model with their epsilon in DAB-DETR, where it is not the official one."""
    config = catalogue.config_from_json(checkpoint.config)
    if isinstance(config, dab.Config):
        config = replace(config, inverse_sigmoid_epsilon=1e-5)
    return replace(checkpoint, config=catalogue.config_to_json(config)).build()


def rewrite(folder, **values):
    """Other values in a folder's config.json; None takes a setting out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rename(folder, name):
    """The folder's tensors under other names."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name(key): value for key, value in tensors.items()}, path, {"format": "pt"})


class TestImport:
    def test_a_folder_that_transformers_saved(self, config, tmp_path):
        theirs = saved_by_transformers(config, tmp_path)
        checkpoint = hugging_face.import_folder(tmp_path)
        assert catalogue.config_from_json(checkpoint.config) == config
        assert checkpoint.label_map == LABELS
        assert_equal_outputs(theirs, build_as_theirs(checkpoint))

    @pytest.mark.parametrize("name", ["detr", "deformable", "conditional", "dab"])
    def test_the_names_of_the_modules(self, name, tmp_path):
        """As a state dict that somebody saved without `save_pretrained`: tied tensors stand there twice."""
        theirs = saved_by_transformers(FORMS[name], tmp_path)
        in_file = safetensors.torch.load_file(tmp_path / "model.safetensors")
        tensors = {key: value.clone() for key, value in theirs.state_dict().items()}
        assert name == "dab" or not set(in_file) <= set(tensors)
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
        assert_equal_outputs(theirs, build_as_theirs(hugging_face.import_folder(tmp_path)))

    @pytest.mark.parametrize("name", ["detr", "deformable", "conditional", "dab"])
    def test_the_librarys_own_resnet(self, name, tmp_path):
        trunk = {
            "model_type": "resnet",
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
            "hidden_sizes": [64, 128, 256, 512],
        }
        stages = ["stage2", "stage3", "stage4"] if name == "deformable" else ["stage4"]
        trunk = transformers.ResNetConfig(**trunk, out_features=stages)
        theirs = saved_by_transformers(FORMS[name], tmp_path, backbone=None, backbone_config=trunk)
        checkpoint = hugging_face.import_folder(tmp_path)
        assert checkpoint.config["backbone"] == "resnet18"
        assert_equal_outputs(theirs, build_as_theirs(checkpoint))

    def test_tied_heads_of_a_refining_detector(self, tmp_path):
        config = FORMS["deformable-refine"]
        theirs = saved_by_transformers(config, tmp_path, tie_word_embeddings=True)
        saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
        assert "class_embed.1.weight" not in saved
        checkpoint = hugging_face.import_folder(tmp_path)
        assert_equal_outputs(theirs, checkpoint.build())

    def test_the_config_of_older_files(self, tmp_path):
        """Before transformers 5 config.json names the trunk at its top."""
        theirs = saved_by_transformers(FORMS["detr-dc5"], tmp_path)
        rewrite(tmp_path, backbone_config=None, backbone="resnet18", use_timm_backbone=True)
        checkpoint = hugging_face.import_folder(tmp_path)
        assert catalogue.config_from_json(checkpoint.config) == FORMS["detr-dc5"]
        assert_equal_outputs(theirs, checkpoint.build())

    def test_shards(self, tmp_path):
        theirs = saved_by_transformers(FORMS["conditional"], tmp_path)
        theirs.save_pretrained(tmp_path / "shards", max_shard_size="5MB")
        assert not (tmp_path / "shards" / "model.safetensors").exists()
        checkpoint = hugging_face.import_folder(tmp_path / "shards")
        whole = hugging_face.import_folder(tmp_path)
        assert set(checkpoint.tensors) == set(whole.tensors)
        assert all(value.equal(whole.tensors[key]) for key, value in checkpoint.tensors.items())
        next((tmp_path / "shards").glob("model-00001-*.safetensors")).unlink()
        with pytest.raises(InputError, match=r"model-00001-of-\d+\.safetensors is missing"):
            hugging_face.import_folder(tmp_path / "shards")

    def test_a_pickled_file_is_read_as_tensors(self, tmp_path):
        saved_by_transformers(FORMS["detr"], tmp_path)
        whole = hugging_face.import_folder(tmp_path)
        torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        checkpoint = hugging_face.import_folder(tmp_path)
        assert all(value.equal(whole.tensors[key]) for key, value in checkpoint.tensors.items())

    def test_a_panoptic_files_detector(self, tmp_path):
        theirs = saved_by_transformers(FORMS["detr"], tmp_path)
        rename(tmp_path, lambda key: f"detr.{key}")
        path = tmp_path / "model.safetensors"
        mask = {"mask_head.lay1.weight": torch.ones(2), "bbox_attention.q_linear.bias": torch.ones(2)}
        safetensors.torch.save_file(safetensors.torch.load_file(path) | mask, path)
        checkpoint, report = hugging_face.import_with_report(tmp_path)
        assert sorted(report.dropped["without a counterpart"]) == sorted(mask)
        assert_equal_outputs(theirs, checkpoint.build())

    def test_cocos_slots(self, tmp_path):
        saved_by_transformers(
            replace(FORMS["detr"], num_classes=91), tmp_path, id2label={i: f"LABEL_{i}" for i in range(91)}
        )
        labels = hugging_face.import_folder(tmp_path).label_map
        assert labels.entries[0] is None
        assert labels.entries[12] is None
        assert labels.entries[90] == Category(90, "toothbrush")

    def test_classes_that_nobody_named(self, tmp_path):
        saved_by_transformers(FORMS["detr"], tmp_path, id2label={i: f"LABEL_{i}" for i in range(5)})
        assert hugging_face.import_folder(tmp_path).label_map == LabelMap.numbered(5)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (None, Preprocessing(longer=1333, shorter=800)),
            ({"size": {"shortest_edge": 480, "longest_edge": 640}}, Preprocessing(longer=640, shorter=480)),
            ({"size": 600, "max_size": 1000}, Preprocessing(longer=1000, shorter=600)),
            ({"size": {"max_height": 320, "max_width": 320}}, Preprocessing(longer=320)),
            (
                {"resample": 3, "image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]},
                Preprocessing(1333, 800, "bicubic", (0.5, 0.5, 0.5), (1, 1, 1)),
            ),
        ],
    )
    def test_preprocessing(self, values, expected, exported):
        path = exported / "preprocessor_config.json"
        path.unlink()
        if values is not None:
            path.write_text(json.dumps(values))
        assert hugging_face.import_folder(exported).preprocessing == expected

    def test_a_preset_is_recognised(self):
        config = replace(conditional.Config(), num_classes=3, backbone_frozen=False)
        assert hugging_face._preset(config) == "conditional-r50"
        assert hugging_face._preset(FORMS["conditional"]) is None


@pytest.fixture
def exported(tmp_path):
    return hugging_face.export_folder(checkpoint_of(FORMS["detr"]), tmp_path / "exported")


class TestExport:
    def test_transformers_loads_it_whole_and_computes_the_same(self, config, tmp_path):
        checkpoint = checkpoint_of(config)
        folder = hugging_face.export_folder(checkpoint, tmp_path / "new")
        theirs = loaded_by_transformers(folder)
        assert [theirs.config.id2label[slot] for slot in range(5)] == ["N/A", "cell", "crystal", "N/A", "fibre"]
        assert_equal_outputs(theirs, build_as_theirs(checkpoint))

    def test_and_back_again(self, config, tmp_path):
        checkpoint = checkpoint_of(config)
        again = hugging_face.import_folder(hugging_face.export_folder(checkpoint, tmp_path))
        assert again.config == checkpoint.config
        assert again.label_map == checkpoint.label_map
        assert again.preprocessing == checkpoint.preprocessing
        assert set(again.tensors) == set(checkpoint.tensors)
        assert all(value.equal(again.tensors[key]) for key, value in checkpoint.tensors.items())

    def test_a_random_trunks_counters_stay_behind(self, tmp_path):
        config = replace(FORMS["detr"], backbone_frozen=False)
        checkpoint = checkpoint_of(config)
        again = hugging_face.import_folder(hugging_face.export_folder(checkpoint, tmp_path))
        left = set(checkpoint.tensors) - set(again.tensors)
        assert left
        assert all(key.endswith("num_batches_tracked") for key in left)
        assert_equal_outputs(loaded_by_transformers(tmp_path), checkpoint.build())

    @pytest.mark.parametrize("preprocessing", [Preprocessing(longer=96), Preprocessing(longer=133, shorter=80)])
    def test_their_processor_gives_pictures_of_the_same_size(self, preprocessing, tmp_path):
        folder = hugging_face.export_folder(checkpoint_of(FORMS["conditional"], preprocessing), tmp_path)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        picture = torch.zeros(3, 60, 40, dtype=torch.uint8)
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        assert tuple(pixels.shape[2:]) == preprocessing.target_size(60, 40)
        torch.testing.assert_close(pixels[0, 0, 0, 0].item(), -0.485 / 0.229, rtol=1e-5, atol=0)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (replace(dab_deformable.Config(), num_classes=5), "has no dab_deformable"),
            (replace(FORMS["detr"], norm_first=True), "norm_first is True"),
            (replace(FORMS["dab"], num_coordinates=2, modulate=False), "num_coordinates is 2"),
            (replace(FORMS["dab"], temperature=19.5), "temperature_height is 19.5"),
            (replace(FORMS["conditional"], backbone="mobilenetv2_100"), "mobilenetv2_100"),
            (replace(FORMS["deformable"], num_levels=2), "num_levels is 2"),
        ],
    )
    def test_what_they_cannot_express(self, config, reason, tmp_path):
        checkpoint = replace(checkpoint_of(FORMS["detr"]), config=catalogue.config_to_json(config))
        with pytest.raises(InputError, match=reason) as error:
            hugging_face.export_folder(checkpoint, tmp_path / "new")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "new").exists()

    def test_a_note_says_what_differs(self, tmp_path):
        card = (hugging_face.export_folder(checkpoint_of(FORMS["dab"]), tmp_path) / "README.md").read_text()
        assert "epsilon 1e-5 instead of 1e-3" in card
        assert "--tiles" not in card
        tiled = replace(checkpoint_of(FORMS["dab"]), tiling=Tiling(320))
        card = (hugging_face.export_folder(tiled, tmp_path / "tiled") / "README.md").read_text()
        assert "say `--tiles 320` to detrove" in card


class TestBadInput:
    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"model_type": "yolos"}, "model_type 'yolos' is no detector that detrove reads"),
            ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
            ({"decoder_ffn_dim": 64}, "decoder_ffn_dim is 64"),
            ({"backbone_config": {"downsample_in_bottleneck": True}}, "downsample_in_bottleneck"),
            ({"model_type": "dab-detr", "temperature_width": 5, "temperature_height": 6}, "temperature_width is 5"),
            ({"model_type": "dab-detr", "activation_function": "snake"}, "no activation 'snake'"),
            ({"model_type": "deformable_detr", "backbone_config": {"output_stride": 16}}, "no dilated trunk"),
        ],
    )
    def test_settings_that_ours_lacks(self, values, reason, exported):
        rewrite(exported, **values)
        with pytest.raises(InputError, match=reason):
            hugging_face.import_folder(exported)

    def test_a_tensor_of_unknown_name(self, exported):
        rename(exported, lambda key: key.replace("query_position", "somebodys_position"))
        with pytest.raises(InputError, match=r"1 of its \d+ tensors are unknown .*somebodys_position"):
            hugging_face.import_folder(exported)

    def test_copies_of_heads_that_went_apart(self, tmp_path):
        hugging_face.export_folder(checkpoint_of(FORMS["deformable-refine"]), tmp_path)
        path = tmp_path / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        tensors["model.decoder.bbox_embed.1.layers.0.bias"] += 1
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(InputError, match=r"bbox_embed\.1\.layers\.0\.bias and the decoder's copy of it differ"):
            hugging_face.import_folder(tmp_path)

    def test_a_part_of_the_weights(self, exported):
        path = exported / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file({k: v for k, v in tensors.items() if "class" not in k}, path)
        with pytest.raises(InputError, match="only a part of a detector"):
            hugging_face.import_folder(exported)

    def test_layers_with_heads_of_their_own_and_no_refinement(self, tmp_path):
        saved_by_transformers(FORMS["deformable"], tmp_path, tie_word_embeddings=False)
        with pytest.raises(InputError, match=re.escape("but with_box_refine is false")):
            hugging_face.import_folder(tmp_path)

    @pytest.mark.parametrize(
        ("file", "content", "reason"),
        [
            ("config.json", None, "no such file"),
            ("config.json", "{", "cannot be read as JSON"),
            ("config.json", "[]", "holds a list"),
            ("model.safetensors", None, "neither model.safetensors nor"),
            ("model.safetensors", "cut", "not a whole safetensors file"),
            ("preprocessor_config.json", '{"size": {"height": 9, "width": 9}}', "does not keep the picture's aspect"),
            ("preprocessor_config.json", '{"do_normalize": false}', "one of the three is off"),
            ("preprocessor_config.json", '{"rescale_factor": 1}', "rescale_factor is 1"),
        ],
    )
    def test_damaged_files(self, file, content, reason, exported):
        (exported / file).unlink()
        if content is not None:
            (exported / file).write_text(content)
        with pytest.raises(InputError, match=reason) as error:
            hugging_face.import_folder(exported)
        assert file in str(error.value)
        assert "\n" not in str(error.value)


class TestDownload:
    def test_offline(self, monkeypatch, tmp_path):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(InputError, match=r"nobody/nothing: cannot be had from the hub .*; go online") as error:
            hugging_face.download("nobody/nothing")
        assert "\n" not in str(error.value)

    def test_a_name_that_is_none(self):
        with pytest.raises(InputError, match="cannot be had from the hub"):
            hugging_face.download("a//b")

    def test_the_pickled_file_only_where_there_is_no_other(self, monkeypatch, tmp_path):
        asked = []

        def snapshot(hub_id, allow_patterns):
            asked.append((hub_id, *allow_patterns))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert hugging_face.download("owner/name") == tmp_path
        (tmp_path / "model.safetensors").touch()
        hugging_face.download("owner/name")
        safe = ("owner/name", "*.json", "*.safetensors")
        assert asked == [safe, ("owner/name", "*.json", "pytorch_model.bin"), safe]
