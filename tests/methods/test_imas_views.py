"""iMAS with two strong views: FixMatch with all switches off, and each switch by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from semiseg.augment import paste
from semiseg.augment.blend import blend
from semiseg.augment.cutmix import hard_easy_partners
from semiseg.hardness import easiness
from semiseg.methods import fixmatch, imas_views
from semiseg.models.predict import predict
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
AT = Progress(3, 10, seed=1)
OFF = {"views": 1, "loss": "standard", "intensity": "standard", "pairs": "standard"}
Make = Callable[..., imas_views.Method]


def batch_of(views: int, slots: int = 5, side: int = 16) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, side, side), generator=generator)
    label[0, :5] = IGNORE
    image, weak, *strong = torch.randn(2 + views, slots, 3, side, side, generator=generator)
    valid = torch.ones(slots, side, side, dtype=torch.bool)
    valid[0, :, 10:] = False
    return SemiBatch(image, label, weak, tuple(strong), valid, torch.arange(slots))


def disturbed(method):
    generator = fold_in(0, "teacher")
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return method.train()


@pytest.fixture
def make(tiny) -> Make:
    """make(**settings) -> a method whose teacher differs from the student."""

    def make(**settings) -> imas_views.Method:
        config = imas_views.Config(**({"threshold": 0.5} | settings))
        return disturbed(imas_views.Method(config, lambda: tiny(0, False), CLASSES))

    return make


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_with_all_off_it_is_fixmatch(make, tiny, probability):
    shared = {"threshold": 0.5, "unlabeled_weight": 0.7, "cutmix_probability": probability}
    ours = make(**OFF | shared | ({} if probability else {"pairs": None}))
    theirs = disturbed(fixmatch.Method(fixmatch.Config(teacher="ema", **shared), lambda: tiny(0, False), CLASSES))
    batch = batch_of(1)
    mine, yours = ours.losses(batch, AT), theirs.losses(batch, AT)
    assert mine.scalars["unlabeled"] > 0
    assert torch.equal(mine.total, yours.total)
    assert mine.hardness is None


def easy_of(method: imas_views.Method, batch: SemiBatch) -> torch.Tensor:
    student, teacher = (predict(net, batch.weak) for net in (method.student, method.teacher))
    return easiness(student, teacher, 0.5, batch.valid, 0)


def test_an_images_loss_weighs_its_easiness(make):
    """Two views without CutMix: the mean over images of easiness times the mean over its two views."""
    no_cutmix = {"cutmix_probability": 0.0, "pairs": None}
    settings = OFF | no_cutmix | {"views": 2, "loss": "adaptive", "feature_dropout": "none"}
    method, batch = make(**settings), batch_of(2)
    easy, teacher = easy_of(method, batch), predict(method.teacher, batch.weak)
    assert easy.unique().numel() == 5
    expected = 0.0
    for slot in range(5):
        for view in batch.strong:
            log = method.student(view[slot : slot + 1]).detach().log_softmax(1)[0]
            kept = batch.valid[slot] & (teacher.confidence[slot] >= 0.5)
            loss = -log.gather(0, teacher.label[slot][None])[0]
            expected += easy[slot] * loss[kept].sum() / batch.valid[slot].sum() / 2 / 5
    losses = method.losses(batch, AT)
    assert losses.scalars["unlabeled"].item() == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(losses.hardness, 1 - easy)


def test_strong_views_of_hard_images_are_softened(make):
    settings = OFF | {"views": 2, "intensity": "adaptive", "cutmix_probability": 0.0, "pairs": None}
    method, batch = make(**settings), batch_of(2)
    observed, easy = method.observe(batch, AT), easy_of(method, batch)
    assert torch.allclose(observed.image, blend(batch.weak, batch.strong[0], easy))
    assert torch.allclose(observed.second, blend(batch.weak, batch.strong[1], easy))


def test_the_hardest_image_gets_a_box_of_the_easiest(make):
    method, batch = make(**OFF | {"views": 2, "pairs": "adaptive", "cutmix_probability": 1.0}), batch_of(2)
    part = method.alone(batch, AT)
    partner = hard_easy_partners(part.observed.easy)
    for number, mixed in enumerate(method._cutmix(AT, part)):
        strong = batch.strong[number]
        pasted = (mixed.image != strong).any(1)
        assert pasted.flatten(1).any(1).tolist() == (partner != torch.arange(5)).tolist()
        assert torch.equal(mixed.image, torch.where(pasted[:, None], strong[partner], strong))
        assert torch.equal(mixed.label, torch.where(pasted, part.observed.label[partner], part.observed.label))


def test_unsure_classes_are_pasted_into_both_views(make):
    """Class 2 alone is unsure; all pixels that change are labeled 2, with confidence 1, and are the giver's pixels."""
    settings = paste.Config(probability=1.0, classes=1, scale=(1.0, 1.0))
    method, batch = make(**OFF | {"views": 2, "cutmix_probability": 0.0, "pairs": None, "paste": settings}), batch_of(2)
    method.bank.value.copy_(torch.tensor([1.0, 1.0, -50.0]))
    part = method.alone(batch, AT)
    views = [method._paste(view, AT, part) for view in part.own.views()]
    changed = [(view.image != own.image).any(1) for view, own in zip(views, part.own.views(), strict=True)]
    assert torch.equal(*changed)
    assert changed[0].flatten(1).any(1).all()
    assert (views[0].label[changed[0]] == 2).all()
    assert (views[0].confidence[changed[0]] == 1).all()
    for slot in range(5):
        pixels = views[0].image[slot][:, changed[0][slot]]
        givers = [
            other for other in range(5) if torch.allclose(batch.image[other][:, changed[0][slot]], pixels, atol=1e-5)
        ]
        assert len(givers) == 1
        assert givers[0] != slot


def test_the_bank_follows_labeled_images_in_after_step(make):
    method, batch = make(paste=paste.Config()), batch_of(2)
    observed = method.observe(batch, AT)
    assert (method.bank.updates == 0).all()
    method.after_step(AT, observed)
    assert (method.bank.updates == 1).all()
    probability = method.student.eval()(batch.image).detach().softmax(1)
    own = [probability[slot, 1][batch.label[slot] == 1].mean() for slot in range(5)]
    assert method.bank.value[1].item() == pytest.approx(float(torch.stack(own).mean()), rel=1e-4)
    assert observed.giver.shape == batch.image.shape
    assert make().observe(batch, AT).giver.numel() == 0  # without paste labeled images are not sent around


def test_pseudo_labels_are_aligned_with_the_frequencies_of_labels(make):
    """The teacher's mean probability before, that of the labels after; the bank moves in after_step alone."""
    method, batch = make(alignment=1.0), batch_of(2)
    plain = make().observe(batch, AT)
    first = method.observe(batch, AT)
    assert torch.equal(first.label, plain.label)  # nothing is known yet
    probability = method.teacher.eval()(batch.weak).detach().softmax(1)
    assert torch.allclose(first.mass, (probability * batch.valid[:, None]).sum((2, 3)), rtol=1e-4)
    method.after_step(AT, first)
    counts = torch.stack([(batch.label == index).sum() for index in range(3)]).float()
    assert torch.allclose(method.align.labeled, counts / counts.sum(), atol=1e-6)
    assert torch.allclose(method.align.predicted, first.mass.sum(0) / first.mass.sum(), atol=1e-6)
    method.align.labeled.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert (method.observe(batch, AT).label == 1).float().mean() > 0.9
    kept = [method.align.labeled.clone(), method.align.predicted.clone()]
    method.losses(batch, AT)
    assert torch.equal(kept[0], method.align.labeled)
    assert torch.equal(kept[1], method.align.predicted)


def test_the_unlabeled_weight_rises(make):
    method, batch = make(ramp=1.0), batch_of(2)
    early, late = (method.losses(batch, Progress(step, 10)) for step in (0, 9))
    parts = [(one.total - one.scalars["labeled"]) / one.scalars["unlabeled"] for one in (early, late)]
    assert parts[0].item() == pytest.approx(0.0067, abs=1e-4)
    assert parts[1].item() == pytest.approx(0.951, abs=1e-3)


def test_channels_are_dropped_in_parts_as_in_the_whole(make):
    method, batch = make(), batch_of(2, slots=4)
    whole = method.losses(batch, AT)
    everyone, total = method.alone(batch, AT), 0.0
    for rows in (slice(0, 1), slice(1, 4)):
        own = replace(everyone.own, **{name: value[rows] for name, value in vars(everyone.own).items()})
        part = replace(everyone, own=own, rows=rows, share=(rows.stop - rows.start) / 4)
        of = {name: value[rows] for name, value in vars(batch).items() if name not in ("strong", "second", "pseudo")}
        total += method(replace(batch, strong=tuple(view[rows] for view in batch.strong), **of), AT, part).total
    assert total.item() == pytest.approx(whole.total.item(), rel=1e-5)
    assert whole.scalars["unlabeled"] > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"views": 1, "feature_dropout": "complementary"}, "needs views: 2"),
        ({"cutmix_probability": 0, "pairs": "standard"}, "pairs needs"),
        (OFF | {"ignore_class": 1}, "ignore_class belongs to"),
        ({"views": 3}, "views"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        imas_views.Config(**settings)
