"""Properties of every method."""

import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import BaseModel, ValidationError

from semiseg import methods, optim
from semiseg.engine.optimizers import Optimizers
from semiseg.errors import UserError
from semiseg.method import MethodConfig, SemiMethod, predictor
from semiseg.models.build import Network
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "red", "green"), background=0)
STEPS = 40
Make = Callable[..., SemiMethod]

pytestmark = pytest.mark.parametrize("name", methods.names())


@pytest.fixture
def make(name: str, tiny) -> Make:
    """make(seed) -> the method with the paper's settings, but for 3 classes and tiny networks."""

    def make(seed: int = 0, **settings) -> SemiMethod:
        kind = methods.load(name)
        seeds = iter(range(100 * seed, 100 * seed + 100))  # a second network is another one

        def build(outputs: int | None = None, channels: int = 3, model: object = None) -> Network:
            return tiny(next(seeds), num_classes=outputs or len(CLASSES), channels=channels)

        return kind(kind.Config(**settings), build, CLASSES).train()

    return make


def toys(method: SemiMethod, step: int = 0) -> SemiBatch:
    """Eight images, half of them labeled: rectangles in the color of their class, and a little noise."""
    generator = fold_in(0, "toys")
    label = torch.zeros(8, 16, 16, dtype=torch.long)
    for i in range(8):
        top, left = torch.randint(8, (2,), generator=generator).tolist()
        label[i, top : top + 8, left : left + 8] = 1 + i % 2
    color = torch.tensor([[-1.0, -1.0, 0.0], [2.0, -1.0, 0.0], [-1.0, 2.0, 0.0]])
    image = color[label].permute(0, 3, 1, 2) + 0.1 * torch.randn(8, 3, 16, 16, generator=generator)
    weak = image[4:] if method.views.unlabeled else image[:0]
    valid = torch.ones(len(weak), 16, 16, dtype=torch.bool)
    valid[:1, :, 14:] = False
    noise = fold_in(0, "strong", step)
    return SemiBatch(
        image=image[:4],
        label=label[:4],
        weak=weak,
        strong=tuple(0.7 * weak + 0.1 * torch.randn(weak.shape, generator=noise) for _ in method.views.strong),
        valid=valid,
        index=torch.arange(len(weak)),
    )


def optimizers_of(method: SemiMethod) -> Optimizers:
    optimizers = Optimizers(optim.Config(lr=0.1, head_lr_factor=1, power=0, weight_decay=0), method)
    optimizers.set_lr(0, STEPS)
    return optimizers


def take(method: SemiMethod, optimizers: Optimizers, step: int) -> Losses:
    batch, at = toys(method, step), Progress(step, STEPS, seed=1)
    part = method.alone(batch, at)
    losses = method(batch, at, part)
    losses.total.backward()
    optimizers.step(None)
    with torch.no_grad():
        method.after_step(at, part.observed)
    return losses


def assert_finite_gradients(method: SemiMethod) -> None:
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


def test_no_gradient_reaches_a_teacher(make):
    method = make()
    method.losses(toys(method), Progress(0, STEPS)).total.backward()
    assert all(parameter.grad is None for parameter in method.parameters() if not parameter.requires_grad)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert any(parameter.grad.abs().sum() > 0 for parameter in trained)
    assert_finite_gradients(method)
    teacher = getattr(method, "teacher", None)
    assert teacher is None or not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_follows_after_the_step_and_not_before(make):
    method = make()
    before = copy.deepcopy(method.state_dict())
    batch, at = toys(method), Progress(0, STEPS)
    part = method.alone(batch, at)
    losses = method(batch, at, part)
    for key, parameter in method.named_parameters():
        assert torch.equal(parameter, before[key])
    optimizers = optimizers_of(method)
    losses.total.backward()
    optimizers.step(None)
    with torch.no_grad():
        method.after_step(at, part.observed)
    assert any(not torch.equal(p, before[key]) for key, p in method.named_parameters())
    for networks in method.evaluated().values():
        for network in networks:
            assert isinstance(network, Network)
            assert any(module is network for module in method.modules())  # so that checkpoints carry it


def test_a_batch_without_labels_has_no_labeled_loss(make):
    method = make()
    batch = toys(method)
    losses = method.losses(
        SemiBatch(**{**vars(batch), "label": torch.full_like(batch.label, IGNORE)}), Progress(0, STEPS)
    )
    assert losses.scalars["labeled"] == 0
    assert torch.isfinite(losses.total)
    losses.total.backward()
    assert_finite_gradients(method)


def test_images_that_are_all_padding_leave_gradients_finite(make):
    method = make()
    batch = toys(method)
    losses = method.losses(replace(batch, valid=torch.zeros_like(batch.valid)), Progress(0, STEPS))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert_finite_gradients(method)


def test_the_loss_falls_on_eight_toy_images(make):
    method = make()
    optimizer = optimizers_of(method)
    falls = [take(method, optimizer, step).scalars["labeled"].item() for step in range(STEPS)]
    assert falls[-1] < 0.2 * falls[0]
    batch = toys(method)
    with torch.no_grad():
        predicted = predictor(method)[0].eval()(batch.image).argmax(1)
    assert (predicted == batch.label).float().mean() > 0.9


def test_a_restored_method_continues_as_if_nothing_had_happened(make):
    uninterrupted = make()
    optimizer = optimizers_of(uninterrupted)
    for step in range(3):
        take(uninterrupted, optimizer, step)
    restored = make(seed=5)  # nothing is left of its own weights
    restored.load_state_dict(copy.deepcopy(uninterrupted.state_dict()))
    resumed = optimizers_of(restored)
    resumed.load(restored, copy.deepcopy(optimizer.tensors(uninterrupted)))
    for step in range(3, 6):
        one, other = take(uninterrupted, optimizer, step), take(restored, resumed, step)
        assert torch.equal(one.total, other.total)
        assert one.scalars == other.scalars
    other = restored.state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in uninterrupted.state_dict().items())


def test_every_trainable_parameter_belongs_to_one_group(make):
    method = make()
    groups = method.groups(optim.Config())
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    trainable = {id(parameter): key for key, parameter in method.named_parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trainable)
    for group in groups:
        for parameter in group.parameters:
            if group.optim == optim.Config():  # a critic may have settings of its own
                assert group.lr_factor == (1.0 if ".encoder." in trainable[id(parameter)] else 10.0)


def test_losses_are_for_the_engine_to_read_when_it_likes(make):
    method = make()
    batch = toys(method)
    losses = method.losses(batch, Progress(0, STEPS))
    assert losses.total.requires_grad
    assert losses.total.shape == ()
    assert "labeled" in losses.scalars
    assert not any(scalar.requires_grad or scalar.shape for scalar in losses.scalars.values())
    if losses.hardness is not None:
        assert losses.hardness.shape == (len(batch.weak),)
        assert not losses.hardness.requires_grad


def test_the_host_never_waits(make, no_host_sync):
    method = make()
    losses = no_host_sync(lambda method, batch: method.losses(batch, Progress(0, STEPS)), method, toys(method))
    assert losses.total.is_meta

    def after(method: SemiMethod, batch: SemiBatch) -> None:
        with torch.no_grad():
            method.after_step(Progress(5, STEPS), method.observe(batch, Progress(5, STEPS)))

    no_host_sync(after, method, toys(method))


def test_settings_are_frozen_and_complete(name):
    kind = methods.load(name)
    assert issubclass(kind.Config, MethodConfig)
    assert kind.Config is not MethodConfig
    assert kind.Config is sys.modules[kind.__module__].Config
    config = kind.Config()  # the paper's
    assert isinstance(config, BaseModel)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, next(iter(kind.Config.model_fields)), None)
    with pytest.raises(ValidationError, match="no_such_setting"):
        kind.Config(no_such_setting=1)


def test_the_file_is_short_and_says_what_it_is(name):
    module = importlib.import_module(f"semiseg.methods.{name}")
    assert (module.__doc__ or "").splitlines()[0].strip()
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) <= 210


def test_it_is_found_by_its_name_alone(name, monkeypatch):
    assert methods.load(name).__module__ == methods.load(f"semiseg.methods.{name}").__module__
    own = ModuleType("own_method")
    own.Method = methods.load(name)
    package = ModuleType("own_package")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "own_package", package)
    monkeypatch.setitem(sys.modules, "own_package.own_method", own)
    assert methods.load("own_package.own_method") is own.Method
    for wrong in (f"{name}_no_such", "own_package.no_such", "no_such_package.method", "semiseg.errors"):
        with pytest.raises(UserError, match=rf"no '{wrong}'.*{name}"):
            methods.load(wrong)
