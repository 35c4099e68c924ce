"""Settings of optimizers: learning rates by hand, groups of parameters, and what cannot be meant."""

import pytest
from pydantic import ValidationError
from torch import nn

from semiseg.errors import UserError
from semiseg.models.build import Config as ModelConfig
from semiseg.models.build import Network, build
from semiseg.models.ema import make_teacher
from semiseg.optim import Config, encoder_and_rest
from semiseg.rng import seeded

VIT = {  # a vision transformer of 12 blocks, each of 24 values
    "architecture": "dpt",
    "encoder": "tu-vit_tiny_patch16_224",
    "options": {
        "dynamic_img_size": True,
        "embed_dim": 24,
        "num_heads": 2,
        "decoder_intermediate_channels": [8, 8, 8, 8],
        "decoder_fusion_channels": 8,
    },
}


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.01), (50, 0.01 * 0.5**0.9), (75, 0.01 * 0.25**0.9), (99, 0.01 * 0.01**0.9)]
)
def test_polynomial_decay_by_hand(step, expected):
    assert Config(lr=0.01).lr_at(step, 100) == pytest.approx(expected)


def test_polynomial_decay_falls_from_start_to_zero():
    rates = [Config().lr_at(step, 40) for step in range(41)]
    assert rates[0] == 0.001
    assert rates == sorted(rates, reverse=True)
    assert rates[40] == 0
    assert [Config(lr=2, power=0).lr_at(step, 4) for step in range(4)] == [2, 2, 2, 2]
    assert [Config(lr=2, power=1).lr_at(step, 4) for step in range(4)] == [2, 1.5, 1, 0.5]


def test_warm_up_by_hand():
    """It multiplies the decay: the first step has 1/4 of its learning rate, the fourth all of it."""
    assert [Config(lr=8, power=0, warmup_steps=4).lr_at(step, 6) for step in range(6)] == [2, 4, 6, 8, 8, 8]
    rates = [Config(lr=8, power=1, warmup_steps=2).lr_at(step, 4) for step in range(4)]
    assert rates == [8 * 0.5, 8 * 0.75, 8 * 0.5, 8 * 0.25]
    assert Config(lr=8, warmup_steps=1).lr_at(0, 9) == Config(lr=8).lr_at(0, 9) == 8


def made(**settings) -> Network:
    with seeded(0):
        return build(ModelConfig(weights=None, **settings), 3)


@pytest.mark.parametrize("teacher", [False, True])
def test_layers_of_a_vision_transformer_learn_the_slower_the_lower_they_are(teacher):
    student = made(**VIT)
    parts = {"student": student} | ({"teacher": make_teacher(student)} if teacher else {})
    method, config = nn.ModuleDict(parts), Config(lr=1, layer_decay=0.5, head_lr_factor=3)
    names = {parameter: name for name, parameter in method.named_parameters()}
    groups = encoder_and_rest(method, config)
    factors = {names[parameter]: group.lr_factor for group in groups for parameter in group.parameters}
    assert factors.keys() == {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert {group.optim for group in groups} == {config}
    for name, factor in factors.items():
        inside = name.removeprefix("student.net.encoder.model.")
        if inside == name:
            expected = 3.0
        elif inside.startswith("blocks."):  # the last block has the learning rate of the recipe
            expected = 0.5 ** (11 - int(inside.split(".")[1]))
        else:
            assert inside.split(".")[0] in ("cls_token", "pos_embed", "patch_embed")
            expected = 0.5**12
        assert factor == expected, name
    assert len(set(factors.values())) == 14


def test_without_layer_decay_an_encoder_is_one_group():
    method = nn.ModuleDict({"student": made(**VIT)})
    assert [group.lr_factor for group in encoder_and_rest(method, Config())] == [1.0, 10.0]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_efficientnet"])
def test_layers_that_an_encoder_does_not_tell(encoder):
    method = nn.ModuleDict({"student": made(architecture="unet", encoder=encoder)})
    with pytest.raises(UserError, match=r"^optim.layer_decay: the encoder does not tell its layers; use .*tu-.*$"):
        encoder_and_rest(method, Config(layer_decay=0.8))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": 0}, "lr"),
        ({"lr": -1}, "lr"),
        ({"head_lr_factor": 0}, "head_lr_factor"),
        ({"momentum": 1}, "momentum"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"warmup": 5}, "warmup"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"kind": "adam"}, "'sgd' or 'adamw'"),
        ({"kind": "adamw", "momentum": 0.9}, "momentum belongs to kind: sgd; adamw has betas"),
        ({"betas": (0.9, 0.99)}, "betas belong to kind: adamw; sgd has momentum"),
        ({"kind": "adamw", "betas": (0.9, 1.0)}, "must lie in"),
        ({"kind": "adamw", "betas": (-0.1, 0.9)}, "must lie in"),
        ({"layer_decay": 0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
    ],
)
def test_settings_that_cannot_be_meant(settings, says):
    with pytest.raises(ValidationError, match=says):
        Config(**settings)
