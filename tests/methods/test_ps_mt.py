import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semiseg.augment.adversarial import adversarial_noise, sample_direction
from semiseg.errors import UserError
from semiseg.methods.ps_mt import Config, Method
from semiseg.models.build import Network, Undivided
from semiseg.models.ema import ema_
from semiseg.rng import fold_in, seeded
from semiseg.types import ClassTable, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
AT = Progress(50, 100, seed=3)
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    """make(**settings) -> a method whose networks have opinions of their own."""

    def make(norm: bool = False, **settings) -> Method:
        seeds = iter(range(9))
        with seeded(0, "method"):
            method = Method(Config(**settings), lambda *_: tiny(next(seeds), norm), CLASSES).train()
        for seed, teacher in ((5, method.first), (6, method.second)):
            teacher.load_state_dict(tiny(seed, norm).state_dict())
        return method

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 9, 11), generator=generator)
    weak = torch.randn(slots, 3, 9, 11, generator=generator)
    valid = torch.ones(slots, 9, 11, dtype=torch.bool)
    valid[-1, 6:] = False
    return SemiBatch(
        image=torch.randn(slots, 3, 9, 11, generator=generator),
        label=label,
        weak=weak,
        strong=(0.5 * weak + torch.randn(weak.shape, generator=generator),),
        valid=valid,
        index=torch.arange(slots),
    )


BATCH = batch_of()


def test_the_mean_of_the_teachers_labels_strong_views(make):
    method = make(vat_radius=0.0, cutmix_probability=0.0, threshold=0.55)
    with torch.no_grad():
        mean = sum(teacher(BATCH.weak).softmax(1) for teacher in (method.first, method.second)) / 2
        logits = method.student(BATCH.strong[0])
    total, kept = 0.0, 0
    for image, row, column in BATCH.valid.nonzero().tolist():
        confidence, label = mean[image, :, row, column].max(0)
        if confidence >= 0.55:
            kept += 1
            total += confidence.item() * F.cross_entropy(logits[image, :, row, column], label).item()
    assert 0.2 < kept / BATCH.valid.sum() < 0.9
    losses = method.losses(BATCH, AT)
    assert losses.scalars["unlabeled"].item() == pytest.approx(total / kept, rel=1e-5)
    labeled = F.cross_entropy(method.student(BATCH.image), BATCH.label).item()
    assert losses.scalars["labeled"].item() == pytest.approx(labeled, rel=1e-5)
    assert losses.total.item() == pytest.approx(labeled + 1.5 * total / kept, rel=1e-5)


def test_teachers_predict_in_eval_mode_and_change_nothing(make):
    method = make(norm=True)
    before = [value.clone() for teacher in (method.first, method.second) for value in teacher.state_dict().values()]
    method.losses(BATCH, AT).total.backward()
    after = [value for teacher in (method.first, method.second) for value in teacher.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(
        parameter.grad is None for teacher in (method.first, method.second) for parameter in teacher.parameters()
    )
    assert all(module.training for module in method.modules())


def test_boxes_of_another_image_are_pasted_with_all_that_is_known_of_it(make):
    method = make(threshold=0.6)
    part = method.alone(BATCH, AT)
    everyone = part.observed
    mixed, kept, kept_px = method._mixed(part, AT)
    counts = (everyone.confidence >= 0.6) & everyone.valid
    partners = []
    for slot in range(4):
        inside = (mixed.image[slot] != everyone.image[slot]).all(0)
        assert 0.1 < inside.float().mean() < 0.9
        (partner,) = [
            other for other in range(4) if torch.equal(mixed.image[slot][:, inside], everyone.image[other][:, inside])
        ]
        partners.append(partner)
        for name in ("label", "confidence", "valid"):
            own, patch = (getattr(everyone, name)[index] for index in (slot, partner))
            assert torch.equal(getattr(mixed, name)[slot], torch.where(inside, patch, own))
        assert torch.equal(kept[slot], torch.where(inside, counts[partner], counts[slot]))
    assert sorted(partners) == [0, 1, 2, 3]
    assert all(slot != partner for slot, partner in enumerate(partners))
    assert kept_px == kept.sum()
    rows = slice(1, 3)
    own, its, px = method._mixed(replace(part, own=everyone[rows], rows=rows, share=0.5), AT)
    assert torch.equal(own.image, mixed.image[rows])
    assert torch.equal(its, kept[rows])
    assert px == kept_px
    plain, _, _ = make(cutmix_probability=0.0)._mixed(part, AT)
    assert torch.equal(plain.image, everyone.image)


def test_noise_from_the_teachers_is_added_to_unlabeled_features_alone(make, monkeypatch):
    method, seen = make(norm=True, vat_radius=0.7), []
    decode = method.student.decode
    monkeypatch.setattr(method.student, "decode", lambda features: seen.append(features) or decode(features))
    part = method.alone(BATCH, AT)
    mixed, _, _ = method._mixed(part, AT)
    method(BATCH, AT, part)
    with torch.no_grad():
        features = method.student.encode(torch.cat([BATCH.image, mixed.image])).maps[-1]
    given = seen[0].maps[-1].detach()
    assert torch.equal(given[:4], features[:4])
    heads = [teacher.net["segmentation_head"] for teacher in (method.first, method.second)]
    wanted = adversarial_noise(
        lambda value: (heads[0](value) + heads[1](value)) / 2,
        features[4:],
        sample_direction(AT.generator("vat"), (8, 9, 11)),
        0.7,
        mixed.valid,
    )
    torch.testing.assert_close(given[4:] - features[4:], wanted, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(wanted.flatten(1).norm(dim=1), torch.full((4,), 0.7))


def follows(method: Method, step: int, num_steps: int = 40) -> list[bool]:
    """Which teachers change after a step."""
    before = [[p.clone() for p in teacher.parameters()] for teacher in (method.first, method.second)]
    with torch.no_grad():
        method.after_step(Progress(step, num_steps), method.observe(BATCH, AT))
    return [
        any(not torch.equal(one, other) for one, other in zip(old, teacher.parameters(), strict=True))
        for old, teacher in zip(before, (method.first, method.second), strict=True)
    ]


def test_teachers_follow_in_turns(make):
    method = make(warmup=0.1, turn=0.05)  # four steps, then turns of two
    changes = []
    for step in range(10):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter += 1
        changes.append(follows(method, step))
    first, second = [True, False], [False, True]
    assert changes == [[True, True]] * 4 + [first, first, second, second, first, first]


def test_a_teacher_is_the_mean_of_the_students_that_it_followed(make):
    """Its decay counts its own updates, up to the largest."""
    method = make(warmup=0.05, turn=0.05, ema_decay=0.75)  # two steps, then turns of two
    follow: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(9):
        with torch.no_grad():
            weight = method.student.net["segmentation_head"].weight
            weight += step
        for number, changed in enumerate(follows(method, step)):
            if changed:
                follow[number].append(weight.detach().clone())
    assert [len(one) for one in follow] == [6, 5]
    for seen, teacher in zip(follow, (method.first, method.second), strict=True):
        mean = seen[0]
        for number, value in enumerate(seen[1:], 1):
            mean = torch.lerp(value, mean, min(1 - 1 / (number + 1), 0.75))
        torch.testing.assert_close(teacher.net["segmentation_head"].weight.detach(), mean)


def test_short_runs_have_turns_of_one_step(make):
    method = make(warmup=0.0)
    ema_(method.student, method.first, 0.5)
    assert [follows(method, step, 8) for step in range(3)] == [[True, False], [False, True], [False, False]]


def test_the_weight_rises_after_the_warm_up(make):
    def weight(step: int, **settings) -> float:
        losses = make(warmup=0.04, **settings).losses(BATCH, Progress(step, 100))
        return ((losses.total - losses.scalars["labeled"]) / losses.scalars["unlabeled"]).item()

    assert weight(3) == 0
    assert weight(4) == pytest.approx(1.5 * (1 - math.cos(math.pi * 4 / 15)) / 2, rel=1e-3)
    assert weight(15) == pytest.approx(weight(90), rel=1e-4) == pytest.approx(1.5, rel=1e-4)
    assert weight(4, ramp=0.0, unlabeled_weight=2.0) == pytest.approx(2, rel=1e-4)


def test_the_teachers_are_evaluated_together(make):
    method = make()
    assert method.evaluated() == {"teachers": (method.first, method.second), "student": (method.student,)}


def test_a_network_without_an_encoder_gets_no_noise():
    def build(*_) -> Network:
        return Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1)

    with pytest.raises(UserError, match=r"^method.vat_radius: above 0 perturbs .* method.vat_radius: 0$"):
        Method(Config(), build, CLASSES)
    losses = Method(Config(vat_radius=0.0), build, CLASSES).losses(BATCH, AT)
    assert torch.isfinite(losses.total)
