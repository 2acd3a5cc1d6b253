"""Names, configs and weights of the catalogue, and what is said when one does not fit."""

from __future__ import annotations

import pytest
import torch

from detrove.errors import InputError
from detrove.models import catalogue


def test_unknown_model_offers_the_nearest():
    with pytest.raises(InputError, match=r"unknown model 'detr-r5O': did you mean .*detr-r50"):
        catalogue.preset("detr-r5O")
    with pytest.raises(InputError, match="unknown model"):
        catalogue.create("yolo", num_classes=3)


def test_names_are_those_of_the_files():
    assert set(catalogue.preset_names()) == {name for file in catalogue.DETECTORS.values() for name in file.PRESETS}
    assert catalogue.preset_names()[0] == "detrove-nano"


def test_settings_replace_the_presets_and_unknown_ones_offer_the_nearest():
    model = catalogue.create("detr-nano", num_classes=4, num_queries=7, num_decoder_layers=1)
    assert (model.config.num_classes, model.config.num_queries, model.config.num_decoder_layers) == (4, 7, 1)
    assert model.config.dim == catalogue.preset("detr-nano").config.dim
    with pytest.raises(InputError, match=r"detr-nano has no setting 'num_query': did you mean num_queries"):
        catalogue.create("detr-nano", 4, num_query=7)


class TestTrunkWeights:
    def test_none_means_a_random_trunk_that_learns_whole(self):
        model = catalogue.create("detr-nano", 3)
        assert not model.config.backbone_frozen
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_a_file_is_loaded_and_frozen_as_published(self, shared):
        file = shared / "weights/mobilenetv2_100.imagenet.safetensors"
        models = [catalogue.create("detr-nano", 3, backbone_weights=file) for _ in range(2)]
        assert models[0].config.backbone_frozen
        stems = [model.backbone.body.conv_stem.weight for model in models]
        assert torch.equal(*stems)
        assert not stems[0].requires_grad

    def test_the_setting_wins(self, shared):
        file = shared / "weights/mobilenetv2_100.imagenet.safetensors"
        model = catalogue.create("detr-nano", 3, backbone_weights=file, backbone_frozen=False)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_a_download_that_fails_leaves_a_random_trunk_that_learns_whole(self, monkeypatch):
        import timm

        create_model = timm.create_model

        def offline(*args, pretrained=False, **kwargs):
            if pretrained:
                raise OSError("network is unreachable")
            return create_model(*args, **kwargs)

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.warns(UserWarning, match="no pretrained weights for backbone mobilenetv2_100"):
            model = catalogue.create("detr-nano", 3, backbone_weights="pretrained")
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_a_download_that_arrives_is_loaded_and_frozen(self, monkeypatch):
        from detrove.nn.backbone import create_body

        tensors = create_body("mobilenetv2_100").state_dict()
        monkeypatch.setattr(catalogue, "download_body", lambda name, dilation: tensors)
        model = catalogue.create("detr-nano", 3, backbone_weights="pretrained")
        assert torch.equal(model.backbone.body.conv_stem.weight, tensors["conv_stem.weight"])
        assert model.config.backbone_frozen


def test_stored_config_of_another_version():
    values = catalogue.config_to_json(catalogue.preset("detr-nano").config)
    with pytest.raises(InputError, match=r"settings unknown to this version: shiny; update detrove"):
        catalogue.config_from_json({**values, "shiny": 1})
    with pytest.raises(InputError, match=r"unknown detector 'detrr' in the stored config: did you mean detr"):
        catalogue.config_from_json({**values, "detector": "detrr"})
    with pytest.raises(InputError, match="unknown detector None"):
        catalogue.config_from_json({})


def test_what_is_no_config():
    with pytest.raises(TypeError, match="str is no detector's config"):
        catalogue.build("detr-r50")
