import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.augment import jitter
from semiseg.methods.mean_teacher import Config, Method
from semiseg.models.build import Network
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
AT = Progress(3, 10, seed=1)
POOL = jitter.Config()
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(norm, **settings) -> a method whose teacher differs from the student."""

    def make(norm: bool = True, **settings) -> Method:
        method = Method(Config(**settings), lambda: tiny(0, norm), CLASSES)
        differ(method.teacher)
        return method.train()

    return make


@pytest.fixture
def identity(identity_network) -> Make:
    """identity(**settings) -> a method whose networks return the image as logits."""
    return lambda **settings: Method(Config(**settings), identity_network, CLASSES).train()


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 12, 16), generator=generator)
    label[0, :5] = IGNORE
    valid = torch.ones(slots, 12, 16, dtype=torch.bool)
    valid[-1, 7:] = False
    image, weak, *strong = torch.randn(4, slots, 3, 12, 16, generator=generator)
    return SemiBatch(image, label, weak, tuple(strong), valid, torch.arange(slots))


BATCH = batch_of()


def seen_by(network: Network) -> list[Tensor]:
    """The images of each later pass of the network."""
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    return seen


def row(*pixels: tuple[float, float, float]) -> Tensor:
    """An image of one row whose logits are the logarithms of these values."""
    return torch.tensor(pixels).log().T[None, :, None, :]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # first pixel: (1/4)^2 + (1/4)^2 = 1/8; second: (1/3)^2 + 2 (1/6)^2 = 1/6; the third is padded
        ({"consistency_on": "unlabeled"}, (1 / 8 + 1 / 6) / 2),
        ({"consistency_on": "all"}, (1 / 8 + 1 / 6) / 3),  # no distance at the one labeled pixel
        # first pixel: 2 log(2)^2; second: log(4)^2 = 4 log(2)^2
        ({"consistency_on": "unlabeled", "compared": "logits"}, 3 * math.log(2) ** 2),
    ],
)
def test_the_squared_difference_by_hand(identity, settings, expected):
    weak, strong = row((2, 1, 1), (1, 1, 1), (1, 1, 1)), row((1, 2, 1), (4, 1, 1), (1, 9, 1))
    batch = SemiBatch(
        image=row((1, 1, 2), (3, 2, 1), (3, 2, 1)),
        label=torch.tensor([[[2, IGNORE, IGNORE]]]),
        weak=weak,
        strong=(strong,),
        valid=torch.tensor([[[True, True, False]]]),
        index=torch.arange(1),
    )
    losses = identity(strong=POOL, **settings).losses(batch, AT)
    assert losses.scalars["labeled"].item() == pytest.approx(math.log(2))  # the class has probability 1/2
    assert losses.scalars["unlabeled"].item() == pytest.approx(expected)
    assert losses.total.item() == pytest.approx(math.log(2) + 100 / 21 * expected)


@pytest.mark.parametrize("statistics", ["own", "averaged"])
@pytest.mark.parametrize("on", ["all", "unlabeled"])
def test_a_step_equals_a_slow_reference(make, statistics, on):
    """Pixel by pixel, in double precision."""
    method = make(teacher_statistics=statistics, consistency_on=on, unlabeled_weight=7.0)
    student, teacher = copy.deepcopy(method.student).train(), copy.deepcopy(method.teacher)
    losses = method.losses(BATCH, AT)
    images = torch.cat([BATCH.image, BATCH.weak])
    logits = student(images).detach().double()
    to_teacher = images if on == "all" else BATCH.weak
    target = teacher.train(statistics == "own")(to_teacher).detach().double().softmax(1)
    counted = torch.cat([BATCH.label != IGNORE, BATCH.valid])
    distance, pixels = 0.0, 0
    for image, y, x in counted.nonzero().tolist():
        if on == "all" or image >= 4:
            own = logits[image, :, y, x].softmax(0).tolist()
            its = target[image if on == "all" else image - 4, :, y, x].tolist()
            distance += sum((one - other) ** 2 for one, other in zip(own, its, strict=True))
            pixels += 1
    labeled = nn.functional.cross_entropy(logits[:4], BATCH.label, ignore_index=IGNORE).item()
    assert distance / pixels > 0.001
    assert losses.scalars["labeled"].item() == pytest.approx(labeled, rel=1e-5)
    assert losses.scalars["unlabeled"].item() == pytest.approx(distance / pixels, rel=1e-5)
    assert losses.total.item() == pytest.approx(labeled + 7 * distance / pixels, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "views", "student", "teacher"),
    [
        ({}, 0, BATCH.weak, BATCH.weak),
        ({"strong": POOL}, 1, BATCH.strong[0], BATCH.weak),
        ({"strong": POOL, "teacher_view": "weak"}, 1, BATCH.strong[0], BATCH.weak),
        ({"strong": POOL, "teacher_view": "strong"}, 2, BATCH.strong[0], BATCH.strong[1]),
    ],
)
def test_what_each_network_sees_in_its_one_pass(make, settings, views, student, teacher):
    method = make(**settings)
    by_student, by_teacher = seen_by(method.student), seen_by(method.teacher)
    assert method.views.strong == (POOL,) * views
    method.losses(replace(BATCH, strong=BATCH.strong[:views]), AT)
    ((images,), (others,)) = by_student, by_teacher
    assert torch.equal(images, torch.cat([BATCH.image, student]))
    assert torch.equal(others, torch.cat([BATCH.image, teacher]))


def test_the_teacher_has_statistics_of_its_own_or_those_of_the_student(make):
    for statistics in ("own", "averaged"):
        method = make(teacher_statistics=statistics, ema_decay=0.25)
        method.student.net["encoder"].append(nn.Dropout2d(0.5))
        method.teacher.net["encoder"].append(nn.Dropout2d(0.5))
        before = copy.deepcopy(method)
        reference = make().teacher.train()
        with torch.no_grad():
            reference(torch.cat([BATCH.image, BATCH.weak]))
        method.losses(BATCH, AT)
        for mine, its, old in zip(method.teacher.buffers(), reference.buffers(), before.teacher.buffers(), strict=True):
            assert torch.equal(mine, its if statistics == "own" else old)  # without dropout
        student = copy.deepcopy(method.student)
        method.after_step(Progress(5, 10), None)
        for mine, its, old in zip(
            method.teacher.parameters(), student.parameters(), before.teacher.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, 0.25 * old + 0.75 * its)
        own, its = (dict(network.named_buffers()) for network in (method.teacher, student))
        for name, old in before.teacher.named_buffers():
            if statistics == "own":
                assert torch.equal(own[name], dict(reference.named_buffers())[name])
            elif own[name].is_floating_point():
                torch.testing.assert_close(own[name], 0.25 * old + 0.75 * its[name])


def test_a_network_without_batch_norm_has_an_averaged_teacher_as_a_whole(make):
    method = make(norm=False)
    method.student.register_buffer("scale", torch.ones(()))
    method.teacher.register_buffer("scale", torch.zeros(()))
    method.after_step(Progress(0, 10), None)  # the first update copies
    assert method.teacher.scale == 1


def test_the_average_has_the_decay_of_the_settings(make):
    method = make()
    old, its = (next(network.parameters()).clone() for network in (method.teacher, method.student))
    method.after_step(Progress(9999, 10_000), None)
    torch.testing.assert_close(next(method.teacher.parameters()), 0.99 * old + 0.01 * its)


def test_the_unlabeled_weight_may_rise(make):
    method = make(ramp=0.5, unlabeled_weight=3.0)
    for step, factor in ((0, math.exp(-5)), (25, math.exp(-5 / 4)), (50, 1.0), (99, 1.0)):
        losses = method.losses(BATCH, Progress(step, 100))
        expected = losses.scalars["labeled"] + 3 * factor * losses.scalars["unlabeled"]
        assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_both_networks_are_evaluated_and_the_student_is_kept(make):
    method = make()
    assert list(method.evaluated()) == ["student", "teacher"]
    assert method.evaluated() == {"student": (method.student,), "teacher": (method.teacher,)}


def test_batch_norm_apart_needs_labeled_images_for_the_teachers_own_statistics():
    with pytest.raises(ValidationError, match="use consistency_on: all, or teacher_statistics: averaged"):
        Config(batch_norm="apart", consistency_on="unlabeled")
    Config(batch_norm="apart", consistency_on="unlabeled", teacher_statistics="averaged")


def test_a_view_of_the_teacher_needs_strong_operations():
    with pytest.raises(ValidationError, match="teacher_view does nothing without strong operations"):
        Config(teacher_view="strong")
