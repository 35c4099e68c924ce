from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from semiseg.engine import checkpoint
from semiseg.engine.schedule import Config, build_optimizer, set_lr
from semiseg.methods import supervised
from semiseg.models.build import Network
from semiseg.rng import fold_in, seeded
from semiseg.types import ClassTable, Normalization

CLASSES = ClassTable.of(("a", "b", "c"))


@pytest.fixture
def method(tiny) -> supervised.Method:
    return supervised.Method(supervised.Config(ema_decay=0.9), tiny, CLASSES)


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


def test_the_head_learns_faster_by_its_factor(method):
    optimizer = build_optimizer(Config(lr=0.001, head_lr_factor=10), method)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    for step, expected in ((0, 0.001), (50, 0.001 * 0.5**0.9)):
        set_lr(optimizer, Config().lr_at(step, 100))
        rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert len(rates) == sum(parameter.requires_grad for parameter in method.parameters())
        for name, rate in rates.items():
            assert rate == pytest.approx(expected if ".encoder." in name else 10 * expected), name
        assert not any(name.startswith("teacher.") for name in rates)


def test_the_optimizer_has_the_settings_of_the_recipe(method):
    optimizer = build_optimizer(Config(momentum=0.8, weight_decay=0.02), method)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}


def test_the_first_step_by_hand(method):
    optimizer = build_optimizer(Config(lr=0.5, head_lr_factor=4, weight_decay=0.1), method)
    set_lr(optimizer, 0.5)
    conv, head = method.student.net.encoder[0].weight, method.student.net.head.weight
    before = conv.detach().clone(), head.detach().clone()
    (conv.sum() + head.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(conv.detach(), before[0] - 0.5 * (1 + 0.1 * before[0]))
    torch.testing.assert_close(head.detach(), before[1] - 2.0 * (1 + 0.1 * before[1]))


def steps_taken(build: Callable[[Config, supervised.Method], torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Weights and momentum of some steps of a network whose weights lie as on a device, channels last."""
    with seeded(0, "steps"):
        net = nn.Sequential(OrderedDict(encoder=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), head=nn.Conv2d(8, 3, 1)))
    network = Network(net, Normalization(), 1).to(memory_format=torch.channels_last)
    method = supervised.Method(supervised.Config(), lambda: network, CLASSES)
    optimizer = build(Config(weight_decay=0.1), method)
    for step in range(5):
        set_lr(optimizer, 0.1 / (step + 1))
        method.student(torch.rand(2, 3, 8, 8, generator=fold_in(0, step))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(method.state_dict()) | checkpoint.optimizer_tensors(optimizer, method)


def test_fused_steps_are_those_of_plain_sgd():
    def plain(config: Config, method: supervised.Method) -> torch.optim.Optimizer:
        groups = method.param_groups(config.head_lr_factor)
        return torch.optim.SGD(groups, lr=1, momentum=0.9, weight_decay=0.1, foreach=False, fused=False)

    fused, other = steps_taken(build_optimizer), steps_taken(plain)
    assert fused.keys() == other.keys()
    for key, value in fused.items():
        torch.testing.assert_close(value, other[key], rtol=1e-6, atol=1e-8, msg=key)


def test_a_first_step_left_out_leaves_no_momentum(method):
    """Torch's own fused step takes what lies in fresh memory for momentum then."""
    optimizer, scaler = build_optimizer(Config(), method), torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    scaler.scale((method.student(torch.rand(2, 3, 8, 8)) * 2.0**100).sum()).backward()
    scaler.step(optimizer)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items() if "running" not in key
               and "tracked" not in key)  # fmt: skip
    momentum = checkpoint.optimizer_tensors(optimizer, method)
    assert len(momentum) == sum(parameter.requires_grad for parameter in method.parameters())
    assert not any(value.any() for value in momentum.values())


def test_without_momentum_there_is_none(method):
    assert checkpoint.optimizer_tensors(build_optimizer(Config(momentum=0), method), method) == {}


def test_a_group_without_parameters_is_left_out(method):
    for parameter in method.student.net.encoder.parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(Config(), method)
    assert len(optimizer.param_groups) == 1
    set_lr(optimizer, 1.0)
    assert optimizer.param_groups[0]["lr"] == 10


def test_the_learning_rate_survives_a_restored_optimizer(method):
    """In the authors' code it stops falling after a resume (D50)."""
    saved = build_optimizer(Config(), method).state_dict()
    optimizer = build_optimizer(Config(), method)
    optimizer.load_state_dict(saved)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 2.5]


@pytest.mark.parametrize(
    "settings", [{"lr": 0}, {"lr": -1}, {"head_lr_factor": 0}, {"momentum": 1}, {"weight_decay": -1}, {"warmup": 5}]
)
def test_settings_that_cannot_be_meant(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Config(**settings)
