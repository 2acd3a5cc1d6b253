"""What every detector of the catalogue must do, at toy size."""

from __future__ import annotations

import json

import torch

from detrove.models import catalogue
from detrove.nn.recording import recording
from detrove.structures import ImageBatch, Predictions, Targets

NO_OBJECTS = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


def num_layers(config):
    """Decoder layers of all stacks."""
    layers = config.num_decoder_layers
    return layers if isinstance(layers, int) else sum(layers)


def test_predictions_have_the_shapes_they_say(config, model, images):
    predictions = model.eval()(images)
    assert isinstance(predictions, Predictions)
    slots = config.num_classes + (config.scores == "softmax")
    num_queries = config.num_queries * max(getattr(config, "num_patterns", 0), 1)
    assert predictions.logits.shape == (num_layers(config), 3, num_queries, slots)
    assert predictions.boxes.shape == (num_layers(config), 3, num_queries, 4)
    assert predictions.logits.isfinite().all()
    assert predictions.boxes.min() >= 0
    assert predictions.boxes.max() <= 1
    if predictions.encoder is not None:
        tokens = predictions.encoder.logits.shape[1]
        assert predictions.encoder.logits.shape == (3, tokens, slots)
        assert predictions.encoder.boxes.shape == (3, tokens, 4)


def test_every_parameter_learns(model, images, targets):
    criterion = catalogue.criterion_for(model)
    losses = criterion(model.train()(images, targets), targets)
    for name, values in losses.items():
        assert values.shape == (1 if name.startswith("encoder_") else num_layers(model.config),)
        assert values.isfinite().all()
    total = criterion.total(losses)
    assert total.shape == ()
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_a_batch_without_any_object(model, images):
    criterion = catalogue.criterion_for(model)
    nothing = [NO_OBJECTS] * 3
    losses = criterion(model.train()(images, nothing), nothing)
    assert all(values.isfinite().all() for values in losses.values())
    criterion.total(losses).backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learning)


def test_more_objects_than_queries(model, images):
    generator = torch.Generator().manual_seed(0)
    crowd = Targets(
        torch.randint(model.config.num_classes, (20,), generator=generator),
        torch.rand(20, 4, generator=generator) * 0.4 + 0.2,
    )
    objects = [crowd, NO_OBJECTS, crowd]
    losses = catalogue.criterion_for(model)(model(images, objects), objects)
    assert all(values.isfinite().all() for values in losses.values())


def test_evaluation_is_deterministic(model, images):
    model.eval()
    first, second = model(images), model(images)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.boxes, second.boxes)


def test_batches_of_equal_sizes_change_nothing(model):
    model.eval()
    pictures = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    together = model(ImageBatch.from_images(list(pictures)))
    for index, picture in enumerate(pictures):
        alone = model(ImageBatch.from_images([picture]))
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], rtol=1e-3, atol=1e-4)


def test_double_precision(model, images):
    predictions = model.double().eval()(images.to(torch.float64))
    assert predictions.logits.dtype == predictions.boxes.dtype == torch.float64


def test_smallest_picture(model):
    predictions = model.eval()(ImageBatch.from_images([torch.randn(3, 1, 1), torch.randn(3, 33, 5)]))
    assert predictions.logits.isfinite().all()
    assert predictions.boxes.isfinite().all()


def test_config_survives_json(config):
    stored = json.loads(json.dumps(catalogue.config_to_json(config)))
    assert catalogue.config_from_json(stored) == config


def test_weights_survive_the_round_trip(config, model, images):
    other = catalogue.build(config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images).logits, model.eval()(images).logits)
    assert other.config == config


def test_a_recorder_sees_every_attention_block(model, images):
    model.eval()
    plain = model(images)
    with recording(model) as recorder:
        seen = model(images)
    torch.testing.assert_close(seen.logits, plain.logits, rtol=1e-3, atol=1e-4)
    blocks = {name for name, module in model.named_modules() if name.endswith("_attention")}
    assert {entry.name for entry in [*recorder.dense, *recorder.sampled]} == blocks
    assert len(recorder.dense) + len(recorder.sampled) == len(blocks)
    for entry in recorder.dense:
        torch.testing.assert_close(entry.attention.sum(dim=-1), torch.ones(entry.attention.shape[:3]))
