"""One step, and the micro-batches that may share it."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from semiseg import api, methods
from semiseg.augment import jitter
from semiseg.augment.cutmix import hard_easy_partners
from semiseg.augment.overlap import at_scale, seen_in_both, to_first
from semiseg.augment.views import Views
from semiseg.data import load as load_data
from semiseg.data.loader import train_loader
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.engine.step import Stepper, check_shapes
from semiseg.errors import UserError
from semiseg.losses import LabeledLoss
from semiseg.method import MethodConfig, SemiMethod
from semiseg.methods import imas
from semiseg.models.build import Build, Network
from semiseg.recipe.load import validate
from semiseg.recipe.recipe import Recipe
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, LoadedBatch, Losses, Part, Progress, SemiBatch

CLOSE = 1e-5  # sums in another order
CLASSES = ClassTable.of(("background", "red", "green"), background=0)
Step = tuple[dict[str, Tensor], Losses]  # gradients and losses
Take = Callable[..., Step]


def loaded() -> LoadedBatch:
    """16 labeled and 16 unlabeled smooth images that are similar. The micro-batches of four images differ.

    The first four masks have no labeled pixel, others have few. Some unlabeled images are padded, one completely.
    """
    generator = fold_in(0, "loaded")
    coarse = torch.rand(32, 3, 4, 4, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    image = (255 * (image * torch.rand(32, 3, 1, 1, generator=generator))).to(torch.uint8)
    label = image[:16].argmax(1).to(torch.uint8)
    label[:4] = IGNORE
    label[6, 3:] = label[9, :, :14] = label[15, 1:] = IGNORE
    valid = torch.ones(16, 16, 16, dtype=torch.bool)
    valid[1, :, 9:] = valid[6, 12:] = valid[13, :3] = valid[14] = False
    flipped = torch.tensor([[1.0, 0.0], [-1.0, 16.0]]).repeat(16, 1, 1)  # for methods that need a second crop
    second = image[16:].flip(-1)
    pseudo = image[16:].argmax(1).to(torch.uint8)
    index = torch.arange(16)
    return LoadedBatch(image[:16], label, image[16:], valid, index, index, second, flipped, pseudo)


@pytest.fixture
def take(recipe, tiny) -> Take:
    """take("imas", micro=4, step=7, ...) -> gradients and losses of that step of a method with these settings."""

    def take(name: str, micro: int | None, step: int = 0, batch: LoadedBatch | None = None, **settings: Any) -> Step:
        stepper = make(name, micro, **settings)
        gradients: dict[str, Tensor] = {}

        def keep(scaler: Any) -> Tensor:
            gradients.update(
                {key: p.grad.clone() for key, p in stepper.method.named_parameters() if p.grad is not None}
            )
            return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()

        stepper.optimizers.step = keep
        losses = stepper.take(step, batch or loaded())
        return gradients, losses

    def make(name: str, micro: int | None, **settings: Any) -> Stepper:
        engine = {"steps": 100, "batch_size": 16, "micro_batch_size": micro}
        validated = validate(recipe(name, method=settings, engine=engine), "recipe")
        seeds = iter(range(10))

        def build(outputs: int | None = None, channels: int = 3, model: object = None) -> Network:
            return tiny(next(seeds), norm=False, num_classes=outputs or len(CLASSES), channels=channels)

        with seeded(0, "method"):
            method = methods.load(name)(validated.method, build, CLASSES)
        if teacher := getattr(method, "teacher", None):  # another opinion about everything
            for own, its in zip(teacher.parameters(), tiny(9, norm=False).parameters(), strict=True):
                own.data.lerp_(its.data, 0.1)
        stepper = Stepper(validated, method, Runtime("cpu"))
        stepper.start()
        for module in method.modules():  # batch statistics of layers that a method makes are those of a part
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.forward = lambda value: value
        return stepper

    take.make = make  # type: ignore[attr-defined]
    return take


def assert_same(one: Step, other: Step) -> None:
    gradients, losses = one
    assert gradients.keys() == other[0].keys()
    assert difference(one, other) < CLOSE
    assert any(gradient.abs().max() > 1000 * CLOSE for gradient in gradients.values())
    assert losses.total == pytest.approx(other[1].total.item(), rel=1e-6, abs=CLOSE)
    assert losses.scalars.keys() == other[1].scalars.keys()
    for name, scalar in losses.scalars.items():
        assert scalar.item() == pytest.approx(other[1].scalars[name].item(), rel=1e-6, abs=CLOSE), name
    assert (losses.hardness is None) == (other[1].hardness is None)
    if losses.hardness is not None:
        assert torch.allclose(losses.hardness, other[1].hardness, atol=CLOSE)


def difference(one: Step, other: Step) -> float:
    """Of gradients; if some are above 1, over the largest one, as rounding grows with it."""
    largest = max(1.0, *(gradient.abs().max().item() for gradient in one[0].values()))
    return max((gradient - other[0][key]).abs().max().item() for key, gradient in one[0].items()) / largest


SETTINGS = {
    "as it is": {},
    "loss": {"loss": "standard"},
    "intensity": {"intensity": "standard"},
    "cutmix": {"cutmix": "standard"},
    "nothing adaptive": {"loss": "standard", "intensity": "standard", "cutmix": "standard"},
    "boxes": {"boxes": "official"},
    "weak forward": {"extra_weak_forward": True},
    "padding counts": {"ignore_padding": False},
    "half": {"when_unmixed": "half"},
    "hardness every second step": {"hardness_every": 2},
    "all ignored": {"all_ignored": "hardest", "ignore_class": 1},
}
CASES = [(name, "as it is") for name in methods.names()] + [("imas", key) for key in list(SETTINGS)[1:]]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_micro_batches_give_the_gradients_of_the_whole_batch(take, name, settings):
    fired = set()
    for step in range(8):
        whole = take(name, None, step, **SETTINGS[settings])
        assert_same(whole, take(name, 4, step, **SETTINGS[settings]))
        fired.add(whole[1].scalars.get("mixed", torch.tensor(step % 2)).item())
        if fired == {0, 1}:
            break
    assert fired == {0, 1}  # with and without CutMix


@pytest.mark.parametrize("micro", [1, 2, 8, 16])
def test_micro_batches_of_any_size(take, micro):
    assert_same(take("imas", None), take("imas", micro))


def test_a_method_ranks_the_images_of_the_whole_batch(take, monkeypatch):
    """Hard images are paired with easy ones of other micro-batches, and CutMix fires by the mean over all."""
    ranked, means = [], []
    triggered = imas.triggered
    monkeypatch.setattr(imas, "hard_easy_partners", lambda easy: ranked.append(easy) or hard_easy_partners(easy))
    monkeypatch.setattr(imas, "triggered", lambda mean, generator: means.append(mean) or triggered(mean, generator))
    _, losses = take("imas", 4)
    easy = 1 - losses.hardness
    assert len(ranked) == len(means) == 4
    assert len(set(easy.tolist())) > 10
    for seen, mean in zip(ranked, means, strict=True):
        assert torch.allclose(seen, easy, atol=1e-6)
        assert mean == seen.mean()
    partner = hard_easy_partners(easy)
    apart = [own for own in range(16) if own // 4 != partner[own] // 4]
    assert len(apart) > 8
    by_part = torch.cat([hard_easy_partners(easy[first : first + 4]) + first for first in range(0, 16, 4)])
    assert not torch.equal(partner, by_part)


def test_the_agreement_of_student_and_teacher_is_that_of_the_whole_batch(take):
    whole, parts = (take.make("imas", micro, hardness_every=2) for micro in (None, 4))
    for step in range(2):  # in the second step only the teacher predicts
        one, other = whole.take(step, loaded()), parts.take(step, loaded())
        assert torch.allclose(one.hardness, other.hardness, atol=CLOSE)
    assert 0.1 < whole.method.agreement < 0.99
    assert parts.method.agreement == pytest.approx(whole.method.agreement.item(), abs=CLOSE)


def test_the_gradients_tell_when_micro_batches_are_ranked_by_themselves(take, monkeypatch):
    whole = next(step for step in (take("imas", None, n) for n in range(20)) if step[1].scalars["mixed"] == 1)
    parts = Stepper._parts

    def by_themselves(self: Stepper, batches: list[SemiBatch], at: Progress) -> list[Part]:
        return [replace(part, observed=part.own, rows=slice(0, 4)) for part in parts(self, batches, at)]

    monkeypatch.setattr(Stepper, "_parts", by_themselves)
    assert difference(whole, take("imas", 4)) > 1000 * CLOSE


def test_a_step_is_the_optimizers_and_then_the_teachers(take):
    stepper = take.make("imas", 4)
    before = {key: value.clone() for key, value in stepper.method.state_dict().items()}
    stepper.take(3, loaded())
    after = stepper.method.state_dict()
    for key, value in after.items():
        assert not torch.equal(value, before[key])
        if key.startswith("teacher"):
            student = after[key.replace("teacher", "student")]
            assert torch.allclose(value, before[key].lerp(student, 0.5), atol=1e-7)
    assert all(p.grad is None for p in stepper.method.parameters())


def test_dropout_differs_between_micro_batches_and_steps(take, monkeypatch):
    drawn = []
    forward = imas.Method.forward

    def spy(self: SemiMethod, *args: Any, **kwargs: Any) -> Losses:
        drawn.append(torch.rand(()).item())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(imas.Method, "forward", spy)
    for step in (0, 1, 0):
        take("imas", 4, step)
    assert len(set(drawn[:8])) == 8
    assert drawn[8:] == drawn[:4]


@pytest.mark.parametrize(
    ("batch_size", "micro", "processes", "expected"),
    [(16, None, 1, 16), (16, 4, 1, 4), (16, 4, 2, 4), (12, None, 3, 4)],
)
def test_the_size_of_a_part(recipe, batch_size, micro, processes, expected):
    engine = validate(recipe(engine={"batch_size": batch_size, "micro_batch_size": micro}), "recipe").engine
    assert engine.part_size(processes) == expected


@pytest.mark.parametrize(
    ("batch_size", "micro", "processes", "says"),
    [
        (4, None, 3, "engine.batch_size: 4 is no multiple of the 3 processes"),
        (16, 3, 1, "engine.micro_batch_size: 3 does not divide the 16 images"),
        (16, 16, 2, "engine.micro_batch_size: 16 does not divide the 8 images"),
    ],
)
def test_a_batch_that_cannot_be_dealt_out(recipe, batch_size, micro, processes, says):
    engine = validate(recipe(engine={"batch_size": batch_size, "micro_batch_size": micro}), "recipe").engine
    with pytest.raises(UserError, match=says):
        engine.part_size(processes)


# what a step would refuse is found before a run

CHECKED = {"architecture": "deeplabv3plus", "options": {"decoder_channels": 16}}  # batch norm on pooled images


@pytest.fixture
def check(recipe) -> Callable[..., Recipe]:
    """check("imas", engine={...}, processes=2, device="cuda") -> the recipe, whose shapes were checked."""

    def check(name: str, processes: int = 1, device: str = "cpu", **sections: Any) -> Recipe:
        validated = validate(recipe(name, model=CHECKED, **sections), "recipe")
        runtime = Runtime("cpu")
        runtime.device, runtime.world_size = torch.device(device), processes
        check_shapes(validated, build_method(validated, CLASSES), runtime)
        return validated

    return check


@pytest.mark.parametrize(
    ("name", "batch_size", "micro", "processes", "device", "too_few"),
    [
        ("supervised", 4, 1, 1, "cpu", True),
        ("supervised", 4, 2, 1, "cpu", False),
        ("supervised", 2, None, 2, "cpu", True),
        ("supervised", 2, None, 2, "cuda", False),  # SyncBN sees the images of both
        ("imas", 4, 1, 1, "cpu", False),  # one labeled image and two views of an unlabeled one
    ],
)
def test_too_few_images_for_batch_norm_are_found(check, name, batch_size, micro, processes, device, too_few):
    def asked() -> Recipe:
        return check(name, processes, device, engine={"batch_size": batch_size, "micro_batch_size": micro})

    if too_few:
        with pytest.raises(UserError, match=r"engine.micro_batch_size: batch norm cannot learn from 1 labeled image "):
            asked()
    else:
        asked()


@pytest.mark.parametrize("name", methods.names())
def test_the_check_gives_a_method_what_a_step_gives_it(check, take, monkeypatch, name):
    """It is passed completely: an error that the check leaves to the first step would hide that it checks nothing."""
    kind, seen = methods.load(name), []
    forward = kind.forward

    def watched(self: SemiMethod, batch: SemiBatch, *where: Any) -> Losses:
        losses = forward(self, batch, *where)
        seen.append((batch, losses))
        return losses

    monkeypatch.setattr(kind, "forward", watched)
    before = torch.get_rng_state()
    check(name, data={"crop": (16, 32)}, engine={"batch_size": 16, "micro_batch_size": 4})
    assert torch.equal(torch.get_rng_state(), before)
    batch = loaded()
    if not take.make(name, 4).method.views.unlabeled:
        batch = replace(batch, weak=batch.weak[:0], valid=batch.valid[:0], index=batch.index[:0])
    take(name, 4, batch=batch)
    (checked, losses), (stepped, _), *_ = seen
    assert losses.total.is_meta
    assert checked.image.shape == (4, 3, 16, 32)
    for one, other in zip(tensors(checked), tensors(stepped), strict=True):
        assert (one.dtype, one.ndim, len(one)) == (other.dtype, other.ndim, len(other))


def tensors(batch: SemiBatch) -> list[Tensor]:
    crops = [batch] if batch.second is None else [batch, batch.second]
    return [leaf for crop in crops for leaf in tree_leaves(list(vars(crop).values())) if torch.is_tensor(leaf)]


@pytest.mark.parametrize(("error", "found"), [(UserError("no"), True), (NotImplementedError("no such kernel"), False)])
def test_only_what_a_user_can_mend_is_told_before_the_first_step(check, monkeypatch, error, found):
    def fails(*_: Any) -> Losses:
        raise error

    monkeypatch.setattr(methods.load("supervised"), "forward", fails)
    with pytest.raises(UserError, match="no") if found else nullcontext():
        check("supervised")


# a method that uses a second crop


class Aligned(SemiMethod, config=MethodConfig):
    """Both crops of an image must be decoded alike."""

    compiles = False

    def __init__(self, config: MethodConfig, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.views = Views(strong=(jitter.Config(),), overlap=(0.2, 0.8))
        self.student = build()

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        second, size = batch.second, (batch.weak.shape[-2], batch.weak.shape[-1])
        assert second is not None
        labeled = LabeledLoss()(self.student(batch.image), batch.label, part)
        extent = self.student.padded(size)
        one, other = (self.student.decode(self.student.encode(view)) for view in (second.strong[0], batch.weak))
        scale = (one.shape[-2], one.shape[-1])
        valid, second_valid = (at_scale(crop.valid, scale, extent) for crop in (batch, second))
        both = seen_in_both(valid, second_valid, second.align, extent)
        off = (to_first(one, second.align, extent) - other.detach()).square().mean(1)
        unlabeled = (off * both).sum() / part.valid_px
        return Losses(labeled + unlabeled, {"labeled": labeled.detach(), "unlabeled": unlabeled.detach()})

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        return {"student": (self.student,)}


@pytest.fixture
def aligned(monkeypatch) -> str:
    package, module = ModuleType("own"), ModuleType("own.aligned")
    package.__path__, module.Method = [], Aligned  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own", package)
    monkeypatch.setitem(sys.modules, "own.aligned", module)
    return "own.aligned"


def test_a_method_that_uses_a_second_crop_trains(recipe, aligned, tmp_path, monkeypatch):
    seen, forward = [], Aligned.forward
    monkeypatch.setattr(Aligned, "forward", lambda self, *given: seen.append(given[0]) or forward(self, *given))
    data = {"crop": (24, 16), "scale": (0.5, 1.5), "workers": 1}  # some crops are padded
    run = api.train(
        validate(recipe(aligned, data=data, engine={"steps": 2, "batch_size": 4}), "recipe"), tmp_path / "run"
    )
    (record,) = run.metrics("train")
    assert record["images_per_step"] == 12
    assert 0 < record["unlabeled"] < 100
    checked, *stepped = seen
    assert checked.weak.is_meta
    for batch in stepped:
        for one, other in zip(tensors(checked), tensors(batch), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
        second = batch.second
        both = seen_in_both(batch.valid, second.valid, second.align)
        assert both.flatten(1).any(1).all()
        off = (to_first(second.weak, second.align) - batch.weak).abs().amax(1)[both]
        elsewhere = (second.weak - batch.weak).abs().amax(1)[both]
        assert off.mean() < 0.3 * elsewhere.mean()
    assert len(stepped) == 2


def test_micro_batches_have_the_second_crops_of_the_whole(recipe, aligned, tiny):
    def take(micro: int | None) -> Step:
        engine = {"batch_size": 4, "micro_batch_size": micro}
        validated = validate(recipe(aligned, data={"crop": (24, 16)}, engine=engine), "recipe")
        stepper = Stepper(validated, Aligned(MethodConfig(), lambda: tiny(norm=False), CLASSES), Runtime("cpu"))
        stepper.start()
        stepper.optimizers.step = lambda scaler: torch.zeros(())
        (batch,) = train_loader(
            load_data(validated.data), validated.data, stepper.method.views, batch_size=4, seed=0, start=3, num_steps=4
        )
        losses = stepper.take(3, replace(batch, label=batch.label % 3))
        return {key: parameter.grad for key, parameter in stepper.method.named_parameters()}, losses

    whole = take(None)
    assert whole[1].scalars["unlabeled"] > 1000 * CLOSE
    assert_same(whole, take(1))
