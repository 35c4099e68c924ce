import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from semiseg.augment.cutmix import random_partners
from semiseg.augment.paste import rescaled
from semiseg.errors import UserError
from semiseg.methods.ael import Config, Method
from semiseg.rng import fold_in, uniform
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b", "c"), background=0)
AT = Progress(3, 100, seed=5)
OFF = {"cutmix": "none", "paste": None, "sampling_power": 0.0, "weight_power": 0.0}
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(**settings) -> a method whose teacher and student differ and whose bank knows something."""

    def make(classes: ClassTable = CLASSES, **settings) -> Method:
        method = Method(Config(**settings), lambda: tiny(0, norm=False, num_classes=len(classes)), classes)
        differ(method.teacher, by=0.1)
        method.bank.value.copy_(torch.linspace(0.9, 0.2, len(classes)))
        return method.train()

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(4, (slots, 12, 12), generator=generator)
    label[0, :5] = IGNORE
    valid = torch.ones(slots, 12, 12, dtype=torch.bool)
    valid[0, :, 9:] = False
    weak, image = (torch.randn(slots, 3, 12, 12, generator=generator) for _ in range(2))
    return SemiBatch(image, label, weak, (), valid, torch.arange(slots))


BATCH = batch_of()


def seen_by_student(method: Method, at: Progress, batch: SemiBatch = BATCH) -> tuple[Losses, Tensor, Tensor]:
    """The losses, and the labeled and unlabeled images that the student saw in training mode."""
    part, seen = method.alone(batch, at), []
    hook = method.student.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    losses = method(batch, at, part)
    hook.remove()
    assert len(seen) == 1
    return losses, *seen[0].chunk(2)


def test_without_ingredients_it_is_a_mean_teacher_with_hard_labels(make):
    method = make(**OFF)
    losses, on_labeled, on_unlabeled = seen_by_student(method, AT)
    assert torch.equal(on_labeled, BATCH.image)
    assert torch.equal(on_unlabeled, BATCH.weak)
    assert (method.views.min_unlabeled, make().views.min_unlabeled) == (1, 2)
    each = F.cross_entropy(method.student(BATCH.weak), method.teacher(BATCH.weak).argmax(1), reduction="none")
    unlabeled = torch.stack([loss[valid].mean() for loss, valid in zip(each, BATCH.valid, strict=True)]).mean()
    torch.testing.assert_close(losses.scalars["unlabeled"], unlabeled.detach())
    labeled = F.cross_entropy(method.student(BATCH.image), BATCH.label, ignore_index=IGNORE)
    torch.testing.assert_close(losses.total, labeled + unlabeled)
    torch.testing.assert_close(make(**OFF, unlabeled_weight=3).losses(BATCH, AT).total, labeled + 3 * unlabeled)


@pytest.mark.parametrize("powers", [(1.0, 0.0), (0.0, 2.0), (0.5, 3.0)])
def test_the_unlabeled_loss_is_that_of_a_slow_reference(make, powers):
    """Pixels are kept at the rate of the class that the student predicts, and weigh as the teacher is sure."""
    beta, gamma = powers
    method = make(**OFF | {"sampling_power": beta, "weight_power": gamma, "threshold": 0.6})
    losses = method.losses(BATCH, AT)
    generator = AT.generator("sampling")
    shift, common = uniform(generator, 0.0, 1.0, 4).tolist(), uniform(generator, 0.0, 1.0, 12, 12)
    teacher, student = method.teacher(BATCH.weak).softmax(1), method.student(BATCH.weak).softmax(1)
    need = 1 - method.bank.value
    means, shares = [], []
    for i in range(4):
        above = below = number = 0.0
        for y in range(12):
            for x in range(12):
                confidence, label = teacher[i, :, y, x].max(0)
                rate = (need[student[i, :, y, x].argmax()] / need.max()).item() ** beta
                kept = (common[y, x].item() + shift[i]) % 1 < rate
                if kept and BATCH.valid[i, y, x] and confidence >= 0.6:
                    weight = confidence.item() ** gamma
                    above += weight * -student[i, label, y, x].log().item()
                    below += weight
                    number += 1
        means.append(above / below)
        shares.append(number / BATCH.valid[i].sum().item())
    assert losses.scalars["unlabeled"].item() == pytest.approx(sum(means) / 4, rel=1e-4)
    assert losses.scalars["sampled"].item() == pytest.approx(sum(shares) / 4, rel=1e-5)


def test_few_pixels_of_good_classes_count(make):
    """The shares of sampled pixels are the rates, although all images have one common map of draws."""
    method = make(**OFF | {"sampling_power": 1.0})
    method.bank.value.copy_(torch.tensor([0.9, 0.5, 0.0, 0.8]))
    logits = torch.eye(4)[torch.arange(4)[:, None, None].expand(4, 60, 60)].permute(0, 3, 1, 2)
    part = method.alone(BATCH, AT)
    share = method._sampled(logits, AT, part).float().mean((1, 2))
    torch.testing.assert_close(share, torch.tensor([0.1, 0.5, 1.0, 0.2]), atol=0.03, rtol=0)


def changed(one: Tensor, other: Tensor) -> Tensor:
    return (one != other).any(1)


@pytest.mark.parametrize("onto", ["labeled", "unlabeled"])
def test_copy_paste_moves_drawn_classes_of_another_labeled_image(make, onto):
    settings = {"probability": 0.6, "classes": 2, "scale": (0.6, 1.4), "onto": onto}
    method = make(**OFF | {"paste": settings})
    received = set()
    for step in range(5):
        at = replace(AT, step=step)
        losses, *images = seen_by_student(method, at)
        generator = at.generator("paste")
        giver = random_partners(4, generator)
        drawn = method.config.paste.sample(generator, 4, 4)
        image, label = rescaled(BATCH.image[giver], BATCH.label[giver], drawn.scale, drawn.place)
        known, valid = (BATCH.image, BATCH.label != IGNORE) if onto == "labeled" else (BATCH.weak, BATCH.valid)
        where = torch.zeros_like(valid)
        for i in range(4):
            classes = method.bank.draw(drawn.pick[i], torch.tensor([False, True, True, True])).tolist()
            for c in classes if drawn.happens[i] else ():
                where[i] |= valid[i] & (label[i] == c)
                received.add(c)
        student, other = images if onto == "labeled" else images[::-1]
        assert torch.equal(student, torch.where(where[:, None], image, known))
        assert torch.equal(other, BATCH.weak if onto == "labeled" else BATCH.image)
        if onto == "labeled":
            target = torch.where(where, label, BATCH.label)
            wanted = F.cross_entropy(method.student(student), target, ignore_index=IGNORE)
        else:
            target = torch.where(where, label, method.teacher(BATCH.weak).argmax(1))
            each = F.cross_entropy(method.student(student), target, reduction="none")
            wanted = sum(loss[inside].mean() for loss, inside in zip(each, valid, strict=True)) / 4
        torch.testing.assert_close(losses.scalars[onto], wanted.detach())
    assert received == {1, 2, 3}  # the background is not pasted


def test_pasted_labels_are_sure(make):
    """What is pasted onto an unlabeled image has a label, so no threshold and no small weight applies to it."""
    settings = {"probability": 1.0, "scale": (1.0, 1.0), "onto": "unlabeled", "skip": ()}
    method = make(**OFF | {"paste": settings, "threshold": 1.0})
    losses, _, on_unlabeled = seen_by_student(method, AT)
    pasted = changed(on_unlabeled, BATCH.weak)
    share = (pasted.sum((1, 2)) / BATCH.valid.sum((1, 2))).mean().item()
    assert share > 0.2
    assert losses.scalars["sampled"].item() == pytest.approx(share, rel=1e-5)


def cutmix_labels(make, area: float | None) -> tuple[Method, Part]:
    """Teacher's labels by hand: image 0 shows class 1 in the top left, 1 and 2 show 2 at the border, 3 only 0."""
    method = make(**OFF | {"cutmix": "adaptive", "cutmix_area": area})
    label = torch.zeros(4, 12, 12, dtype=torch.long)
    label[0, 1:4, 2:6] = 1
    label[1, 5, 3], label[1, 8, 9] = 2, 2
    label[2, 0] = 2
    part = method.alone(BATCH, AT)
    counts = F.one_hot(label, 4).sum((1, 2)) / 144
    observed = replace(part.observed, label=label, area=counts, valid=torch.ones_like(BATCH.valid))
    return method, replace(part, observed=observed, own=observed)


def test_adaptive_cutmix_pastes_the_region_of_the_drawn_class(make):
    method, part = cutmix_labels(make, None)
    partners = set()
    for step in range(60):
        at = replace(AT, step=step)
        mixed = method._cutmix(at, part)
        standard = random_partners(4, at.generator("cutmix"))
        for i in range(4):
            inside = changed(mixed.image[i : i + 1], BATCH.weak[i : i + 1])[0]
            patch = next(j for j in range(4) if torch.equal(mixed.image[i][:, inside], BATCH.weak[j][:, inside]))
            assert torch.equal(mixed.label[i], torch.where(inside, part.observed.label[patch], part.observed.label[i]))
            rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
            box = (rows[0].item(), rows[-1].item(), columns[0].item(), columns[-1].item())
            assert inside.sum() == (box[1] - box[0] + 1) * (box[3] - box[2] + 1)
            if box == {0: (1, 3, 2, 5), 1: (5, 8, 3, 9), 2: (0, 0, 0, 11)}.get(patch):
                partners.add((i, patch))
            elif box != ((1, 11, 0, 11) if patch == 2 else (0, 11, 0, 11)):  # class 0; no image shows class 3
                assert patch == standard[i]
                assert 0.4 < inside.float().mean() < 0.6
                partners.add("random")
    assert partners == {"random", *((i, j) for i in range(4) for j in range(3) if i != j)}


def test_too_few_pixels_do_not_make_a_partner(make):
    method, part = cutmix_labels(make, 0.05)  # image 1 has 2 pixels of 144 of class 2
    boxes = []
    for step in range(60):
        mixed = method._cutmix(replace(AT, step=step), part)
        boxes += [inside.sum().item() for inside in changed(mixed.image, BATCH.weak)]
    assert 28 not in boxes  # the box of image 1: 4 x 7
    assert 12 in boxes


def test_padded_pixels_show_no_class(make):
    """Neither in the share of an image, nor in the box."""
    method, part = cutmix_labels(make, None)
    observed = method.observe(BATCH, AT)
    for i in range(4):
        for c in range(4):
            wanted = (observed.label[i][BATCH.valid[i]] == c).sum().item() / 144
            assert observed.area[i, c].item() == pytest.approx(wanted)
    method.bank.value.copy_(torch.tensor([1.0, 1.0, -80.0, 1.0]))
    valid = part.observed.valid.clone()
    valid[1:3, 6:], valid[2, 0, 6:] = False, False
    hidden = replace(part.observed, valid=valid)
    mixed = method._cutmix(AT, replace(part, observed=hidden, own=hidden))
    sizes = changed(mixed.image, BATCH.weak).sum((1, 2)).tolist()
    assert set(sizes) == {1, 6}


def test_bad_classes_are_mixed_more_often(make):
    method, part = cutmix_labels(make, None)
    method.bank.value.copy_(torch.tensor([1.0, 1.0, -8.0, 1.0]))  # class 2 is drawn practically always
    for step in range(10):
        mixed = method._cutmix(replace(AT, step=step), part)
        assert ((mixed.label == 2).flatten(1).any(1)).all()


def test_the_bank_follows_the_student_on_labeled_images(make):
    method, label = make(), BATCH.label.clone()
    label[label == 3] = IGNORE
    before = method.bank.value.clone()
    batch = replace(BATCH, label=label)
    with torch.no_grad():
        method.after_step(AT, method.observe(batch, AT))
        probability = method.student(BATCH.image).softmax(1)
    for c in range(3):
        means = [probability[i, c][label[i] == c].mean().item() for i in range(4) if (label[i] == c).any()]
        assert method.bank.value[c].item() == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert method.bank.value[3] == before[3]  # no labeled image shows it
    assert method.bank.decay == 0.999
    assert make(confidence_decay=0.9).bank.decay == 0.9


def parts_of(method: Method, batch: SemiBatch, at: Progress, size: int) -> list[Losses]:
    whole, shares = method.alone(batch, at), []
    for first in range(0, len(batch.image), size):
        rows = slice(first, first + size)
        fields = {key: value[rows] for key, value in vars(batch).items() if isinstance(value, Tensor)}
        part = Part(whole.observed, whole.observed[rows], rows, size / 4, whole.labeled_px, whole.valid_px)
        shares.append(method(replace(batch, **fields), at, part))
    return shares


@pytest.mark.parametrize("onto", ["labeled", "unlabeled"])
def test_parts_add_up_when_all_ingredients_work(make, onto):
    method = make(paste={"onto": onto, "probability": 1.0})
    whole, shares = method.losses(BATCH, AT), parts_of(method, BATCH, AT, 1)
    assert 0 < whole.scalars["sampled"] < 1
    for name, value in whole.scalars.items():
        assert sum(share.scalars[name] for share in shares) == pytest.approx(value.item(), abs=1e-5), name
    one, other = copy.deepcopy(method), copy.deepcopy(method)
    with torch.no_grad():
        one.after_step(AT, one.observe(BATCH, AT))
        rows = [
            other.observe(
                replace(
                    BATCH,
                    **{k: v[i : i + 2] for k, v in vars(BATCH).items() if k not in ("strong", "second", "pseudo")},
                ),
                AT,
            )
            for i in (0, 2)
        ]
        joined = {key: torch.cat([getattr(row, key) for row in rows]) for key in vars(rows[0])}
        other.after_step(AT, replace(rows[0], **joined))
    torch.testing.assert_close(one.bank.value, other.bank.value)


def test_each_ingredient_changes_the_step(make):
    on = {"paste": {"probability": 1.0}, "sampling_power": 1.0, "weight_power": 2.0}
    cases = [{}, {"cutmix": "random"}, {"cutmix": "adaptive"}, *({key: value} for key, value in on.items())]
    totals = {make(**OFF | one).losses(BATCH, AT).total.item() for one in cases}
    assert len(totals) == len(cases)
    assert Config() == Config(cutmix="adaptive", paste={}, sampling_power=1, weight_power=2)


def test_without_a_use_the_student_is_not_measured(make):
    method = make(**OFF)
    before = method.bank.value.clone()
    with torch.no_grad():
        method.after_step(AT, method.observe(BATCH, AT))
    assert torch.equal(method.bank.value, before)


@pytest.mark.parametrize("number", [2, 5])
def test_two_classes_and_classes_without_labels(make, number):
    classes = ClassTable.of([f"c{index}" for index in range(number)])
    method = make(classes=classes, paste={"probability": 1.0})
    batch = replace(BATCH, label=torch.where(BATCH.label == IGNORE, IGNORE, BATCH.label.clamp(max=1)))
    method.bank.value.zero_()
    for step in range(3):
        at = replace(AT, step=step)
        losses, on_labeled, _ = seen_by_student(method, at, batch)
        assert torch.isfinite(losses.total)
        pasted = changed(on_labeled, batch.image).float().mean((1, 2))
        assert pasted.max() > 0
        assert number > 2 or pasted.max() < 1  # never the whole image
        with torch.no_grad():
            method.after_step(at, method.observe(batch, at))
    assert (method.bank.value[:2] > 0).all()
    assert not method.bank.value[2:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutmix": "random", "cutmix_area": 0.01}, "cutmix_area belongs to cutmix: adaptive"),
        (OFF | {"confidence_decay": 0.9}, "confidence_decay does nothing"),
        ({"paste": {"probability": 0}}, "probability"),
        ({"paste": {"onto": "both"}}, "onto"),
    ],
)
def test_settings_that_do_nothing(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("number", "settings", "message"),
    [
        (1, {}, r"^method.name: ael balances classes, so it needs two or more; the data have 1$"),
        (3, {"paste": {"classes": 3}}, r"^method.paste.classes: 3 of 3"),
        (3, {"paste": {"skip": ("x",)}}, r"^method.paste.skip: there is no class 'x'"),
    ],
)
def test_data_that_do_not_fit(make, number, settings, message):
    with pytest.raises(UserError, match=message):
        make(classes=ClassTable.of([f"c{index}" for index in range(number)]), **settings)
