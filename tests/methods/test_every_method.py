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

from semiseg import methods, optim, ramps
from semiseg.augment import intensity
from semiseg.augment.scales import rescale
from semiseg.engine.optimizers import Optimizers
from semiseg.errors import UserError
from semiseg.method import MethodConfig, SemiMethod, predictor
from semiseg.models.build import Network
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Losses, Progress, Second, SemiBatch

CLASSES = ClassTable.of(("background", "red", "green"), background=0)
STEPS = 40
Make = Callable[..., SemiMethod]

pytestmark = pytest.mark.parametrize("name", methods.names())


@pytest.fixture
def make(name: str, tiny) -> Make:
    """make(seed) -> the method with the paper's settings, but for 3 classes and tiny networks."""

    def make(seed: int = 0, classes: ClassTable = CLASSES, norm: bool = True, size: int = 3, **settings) -> SemiMethod:
        kind = methods.load(name)
        seeds = iter(range(100 * seed, 100 * seed + 100))  # a second network is another one

        def build(outputs: int | None = None, channels: int = 3, model: object = None) -> Network:
            return tiny(next(seeds), norm, outputs or len(classes), channels, size)

        with seeded(seed, "method"):
            return kind(kind.Config(**settings), build, classes).train()

    return make


def toys(method: SemiMethod, step: int = 0, slots: int = 4) -> SemiBatch:
    """Images, half of them labeled: rectangles in the color of their class, and a little noise."""
    generator = fold_in(0, "toys")
    label = torch.zeros(2 * slots, 16, 16, dtype=torch.long)
    for i in range(2 * slots):
        top, left = torch.randint(8, (2,), generator=generator).tolist()
        label[i, top : top + 8, left : left + 8] = 1 + i % 2
    color = torch.tensor([[-1.0, -1.0, 0.0], [2.0, -1.0, 0.0], [-1.0, 2.0, 0.0]])
    image = color[label].permute(0, 3, 1, 2) + 0.1 * torch.randn(2 * slots, 3, 16, 16, generator=generator)
    weak = image[slots:] if method.views.unlabeled else image[:0]
    valid = torch.ones(len(weak), 16, 16, dtype=torch.bool)
    valid[:1, :, 14:] = False
    noise = fold_in(0, "strong", step)

    def strong(weak: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(0.7 * weak + 0.1 * torch.randn(weak.shape, generator=noise) for _ in method.views.strong)

    pseudo = label[slots:] if method.views.pseudo else None
    batch = SemiBatch(image[:slots], label[:slots], weak, strong(weak), valid, torch.arange(len(weak)), pseudo=pseudo)
    if method.views.overlap is None:
        return batch
    moved = weak.roll(-4, -1)  # it begins 4 px further to the right; what is there does not matter
    moved[::2] = moved[::2].flip(-1)
    align = torch.tensor([[1.0, 0.0], [1.0, -4.0]]).repeat(slots, 1, 1)
    align[::2, 1] = torch.tensor([-1.0, 20.0])
    return replace(batch, second=Second(moved, strong(moved), valid, align))


def rows_of(batch: SemiBatch, rows: slice) -> SemiBatch:
    """A part of a batch, as the engine makes it."""

    def part(crop: SemiBatch | Second) -> dict[str, object]:
        fields = {name: value[rows] for name, value in vars(crop).items() if isinstance(value, torch.Tensor)}
        return fields | {"strong": tuple(view[rows] for view in crop.strong)}

    second = None if batch.second is None else replace(batch.second, **part(batch.second))
    return replace(batch, second=second, **part(batch))


def each_crop(batch: SemiBatch, change: Callable[[SemiBatch | Second], dict[str, object]]) -> SemiBatch:
    """Changes some of what a batch holds of each crop of the unlabeled images."""
    second = None if batch.second is None else replace(batch.second, **change(batch.second))
    return replace(batch, second=second, **change(batch))


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


def test_a_ramp_makes_the_weight_of_unlabeled_images_rise(make, name):
    """The total is a constant and the rest, times the ramp: so its differences are those of the ramp."""
    fields = methods.load(name).Config.model_fields
    if name in ("supervised", "st_pp"):  # no unlabeled image, and labels of a finished network
        assert "ramp" not in fields
        return
    if name == "gct":  # its detector sees nothing in images as small as these; tests/methods/test_gct.py has a test
        return
    sure = {"threshold": 0.35} if "threshold" in fields else {}  # of three classes
    trained = make(**sure)
    optimizers = optimizers_of(trained)
    for step in range(2):  # so that banks and teachers hold something
        take(trained, optimizers, step)

    def total(ramp: float) -> float:
        method = make(ramp=ramp, **sure)
        method.load_state_dict(copy.deepcopy(trained.state_dict()))
        return method.losses(toys(method, 2), Progress(20, STEPS, seed=1)).total.item()

    rise = ramps.cosine if name == "ps_mt" else ramps.sigmoid
    whole, most, half = ((total(ramp), rise(Progress(20, STEPS), ramp)) for ramp in (0.0, 0.7, 1.0))
    assert whole[1] == 1
    assert abs(whole[0] - most[0]) > 1e-3
    slope = (whole[0] - half[0]) / (1 - half[1])
    assert slope * (1 - most[1]) == pytest.approx(whole[0] - most[0], rel=1e-3, abs=1e-5)


def test_with_batch_norm_apart_labeled_images_are_as_if_they_were_alone(make, name):
    """Running statistics are those of passes of labeled images alone, and no loss of labeled images sees others."""
    fields = methods.load(name).Config.model_fields
    if "batch_norm" not in fields:
        return
    plain: dict[str, object] = {"intensity": "standard"} if "intensity" in fields else {}  # no strong view is blended
    plain |= {"paste": None} if "paste" in fields else {}
    plain |= {"scales": (2.0,)} if "scales" in fields else {}

    def step(how: str, factor: float) -> tuple[SemiMethod, SemiBatch, Losses]:
        method = make(norm="everywhere", batch_norm=how, **plain)
        batch = each_crop(
            toys(method),
            lambda crop: {"weak": factor * crop.weak, "strong": tuple(factor * view for view in crop.strong)},
        )
        return method, batch, method.losses(batch, Progress(0, STEPS))

    def networks(method: SemiMethod) -> list[Network]:
        return [network for group in method.evaluated().values() for network in group]

    def statistics(network: Network) -> torch.Tensor:
        return torch.cat([value for key, value in network.state_dict().items() if "running" in key])

    method, batch, losses = step("apart", 1.0)
    passes = []
    for found, alone in zip(networks(method), networks(make(norm="everywhere", **plain)), strict=True):
        expected = [statistics(alone)]
        for image in (batch.image, rescale(batch.image, 2.0)):  # ScaleMatch has a second pass
            alone.train()(image)
            expected.append(statistics(alone))
        passes += [n for n, value in enumerate(expected) if torch.allclose(statistics(found), value, atol=1e-6)][:1]
    assert len(passes) == len(networks(method))  # an averaged teacher has none
    assert max(passes) == (2 if name == "scalematch" else 1)

    others = {how: step(how, -1.0)[2].scalars for how in ("apart", "joint")}
    for key, value in losses.scalars.items():
        if key.startswith("labeled"):
            torch.testing.assert_close(value, others["apart"][key])
            assert not torch.allclose(step("joint", 1.0)[2].scalars[key], others["joint"][key])


def test_class_weights_act_on_the_labeled_loss(make):
    """Three times the weight of every class: three times the loss."""
    batch, at = toys(make(), 2), Progress(0, STEPS)
    plain = make().losses(batch, at).scalars["labeled"]
    three = make(labeled_loss={"class_weights": (3.0,) * len(CLASSES)}).losses(batch, at).scalars["labeled"]
    torch.testing.assert_close(three, 3 * plain)


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
    padded = each_crop(batch, lambda crop: {"valid": torch.zeros_like(crop.valid)})
    losses = method.losses(padded, Progress(0, STEPS))
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


def test_one_seed_makes_one_method(make):
    one, other, another = (make(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert any(not torch.equal(value, another[key]) for key, value in one.items())


@pytest.mark.parametrize("step", [0, STEPS // 2, STEPS - 1])
def test_every_trained_parameter_gets_a_gradient(make, step):
    """Otherwise several processes would wait for it without end."""
    method = make()
    method.losses(toys(method, step), Progress(step, STEPS)).total.backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


def test_a_pass_changes_nothing_but_the_statistics_of_batch_norm(make):
    method = make()
    optimizers = optimizers_of(method)
    for step in range(2):  # now banks and teachers hold something
        take(method, optimizers, step)
    statistics = {
        f"{prefix}.{name}"
        for prefix, module in method.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    }
    before = copy.deepcopy(method.state_dict())
    method.losses(toys(method, 2), Progress(2, STEPS))
    for key, value in method.state_dict().items():
        assert key in statistics or torch.equal(value, before[key]), key


def test_ignored_and_padded_pixels_change_nothing(make):
    """The networks see one pixel at a time, so that only the losses can mix pixels."""

    def gradients(value: float) -> dict[str, torch.Tensor]:
        method = make(norm=False, size=1)
        batch = toys(method)
        label, image = batch.label.clone(), batch.image.clone()
        label[:, :4] = IGNORE
        image[:, :, :4] = value

        def painted(crop: SemiBatch | Second) -> dict[str, object]:
            weak, *strong = (torch.where(crop.valid[:, None], view, value) for view in (crop.weak, *crop.strong))
            return {"weak": weak, "strong": tuple(strong)}

        batch = each_crop(replace(batch, image=image, label=label), painted)
        method.losses(batch, Progress(3, STEPS)).total.backward()
        return {key: parameter.grad for key, parameter in method.named_parameters() if parameter.requires_grad}

    one, other = gradients(0.0), gradients(0.7)
    for key, gradient in one.items():
        torch.testing.assert_close(gradient, other[key], msg=key)


def test_parts_of_any_size_add_up_to_the_whole(make, name):
    """Values and gradients, when banks and teachers hold something. Batch statistics are those of a part."""
    sure = {"threshold": 0.35} if "threshold" in methods.load(name).Config.model_fields else {}  # of three classes

    def prepared() -> SemiMethod:
        method = make(norm=False, **sure)
        for module in method.modules():  # of layers that the method makes
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.forward = lambda value: value
        optimizers = optimizers_of(method)
        for step in range(2):
            take(method, optimizers, step)
        return method

    whole, split = prepared(), prepared()
    batch, at = toys(whole, 2), Progress(3, STEPS, seed=1)
    expected = whole.losses(batch, at)
    expected.total.backward()
    everyone, losses = split.alone(batch, at), []
    for rows in (slice(0, 1), slice(1, 4)):
        own = everyone.observed
        if own is not None:
            own = replace(own, **{name: value[rows] for name, value in vars(own).items()})
        part = replace(everyone, own=own, rows=rows, share=(rows.stop - rows.start) / 4)
        losses.append(split(rows_of(batch, rows), at, part))
        losses[-1].total.backward()
    for name, value in expected.scalars.items():
        torch.testing.assert_close(sum(one.scalars[name] for one in losses), value, msg=name)
    for (key, own), its in zip(split.named_parameters(), whole.parameters(), strict=True):
        if own.grad is not None or its.grad is not None:
            torch.testing.assert_close(own.grad, its.grad, msg=key)
    if expected.hardness is not None:
        torch.testing.assert_close(torch.cat([one.hardness for one in losses]), expected.hardness)


@pytest.mark.parametrize("number", [2, 7])
def test_few_and_many_classes(make, number):
    try:
        method = make(classes=ClassTable.of([f"c{index}" for index in range(number)]))
    except UserError as error:  # it says so before training
        assert str(error).startswith("method.")  # noqa: PT017 - most methods work with them
        return
    batch = toys(method)
    few = {"label": batch.label.clamp(max=number - 1)}
    if batch.pseudo is not None:
        few["pseudo"] = batch.pseudo.clamp(max=number - 1)
    losses = method.losses(replace(batch, **few), Progress(0, STEPS))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert_finite_gradients(method)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_batches_of_any_size(make, slots):
    method = make(norm=False)
    batch, at = toys(method, slots=slots), Progress(0, STEPS)
    try:
        part = method.alone(batch, at)
        losses = method(batch, at, part)
    except UserError as error:  # it needs a partner
        assert slots == 1
        assert "\n" not in str(error)  # noqa: PT017
        return
    losses.total.backward()
    with torch.no_grad():
        method.after_step(at, part.observed)
    assert torch.isfinite(losses.total)
    assert_finite_gradients(method)


def test_low_precision(make):
    method = make()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.losses(toys(method), Progress(0, STEPS))
    assert losses.total.dtype == torch.float32
    assert all(scalar.dtype == torch.float32 for scalar in losses.scalars.values())
    losses.total.backward()
    assert_finite_gradients(method)


def test_without_learning_every_network_predicts_what_it_predicted(make):
    method = make(norm=False)
    images = toys(method).image

    def predictions() -> list[torch.Tensor]:
        with torch.no_grad():
            return [network(images) for networks in method.evaluated().values() for network in networks]

    before = predictions()
    optimizers = optimizers_of(method)
    for _, optimizer in optimizers.each:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    for step in range(4):
        take(method, optimizers, step)
    for one, other in zip(before, predictions(), strict=True):
        torch.testing.assert_close(one, other)


def test_cutmix_needs_a_partner(make):
    config = type(make()).Config
    if "cutmix_probability" in config.model_fields and config().cutmix_probability is not None:
        assert make().views.min_unlabeled == 2
        assert make(cutmix_probability=0).views.min_unlabeled == 1


def test_labeled_images_may_be_augmented(make):
    pool = intensity.Config(num_ops=1)
    method = make(labeled=pool)
    assert method.views.labeled == pool
    assert make().views.labeled is None


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
