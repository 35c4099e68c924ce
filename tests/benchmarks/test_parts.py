"""The calls of a method's other parts are recorded with their gradient passes, and taken again as they were."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import parts
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from semiseg.augment.adversarial import adversarial_noise
from semiseg.models.build import Network, Undivided
from semiseg.types import Normalization

happened: list[str] = []


class Watched(torch.autograd.Function):
    """The same value. It notes forward passes, and gradient passes, those of a second order too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        happened.append("forward")
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        happened.append("gradient")
        return WatchedBack.apply(gradient)


class WatchedBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        happened.append("gradient")
        return gradient.clone()


class Part(nn.Module):
    """A convolution, and batch norm, which shows the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

    def forward(self, value: Tensor) -> Tensor:
        return self.norm(self.conv(Watched.apply(value)))


class Method(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network(Undivided(nn.Conv2d(3, 2, 1)), Normalization(), 1)
        self.head, self.several, self.weightless = Part(), nn.ModuleList([Part(), Part()]), nn.ReLU()


@pytest.fixture
def method() -> Iterator[Method]:
    happened.clear()
    yield Method()
    happened.clear()


def runtime() -> Any:
    return SimpleNamespace(backward=lambda share: share.backward(), autocast=nullcontext)


def features(images: int = 2) -> Tensor:
    """What an encoder gives: no leaf."""
    return torch.ones(images, 2, 4, 4, requires_grad=True) * 1


def noise(part: nn.Module, value: Tensor) -> Tensor:
    """Looks for adversarial noise. A convolution alone would have none, as its derivative is everywhere the same."""
    part.eval()
    counted = torch.ones(len(value), 4, 4, dtype=torch.bool)
    found = adversarial_noise(part, value, torch.rand(2, 4, 4, generator=torch.Generator()), 1.0, counted)
    part.train()
    return found


def test_the_parts_have_weights_and_are_no_networks(method: Method):
    assert parts.parts_of(method) == [method.head, *method.several]


def test_calls_are_recorded_with_their_gradient_passes(method: Method):
    used = runtime()
    with parts.recording(method, used) as recorder:
        with torch.no_grad():
            method.head(features())
        value = features(3)
        outputs = [part(value) for part in method.several]
        fixed = {name: weight.detach() for name, weight in method.head.named_parameters()}
        outputs.append(functional_call(method.head, fixed, (features(),)))
        noise(method.head, value)
        used.backward(sum(one.square().sum() for one in outputs))
    method.head(value)  # outside: not recorded
    found = [(one.images, one.graded, len(one.trained), one.evaluated, one.inner, one.outer) for one in recorder.calls]
    assert found == [
        (2, False, 4, False, 0, 0),
        (3, True, 4, False, 0, 1),
        (3, True, 4, False, 0, 1),
        (2, True, 0, False, 0, 1),  # fixed weights
        (3, True, 4, True, 3, 0),  # J^T c, its derivative, and J^T F J d
    ]
    assert recorder.images == 2 + 3 + 3 + 2 + 3
    assert [number for _, number in recorder.kinds()] == [1, 2, 1, 1]
    # each gradient pass that was recorded took place, and no other one did
    assert happened.count("gradient") == 2 + 1 + 3


def test_calls_of_other_sizes_or_passes_are_other_kinds(method: Method):
    used = runtime()
    with parts.recording(method, used) as recorder:
        used.backward(sum(method.head(features(images)).sum() for images in (2, 3, 2)))
        method.head(features(2))  # without a gradient pass
        method.head(torch.ones(2, 2, 4, 4))  # its gradient does not reach the input
    assert [number for _, number in recorder.kinds()] == [2, 1, 1, 1]


def test_a_call_is_taken_again_as_it_was(method: Method):
    used = runtime()
    with parts.recording(method, used) as recorder:
        used.backward(method.head(features()).square().sum())
        noise(method.head, features())
        with torch.no_grad():
            method.head(features())
    method.zero_grad(set_to_none=True)
    learned: list[Tensor] = []
    method.head.conv.weight.register_hook(learned.append)
    statistics = method.head.norm.running_mean.clone()
    trained, searched, plain = recorder.calls

    happened.clear()
    searched.again()
    assert happened == ["forward", *["gradient"] * 3]
    assert not learned  # noise needs no gradient of weights
    assert torch.equal(method.head.norm.running_mean, statistics)  # in eval mode
    happened.clear()
    plain.again()
    assert happened == ["forward"]
    happened.clear()
    trained.again()
    assert happened == ["forward", "gradient"]
    assert len(learned) == 1
    assert not torch.equal(method.head.norm.running_mean, statistics)
    assert all(weight.grad is None for weight in method.parameters())  # the next step learns nothing from it


def test_fixed_weights_get_no_gradient_again(method: Method):
    used = runtime()
    fixed = {name: weight.detach() for name, weight in method.head.named_parameters()}
    with parts.recording(method, used) as recorder:
        used.backward(functional_call(method.head, fixed, (features(),)).square().sum())
    learned: list[Tensor] = []
    method.head.conv.weight.register_hook(learned.append)
    happened.clear()
    recorder.calls[0].again()
    assert happened == ["forward", "gradient"]
    assert not learned
