import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.augment import intensity
from semiseg.augment.cutmix import sample_boxes, sample_boxes_official
from semiseg.augment.scales import rescale
from semiseg.errors import UserError
from semiseg.hardness import confident_ratio, easiness, subsample
from semiseg.losses import LabeledLoss, confident_cross_entropy, cross_entropy, ohem_cross_entropy
from semiseg.methods.imas import Config, Method, Observed
from semiseg.models.predict import predict
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
TAU = 0.6
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(norm=..., **settings) -> a method whose teacher and student differ. Without batch norm images do not mix."""

    def make(norm: bool = False, classes: ClassTable = CLASSES, **settings) -> Method:
        method = Method(Config(**({"threshold": TAU} | settings)), lambda: tiny(0, norm), classes)
        differ(method.teacher)
        return method.train()

    return make


def batch_of(unlabeled: int = 4, seed: int = 0) -> SemiBatch:
    generator = fold_in(seed, "batch")
    label = torch.randint(3, (2, 16, 16), generator=generator)
    label[0, :5] = IGNORE
    weak = torch.randn(unlabeled, 3, 16, 16, generator=generator)
    weak *= torch.linspace(0.7, 3, unlabeled)[:, None, None, None]  # some are easier than others
    valid = torch.ones(unlabeled, 16, 16, dtype=torch.bool)
    valid[0, :, 12:] = False
    valid[-1, 9:] = False
    return SemiBatch(
        image=torch.randn(2, 3, 16, 16, generator=generator),
        label=label,
        weak=weak,
        strong=(torch.randn(weak.shape, generator=generator),),
        valid=valid,
        index=torch.arange(unlabeled),
    )


BATCH = batch_of()


@dataclass(frozen=True)
class Step:
    losses: Losses
    views: list[Tensor]  # what the student was trained on: labeled, first, second, ...
    observed: Observed

    @property
    def fired(self) -> bool:
        return bool(self.losses.scalars["mixed"])

    def __getitem__(self, name: str) -> float:
        return self.losses.scalars[name].item()


def take(method: Method, at: Progress, batch: SemiBatch = BATCH) -> Step:
    seen: list[Tensor] = []
    handle = method.student.register_forward_pre_hook(lambda m, args: seen.append(args[0]) if m.training else None)
    part = method.alone(batch, at)
    losses = method(batch, at, part)
    handle.remove()
    (together,) = seen  # one pass for everything that has a gradient
    views = list(together.split([2, *[batch.weak.shape[0]] * ((len(together) - 2) // len(batch.weak))]))
    return Step(losses, views, part.observed)


def when(fired: bool, *methods: Method, batch: SemiBatch = BATCH) -> Progress:
    """The first step in which CutMix fires, or does not, in all of the methods."""
    for step in range(100):
        at = Progress(step, 100, seed=3)
        if all(take(copy.deepcopy(method), at, batch).fired == fired for method in methods):
            return at
    raise AssertionError


def easy_of(method: Method, batch: SemiBatch = BATCH, **changes) -> Tensor:
    settings = {"threshold": method.config.threshold, "valid": batch.valid, "ignore_class": 0} | changes
    return easiness(predict(method.student, batch.weak), predict(method.teacher, batch.weak), **settings)


def assert_same(one: Step, other: Step, *names: str) -> None:
    """The named scalars, or views by number, or the hardness are the same to the last bit."""
    for name in names:
        if name == "hardness":
            assert torch.equal(one.losses.hardness, other.losses.hardness)
        elif name in ("first", "second"):
            number = ("first", "second").index(name) + 1
            assert torch.equal(one.views[number], other.views[number])
        else:
            assert one[name] == other[name], name


def assert_differ(one: Step, other: Step, *names: str) -> None:
    for name in names:
        with pytest.raises(AssertionError):
            assert_same(one, other, name)


# Algorithm 1 once more, slowly.


def slow_easiness(p_s: Tensor, p_t: Tensor, tau: float, valid: Tensor, background: int | None) -> list[float]:
    """1 - Eq. 7 for each image, from probabilities."""
    result = []
    for i in range(len(p_s)):
        inside = valid[i]
        s, t = (p[i].argmax(0)[inside].tolist() for p in (p_s, p_t))
        pairs = list(zip(s, t, strict=True))
        total = 0.0
        for p, own in ((p_s, s), (p_t, t)):
            rho = (p[i].amax(0)[inside] >= tau).double().mean().item()
            frequency = Counter(own)
            if set(frequency) != {background}:
                frequency.pop(background, None)
            wiou = 0.0
            for c, count in frequency.items():
                union = sum(c in pair for pair in pairs)
                wiou += count / sum(frequency.values()) * sum(pair == (c, c) for pair in pairs) / union
            total += rho / 2 * wiou
        result.append(total)
    return result


def slow_step(method: Method, batch: SemiBatch, at: Progress) -> dict[str, Tensor]:
    """Algorithm 1 with the default settings, pixel by pixel; L_u as in Eq. 11."""
    cfg, images = method.config, range(len(batch.weak))
    with torch.no_grad():
        p_s = copy.deepcopy(method.student).eval()(batch.weak).softmax(1)
        p_t = copy.deepcopy(method.teacher).eval()(batch.weak).softmax(1)
    easy = slow_easiness(p_s, p_t, cfg.threshold, batch.valid, 0)
    target, sure = p_t.argmax(1), p_t.amax(1)

    strong = torch.stack([easy[i] * batch.strong[0][i] + (1 - easy[i]) * batch.weak[i] for i in images])  # Eq. 8
    generator = fold_in(at.seed, "cutmix", at.step)
    box = sample_boxes(len(images), 16, 16, generator)
    fires = torch.rand((), generator=generator).item() < sum(easy) / len(easy)
    mixed, mixed_target, mixed_sure, mixed_valid = strong.clone(), target.clone(), sure.clone(), batch.valid.clone()
    if fires:
        ascending = sorted(images, key=lambda i: easy[i])
        mixed = batch.weak.clone()
        for m, n in zip(ascending, reversed(ascending), strict=True):  # Eq. 9
            for y, x in box[m].nonzero().tolist():
                mixed[m, :, y, x] = batch.weak[n, :, y, x]
                mixed_target[m, y, x], mixed_sure[m, y, x] = target[n, y, x], sure[n, y, x]
                mixed_valid[m, y, x] = batch.valid[n, y, x]

    student = method.student.train()
    logits = student(torch.cat([batch.image, strong, mixed])).double()
    nll = -logits.log_softmax(1)
    labeled = [nll[i, batch.label[i, y, x], y, x] for i, y, x in (batch.label != IGNORE).nonzero().tolist()]

    def consistency(nll: Tensor, target: Tensor, sure: Tensor, valid: Tensor) -> Tensor:
        kept = [nll[target[y, x], y, x] for y, x in valid.nonzero().tolist() if sure[y, x] >= cfg.threshold]
        return sum(kept, torch.zeros((), dtype=torch.float64)) / valid.sum()

    terms = []
    for i in images:
        on_strong = consistency(nll[2 + i], target[i], sure[i], batch.valid[i])
        on_mixed = consistency(nll[2 + len(images) + i], mixed_target[i], mixed_sure[i], mixed_valid[i])
        terms.append(easy[i] / 2 * (on_strong + on_mixed) if fires else easy[i] * on_strong)
    unlabeled = sum(terms, torch.zeros((), dtype=torch.float64)) / len(images)
    labeled_loss = sum(labeled, torch.zeros((), dtype=torch.float64)) / len(labeled)
    return {
        "total": labeled_loss + cfg.unlabeled_weight * unlabeled,
        "labeled": labeled_loss,
        "unlabeled": unlabeled,
        "easiness": torch.tensor(easy),
        "mixed": torch.tensor(fires),
    }


@pytest.mark.parametrize("fired", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("unlabeled", [4, 3])
def test_a_step_equals_algorithm_1(make, fired, norm, unlabeled):
    method, batch = make(norm), batch_of(unlabeled)
    at = when(fired, method, batch=batch)
    slow = copy.deepcopy(method)
    expected = slow_step(slow, batch, at)
    losses = method.losses(batch, at)
    easy = expected["easiness"]
    assert 0.05 < easy.min() < easy.max() - 0.1  # a mistake would change the result of this case
    torch.testing.assert_close(1 - losses.hardness, easy, atol=1e-5, rtol=1e-4)
    assert losses.scalars["easiness"].item() == pytest.approx(easy.mean().item(), rel=1e-5)
    assert bool(losses.scalars["mixed"]) == expected["mixed"] == fired
    for name in ("labeled", "unlabeled"):
        assert losses.scalars[name].item() == pytest.approx(expected[name].item(), rel=1e-4)
        assert losses.scalars[name] > 0
    assert losses.total.item() == pytest.approx(expected["total"].item(), rel=1e-4)

    losses.total.backward()
    expected["total"].backward()
    for own, its in zip(method.student.parameters(), slow.student.parameters(), strict=True):
        torch.testing.assert_close(own.grad, its.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("cutmix_probability", [0.0, 1.0])
def test_with_every_adaptation_off_it_is_standard_consistency(make, cutmix_probability):
    """Eq. 4 on the strong view, and if CutMix always fires, half of it on pasted views."""
    off = {"loss": "standard", "intensity": "standard", "cutmix": "standard"}
    method = make(cutmix_probability=cutmix_probability, **off)
    step = take(method, Progress(0, 10))
    assert torch.equal(step.views[1], BATCH.strong[0])

    probability = copy.deepcopy(method.teacher).eval()(BATCH.weak).softmax(1)
    target, sure = probability.argmax(1), probability.amax(1)
    nll = -method.student(BATCH.strong[0]).log_softmax(1)
    total = 0.0
    for i in range(4):  # Eq. 4
        for y, x in BATCH.valid[i].nonzero().tolist():
            if sure[i, y, x] >= TAU:
                total += nll[i, target[i, y, x], y, x].item() / BATCH.valid[i].sum().item() / 4
    labeled = cross_entropy(method.student(BATCH.image), BATCH.label).item()
    unlabeled = total
    if cutmix_probability == 1:
        box = sample_boxes(4, 16, 16, Progress(0, 10).generator("cutmix"))
        unlabeled = (total + pasted_loss(method, step.views[2], box).item()) / 2
        assert unlabeled != pytest.approx(total, rel=1e-3)
    assert step.fired == bool(cutmix_probability)
    assert step["unlabeled"] == pytest.approx(unlabeled, rel=1e-4)
    assert step.losses.total.item() == pytest.approx(labeled + 3 * unlabeled, rel=1e-4)


def pasted_loss(method: Method, view: Tensor, box: Tensor) -> Tensor:
    """Unweighted loss on a pasted view, whose partners are found by comparing pixels."""
    teacher, losses = predict(method.teacher, BATCH.weak), []
    for i in range(4):
        (partner,) = (j for j in range(4) if torch.equal(view[i][:, box[i]], BATCH.weak[j][:, box[i]]))
        label, sure, valid = (
            torch.where(box[i], of[partner], of[i]) for of in (teacher.label, teacher.confidence, BATCH.valid)
        )
        losses.append(
            confident_cross_entropy(method.student(view[i : i + 1]), label[None], sure[None], TAU, valid[None])
        )
    return torch.cat(losses).mean()


def by_view(method: Method, step: Step) -> tuple[Tensor, Tensor]:
    """Unweighted loss of each image on the first and on an unmixed second view."""
    teacher = predict(method.teacher, BATCH.weak)
    first, second = (
        confident_cross_entropy(method.student(view), teacher.label, teacher.confidence, TAU, BATCH.valid)
        for view in step.views[1:3]
    )
    return first, second


# One switch, one change.


@pytest.mark.parametrize("fired", [True, False])
def test_loss(make, fired):
    adaptive, standard = make(), make(loss="standard")
    at = when(fired, adaptive, standard)
    one, other = take(adaptive, at), take(standard, at)
    assert_same(one, other, "labeled", "hardness", "first", "second", "mixed", "confident")
    assert_differ(one, other, "unlabeled")
    if not fired:
        easy, (first, second) = easy_of(adaptive), by_view(adaptive, one)
        assert one["unlabeled"] == pytest.approx((easy * (first + second) / 2).mean().item(), rel=1e-5)
        assert other["unlabeled"] == pytest.approx(((first + second) / 2).mean().item(), rel=1e-5)


def test_easy_images_weigh_more(make):
    """Eq. 11, and not line 7 of Algorithm 1 as it is printed."""
    method = make(intensity="standard", cutmix="standard", cutmix_probability=0.0)
    easy, step = easy_of(method), take(method, Progress(0, 10))
    first, _ = by_view(method, step)
    assert step["unlabeled"] == pytest.approx((easy * first).mean().item(), rel=1e-5)
    assert step["unlabeled"] != pytest.approx(((1 - easy) * first).mean().item(), rel=1e-2)


def test_hardness_scale(make):
    """The student predicts the weak view at half the size. Only hardness and what depends on it change."""
    always = {"cutmix": "standard", "cutmix_probability": 1.0}
    exact, cheap = make(**always), make(**always, hardness_scale=0.5)
    seen: list[tuple[int, ...]] = []
    for network in (cheap.student, cheap.teacher):
        network.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[-2:]) if not m.training else None)
    one, other = take(exact, Progress(0, 10)), take(cheap, Progress(0, 10))
    assert seen == [(16, 16), (8, 8)]  # teacher, whose labels are needed at full size; student
    assert_same(one, other, "labeled", "confident", "mixed", "second")
    assert_differ(one, other, "hardness", "unlabeled", "first")
    small = rescale(BATCH.weak, 0.5)
    teacher, valid = subsample(predict(cheap.teacher, BATCH.weak), BATCH.valid, (8, 8))
    easy = easiness(predict(cheap.student, small), teacher, TAU, valid, 0)
    assert torch.equal(other.losses.hardness, 1 - easy)


def test_hardness_every(make):
    """The student predicts in every third step. In others the last agreement scales the teacher's confident ratio."""
    exact, cheap = (make(ema_decay=0.9999, hardness_every=every) for every in (1, 3))
    looked: list[int] = []
    cheap.student.register_forward_pre_hook(lambda m, args: looked.append(step) if not m.training else None)
    for step in range(6):
        with torch.no_grad():
            for method in (exact, cheap):
                method.teacher.net.segmentation_head.weight *= 1 + step / 10  # so that levels differ
        at = Progress(30_000 + step, 40_000)  # the teacher hardly follows now
        one, other = take(exact, at), take(cheap, at)
        teacher = predict(cheap.teacher, BATCH.weak)
        alone = easiness(teacher, teacher, TAU, BATCH.valid, 0)
        assert torch.equal(alone, confident_ratio(teacher.confidence, TAU, BATCH.valid))
        if step % 3 == 0:
            assert_same(one, other, "hardness", "unlabeled", "first", "second", "mixed")
            level = ((1 - one.losses.hardness).mean() / alone.mean()).clamp(max=1)
        else:
            assert_differ(one, other, "hardness", "unlabeled")
            torch.testing.assert_close(other.losses.hardness, 1 - alone * level)
        for method, taken in ((exact, one), (cheap, other)):
            method.after_step(at, taken.observed)
        torch.testing.assert_close(cheap.agreement, level)
    assert looked == [0, 3]


def test_the_agreement_of_student_and_teacher_is_kept_in_checkpoints_only_if_it_is_needed(make):
    cheap = make(hardness_every=3)
    cheap.after_step(Progress(0, 10), take(cheap, Progress(0, 10)).observed)
    assert 0.1 < cheap.agreement < 0.9
    again = make(hardness_every=3)
    again.load_state_dict(cheap.state_dict())
    assert_same(take(cheap, Progress(1, 10)), take(again, Progress(1, 10)), "hardness", "unlabeled")
    assert not any("agreement" in key for key in make().state_dict())


def test_while_nothing_is_sure_everything_is_hard(make):
    cheap = make(hardness_every=2, threshold=1.0)
    for step in range(2):
        taken = take(cheap, Progress(step, 10))
        assert (taken.losses.hardness == 1).all()
        cheap.after_step(Progress(step, 10), taken.observed)
    assert cheap.agreement == 1


def test_intensity(make):
    adaptive, standard = make(), make(intensity="standard")
    easy = easy_of(adaptive)[:, None, None, None]
    at = when(True, adaptive, standard)
    one, other = take(adaptive, at), take(standard, at)
    assert_same(one, other, "labeled", "hardness", "second", "mixed", "confident")
    assert torch.equal(other.views[1], BATCH.strong[0])
    torch.testing.assert_close(one.views[1], easy * BATCH.strong[0] + (1 - easy) * BATCH.weak)
    at = when(False, adaptive, standard)
    for step in (take(adaptive, at), take(standard, at)):
        assert torch.equal(step.views[2], step.views[1])


def partners_of(step: Step) -> list[int]:
    """The number of the image from which each image of the pasted view has pixels, or its own number."""
    partners = []
    for i, view in enumerate(step.views[2]):
        foreign = (view != BATCH.weak[i]).any(0)
        partners.append(next((j for j in range(4) if foreign.any() and (view == BATCH.weak[j])[:, foreign].all()), i))
    return partners


def test_cutmix(make):
    adaptive, standard = make(), make(cutmix="standard")
    at = when(True, adaptive, standard)
    one, other = take(adaptive, at), take(standard, at)
    assert_same(one, other, "labeled", "hardness", "first", "confident")
    rank = easy_of(adaptive).argsort().argsort()
    assert [int(rank[i] + rank[p]) for i, p in enumerate(partners_of(one))] == [3, 3, 3, 3]
    drawn = set()
    for step in range(30):
        taken = take(standard, Progress(step, 30))
        if taken.fired:
            drawn.add(tuple(partners_of(taken)))
    assert all(p != i for partners in drawn for i, p in enumerate(partners))
    assert len(drawn) > 3
    at = when(False, adaptive, standard)
    assert_same(take(adaptive, at), take(standard, at), "labeled", "unlabeled", "hardness", "first", "second")


def how_often(method: Method, steps: int = 300) -> float:
    """Share of the steps in which CutMix fires. What the networks say of the batch is the same in all of them."""
    with torch.no_grad():
        whole = method.alone(BATCH, Progress(0, steps))
        return sum(method(BATCH, Progress(step, steps), whole).scalars["mixed"].item() for step in range(steps)) / steps


def test_cutmix_fires_by_mean_easiness(make):
    method = make()
    easy = easy_of(method).mean().item()
    assert abs(easy - 0.5) > 0.1
    assert how_often(method) == pytest.approx(easy, abs=0.07)
    always = make(threshold=0.0)
    always.teacher.load_state_dict(always.student.state_dict())
    assert how_often(always, 50) == 1
    assert how_often(make(threshold=1.0), 50) == 0


@pytest.mark.parametrize(("probability", "expected"), [(None, 0.5), (0.2, 0.2), (0.0, 0.0), (1.0, 1.0)])
def test_cutmix_probability(make, probability, expected):
    method = make(cutmix="standard", cutmix_probability=probability)
    if expected in (0, 1):
        assert how_often(method, 50) == expected
    else:
        assert how_often(method) == pytest.approx(expected, abs=0.07)
    one, other = take(method, Progress(0, 10)), take(make(cutmix="standard"), Progress(0, 10))
    assert_same(one, other, "labeled", "hardness", "first", "confident")


@pytest.mark.parametrize(
    ("setting", "background", "ignored"),
    [
        ("background", 0, 0),
        ("background", 2, 2),
        ("background", None, None),
        ("none", 0, None),
        (1, 0, 1),
        (0, None, 0),
    ],
)
def test_ignore_class(make, setting, background, ignored):
    table = replace(CLASSES, background=background)
    method, reference = make(ignore_class=setting, classes=table), make()
    one, other = take(method, Progress(0, 10)), take(reference, Progress(0, 10))
    assert torch.equal(one.losses.hardness, 1 - easy_of(method, ignore_class=ignored))
    assert_same(one, other, "labeled", "confident")
    if ignored != 0:
        assert_differ(one, other, "hardness")


@pytest.mark.parametrize("wrong", [3, -1, 255])
def test_a_class_to_ignore_that_the_data_do_not_have(make, wrong):
    with pytest.raises(UserError, match=f"ignore_class.*{wrong}.*3 classes"):
        make(ignore_class=wrong)


def test_all_ignored(make):
    every, hardest = make(), make(all_ignored="hardest")
    one, other = take(every, Progress(0, 10)), take(hardest, Progress(0, 10))
    assert_same(one, other, "labeled", "unlabeled", "hardness", "first", "second")  # every image has other classes
    for method in (every, hardest):
        for network in (method.student, method.teacher):
            nn.init.constant_(network.net.segmentation_head.bias, -50.0)
            with torch.no_grad():
                network.net.segmentation_head.bias[0] = 50.0
    one, other = take(every, Progress(0, 10)), take(hardest, Progress(0, 10))
    assert one.losses.hardness.tolist() == [0, 0, 0, 0]
    assert other.losses.hardness.tolist() == [1, 1, 1, 1]
    assert other["unlabeled"] == 0
    assert_same(one, other, "labeled", "confident")
    with pytest.raises(UserError, match=r"method\.all_ignored: .*ignore_class"):
        make(all_ignored="hardest", ignore_class="none")


def test_ignore_padding(make):
    masked, counted = make(), make(ignore_padding=False)
    one, other = take(masked, Progress(0, 10)), take(counted, Progress(0, 10))
    assert_same(one, other, "labeled")
    assert torch.equal(one.losses.hardness, 1 - easy_of(masked))
    everywhere = torch.ones_like(BATCH.valid)
    assert torch.equal(other.losses.hardness, 1 - easy_of(masked, valid=everywhere))
    without = take(masked, Progress(0, 10), replace(BATCH, valid=everywhere))
    assert_same(without, other, "labeled", "unlabeled", "hardness", "first", "second", "mixed", "confident")


def test_padding_changes_nothing(make):
    method = make()
    at = when(False, method)
    near = nn.functional.max_pool2d(BATCH.valid.float(), 3, 1, 1).bool()[:, None]  # the network sees one pixel around
    changed = replace(
        BATCH,
        weak=torch.where(near, BATCH.weak, BATCH.weak.flip(2) + 3),
        strong=(torch.where(near, BATCH.strong[0], BATCH.strong[0].flip(2) - 3),),
    )
    one, other = take(method, at), take(method, at, changed)
    assert not torch.equal(one.views[1], other.views[1])
    assert_same(one, other, "labeled", "unlabeled", "hardness", "mixed", "confident", "easiness")


def test_padding_is_pasted_with_its_mask(make):
    """A padded pixel that lands in a valid image has no loss, a valid one in a padded region has."""
    method = make(cutmix="standard", cutmix_probability=1.0, loss="standard")
    step = take(method, Progress(0, 10))
    box = sample_boxes(4, 16, 16, Progress(0, 10).generator("cutmix"))
    first, _ = by_view(method, step)
    expected = (first.mean() + pasted_loss(method, step.views[2], box)) / 2
    assert step["unlabeled"] == pytest.approx(expected.item(), rel=1e-4)


def test_when_unmixed(make):
    full, half = make(), make(when_unmixed="half")
    at = when(False, full, half)
    one, other = take(full, at), take(half, at)
    assert_same(one, other, "labeled", "hardness", "first", "second", "mixed", "confident")
    assert other["unlabeled"] == pytest.approx(one["unlabeled"] / 2, rel=1e-5)
    at = when(True, full, half)
    one, other = take(full, at), take(half, at)
    assert_same(one, other, "labeled", "unlabeled", "hardness", "first", "second", "confident")


def test_boxes(make):
    each, official = make(), make(boxes="official")
    at = when(True, each, official)
    one, other = take(each, at), take(official, at)
    assert_same(one, other, "labeled", "hardness", "first", "mixed", "confident")
    for step, sample in ((one, sample_boxes), (other, sample_boxes_official)):
        box = sample(4, 16, 16, at.generator("cutmix"))
        assert torch.equal((step.views[2] != BATCH.weak).any(1), box)
    at = when(False, each, official)
    assert_same(take(each, at), take(official, at), "labeled", "unlabeled", "hardness", "first", "second")


def test_extra_weak_forward(make):
    """Only batch norm sees the additional images: without it nothing changes."""
    at = Progress(0, 10)
    plain, extra = make(norm=True), make(norm=True, extra_weak_forward=True)
    one, other = take(plain, at), take(extra, at)
    assert len(one.views) == 3
    assert len(other.views) == 4
    assert torch.equal(other.views[3], BATCH.weak)
    assert_same(one, other, "hardness", "first", "second", "mixed", "confident")
    statistics = [method.student.net.encoder[1].running_mean for method in (plain, extra)]
    assert not torch.equal(*statistics)
    one, other = take(make(), at), take(make(extra_weak_forward=True), at)
    assert_same(one, other, "labeled", "unlabeled", "hardness", "first", "second", "mixed", "confident")


def test_copy_steps(make):
    plain, copying = make(norm=True), make(norm=True, copy_steps=3)
    one, other = take(plain, Progress(0, 10)), take(copying, Progress(0, 10))
    assert_same(one, other, "labeled", "unlabeled", "hardness")
    before = copying.teacher.net.segmentation_head.weight.clone()
    for step, decay in ((3, 3 / 4), (1, 0.0), (2, 0.0)):
        own, its = copying.teacher.net.segmentation_head.weight.clone(), copying.student.net.segmentation_head.weight
        copying.after_step(Progress(step, 10), other.observed)
        torch.testing.assert_close(copying.teacher.net.segmentation_head.weight, decay * own + (1 - decay) * its)
    assert not torch.equal(before, copying.teacher.net.segmentation_head.weight)
    for name, tensor in copying.teacher.state_dict().items():
        assert torch.equal(tensor, copying.student.state_dict()[name]), name
    plain.after_step(Progress(2, 10), one.observed)
    assert not torch.equal(plain.teacher.net.segmentation_head.weight, plain.student.net.segmentation_head.weight)


@pytest.mark.parametrize(("decay", "step", "expected"), [(0.996, 1000, 0.996), (0.5, 1000, 0.5), (0.996, 1, 0.5)])
def test_ema_decay(make, decay, step, expected):
    method = make(norm=True, ema_decay=decay)
    reference = take(make(norm=True), Progress(step, 2000))
    taken = take(method, Progress(step, 2000))
    assert_same(taken, reference, "labeled", "unlabeled", "hardness")
    before, student = copy.deepcopy(method.teacher.state_dict()), copy.deepcopy(method.student.state_dict())
    method.after_step(Progress(step, 2000), taken.observed)
    for name, tensor in method.teacher.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected * before[name] + (1 - expected) * student[name])
        assert torch.equal(method.student.state_dict()[name], student[name])


def test_labeled_loss(make):
    plain, ohem = make(), make(labeled_loss=LabeledLoss(kind="ohem", ohem_threshold=0.2, min_kept=5))
    at = Progress(0, 10)
    one, other = take(plain, at), take(ohem, at)
    assert_same(one, other, "unlabeled", "hardness", "first", "second", "mixed", "confident")
    logits = plain.student(BATCH.image)
    assert one["labeled"] == pytest.approx(cross_entropy(logits, BATCH.label).item(), rel=1e-5)
    assert other["labeled"] == pytest.approx(ohem_cross_entropy(logits, BATCH.label, 0.2, 5).item(), rel=1e-5)
    assert_differ(one, other, "labeled")


def test_strong(make):
    pool = intensity.Config(num_ops=3, with_replacement=True)
    plain, other = make(), make(strong=pool)
    assert plain.views.unlabeled
    assert plain.views.strong == (intensity.Config(),)
    assert other.views.strong == (pool,)
    at = Progress(0, 10)  # the engine makes the views; for the same batch the step is the same
    assert_same(take(plain, at), take(other, at), "labeled", "unlabeled", "hardness", "first", "second")


def test_threshold(make):
    at = Progress(0, 10)
    steps = {tau: take(make(threshold=tau), at) for tau in (0.0, TAU, 1.0)}
    for step in steps.values():
        assert_same(step, steps[TAU], "labeled")
    sure = predict(make().teacher, BATCH.weak).confidence >= TAU
    ratio = (sure & BATCH.valid).sum((1, 2)) / BATCH.valid.sum((1, 2))
    assert steps[TAU]["confident"] == pytest.approx(ratio.mean().item(), rel=1e-6)
    assert steps[0.0]["confident"] == 1
    assert steps[1.0]["confident"] == 0
    assert steps[1.0]["unlabeled"] == 0
    assert (steps[1.0].losses.hardness == 1).all()
    assert (steps[0.0].losses.hardness < steps[TAU].losses.hardness).all()
    for tau, step in steps.items():
        assert torch.equal(step.losses.hardness, 1 - easy_of(make(threshold=tau)))


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_unlabeled_weight(make, weight):
    step = take(make(unlabeled_weight=weight), Progress(0, 10))
    assert_same(step, take(make(), Progress(0, 10)), "labeled", "unlabeled", "hardness", "first", "second")
    assert step.losses.total.item() == pytest.approx(step["labeled"] + weight * step["unlabeled"], rel=1e-6)
    assert step["unlabeled"] > 0


# Properties that hold for all settings.


def test_hardness_is_one_minus_easiness(make):
    step = take(make(), Progress(0, 10))
    assert torch.equal(step.losses.hardness, 1 - easy_of(make()))
    assert step["easiness"] == pytest.approx(1 - step.losses.hardness.mean().item(), rel=1e-6)


def test_everything_but_the_total_is_detached(make):
    losses = make(norm=True).losses(BATCH, Progress(0, 10))
    assert losses.total.requires_grad
    assert not losses.hardness.requires_grad
    assert not any(scalar.requires_grad for scalar in losses.scalars.values())


def test_the_same_step_is_the_same_whatever_came_before(make):
    at = Progress(7, 100, seed=1)
    alone, after = make(), make()
    for step in range(7):
        with torch.no_grad():
            after.losses(BATCH, Progress(step, 100, seed=1))
    one, other = take(alone, at), take(after, at)
    assert_same(one, other, "labeled", "unlabeled", "first", "second", "mixed", "hardness")


def test_seed_and_step_each_draw_other_boxes(make):
    method = make(cutmix="standard", cutmix_probability=1.0)
    at = Progress(7, 100, seed=1)
    step = take(method, at)
    for other in (replace(at, seed=2), replace(at, step=8)):
        taken = take(method, other)
        assert_same(step, taken, "labeled", "first", "hardness")
        assert_differ(step, taken, "second", "unlabeled")
    assert_same(step, take(method, replace(at, num_steps=50)), "second", "unlabeled")


def test_the_teacher_and_the_pseudo_labels_come_from_eval_mode(make):
    method = make(norm=True)
    modes: dict[str, list[bool]] = {"student": [], "teacher": []}
    for name, seen in modes.items():
        network = getattr(method, name)
        network.net.encoder[1].register_forward_pre_hook(lambda module, _, seen=seen: seen.append(module.training))
    before = copy.deepcopy(method.teacher.state_dict())
    method.losses(BATCH, Progress(0, 10)).total.backward()
    assert modes == {"student": [False, True], "teacher": [False]}
    assert method.student.net.encoder[1].num_batches_tracked == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.teacher.state_dict().items())
    assert all(module.training for module in method.modules())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.student.parameters())


def test_a_single_unlabeled_image(make):
    batch = batch_of(1)
    step = take(make(norm=True), when(True, make(norm=True), batch=batch), batch)
    assert torch.equal(step.views[2], batch.weak)  # its own partner
    assert torch.isfinite(step.losses.total)


def test_images_that_are_all_padding(make):
    losses = make(norm=True).losses(replace(BATCH, valid=torch.zeros_like(BATCH.valid)), Progress(0, 10))
    assert losses.scalars["unlabeled"] == 0
    assert (losses.hardness == 1).all()
    losses.total.backward()


def test_the_teacher_is_evaluated(make):
    method = make()
    assert list(method.evaluated().values()) == [(method.teacher,), (method.student,)]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [{}, {"cutmix": "standard", "boxes": "official", "ignore_padding": False}, {"hardness_every": 2}],
)
def test_the_host_never_waits(make, no_host_sync, settings, step):
    at = Progress(step, 10)
    losses = no_host_sync(lambda method, batch: method.losses(batch, at), make(norm=True, **settings), BATCH)
    assert losses.total.is_meta


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.threshold, config.unlabeled_weight, config.ema_decay) == (0.95, 3.0, 0.996)
    assert (config.loss, config.intensity, config.cutmix) == ("adaptive", "adaptive", "adaptive")


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"cutmix_probability": 0.5}, "cutmix: standard"),
        ({"cutmix": "standard", "cutmix_probability": 1.5}, "cutmix_probability"),
        ({"threshold": 1.5}, "threshold"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"copy_steps": -1}, "copy_steps"),
        ({"unlabeled_weight": -1}, "unlabeled_weight"),
        ({"ignore_class": "road"}, "ignore_class"),
        ({"cutmix": "none"}, "cutmix"),
    ],
)
def test_settings_that_cannot_be_meant(settings, place):
    with pytest.raises(ValidationError, match=place):
        Config(**settings)
