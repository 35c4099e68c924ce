from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.losses import class_contrast
from semiseg.methods.eln import Config, Method
from semiseg.models.build import Network, Undivided
from semiseg.models.localization import is_right, localization_loss, seen_by_localizer
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
FIRST, SECOND, THIRD = (Progress(step, 100, seed=3) for step in (13, 14, 24))  # the phases begin at 0, 14 and 24
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    """make(**settings) -> a method whose teacher has an opinion of its own."""

    def make(norm: bool = False, **settings) -> Method:
        seeds = iter(range(9))

        def build(outputs: int | None = None, channels: int = 3, model: object = None) -> Network:
            return tiny(next(seeds), norm, outputs or 3, channels)

        with seeded(0, "method"):
            method = Method(Config(**({"pixels": 40} | settings)), build, CLASSES).train()
        method.teacher.load_state_dict(tiny(7, norm).state_dict())
        with torch.no_grad():  # it trusts half of the pixels
            method.eval()
            found = method.localizer(seen_by_localizer(BATCH.weak, method.teacher(BATCH.weak)))
            method.localizer.net["segmentation_head"].bias -= found.median()
            for linear in (*method.projector[::2], *method.teacher_projector[::2]):
                linear.bias.zero_()  # so representations have many directions
        return method.train()

    return make


def batch_of(slots: int = 3) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 9, 11), generator=generator)
    label[0, :4] = IGNORE
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


def trusted_labels(method: Method) -> Tensor:
    with torch.no_grad():
        logits = method.teacher(BATCH.weak)
        correct = method.localizer(seen_by_localizer(BATCH.weak, logits)).sigmoid()[:, 0] > 0.5
    return torch.where(correct & BATCH.valid, logits.argmax(1), IGNORE)


def test_the_student_learns_the_pseudo_labels_that_the_localizer_trusts(make):
    method = make()
    label = trusted_labels(method)
    assert 0.2 < (label != IGNORE).sum() / BATCH.valid.sum() < 0.9
    assert torch.equal(method.observe(BATCH, THIRD).label, label)
    losses = method.losses(BATCH, THIRD)
    both = sum(
        F.cross_entropy(method.student(view), label, ignore_index=IGNORE) for view in (BATCH.weak, *BATCH.strong)
    )
    assert losses.scalars["unlabeled"].item() == pytest.approx(both.item(), rel=1e-5)
    share = (label != IGNORE).sum() / BATCH.valid.sum()
    assert losses.scalars["trusted"].item() == pytest.approx(share.item())


def decoded_by(decoder: Network, method: Method) -> Tensor:
    """The logits of an auxiliary decoder on labeled images."""
    with torch.no_grad():
        return decoder.net["segmentation_head"](method.student.encode(BATCH.image).maps[-1])


def test_auxiliary_decoders_learn_only_while_they_are_bad_enough(make):
    """Image by image: the factors lie between the ratios of the losses."""
    method = make()

    def means(logits: Tensor) -> Tensor:
        return torch.stack(
            [
                F.cross_entropy(one[None], its[None], ignore_index=IGNORE)
                for one, its in zip(logits, BATCH.label, strict=True)
            ]
        )

    px = (BATCH.label != IGNORE).sum((1, 2))
    main = means(method.student(BATCH.image)).detach()
    each = [means(decoded_by(decoder, method)) for decoder in method.auxiliary]
    ratios = [(one / main).sort().values for one in each]
    factors = [((one[0] + one[1]) / 2).item() for one in ratios]
    method = make(auxiliary_factors=factors)
    losses = method.losses(BATCH, SECOND)
    wanted = sum(((one * px)[one >= factor * main]).sum() / px.sum() for one, factor in zip(each, factors, strict=True))
    assert losses.scalars["auxiliary"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert make(auxiliary_factors=(1e6, 1e6)).losses(BATCH, SECOND).scalars["auxiliary"] == 0


def test_the_localizer_learns_from_the_predictions_of_all_decoders(make):
    method = make()
    with torch.no_grad():
        predictions = [method.student(BATCH.image), *(decoded_by(decoder, method) for decoder in method.auxiliary)]
        px, total = (BATCH.label != IGNORE).sum(), torch.zeros(())
        for logits in predictions:
            found = method.localizer(seen_by_localizer(BATCH.image, logits))[:, 0]
            total = total + localization_loss(found, is_right(logits, BATCH.label), BATCH.label).sum() / px
    assert len(predictions) == 3
    assert method.losses(BATCH, SECOND).scalars["localization"].item() == pytest.approx(total.item(), rel=1e-5)


def test_representations_are_contrasted_with_those_of_the_teacher(make):
    method = make()
    label = trusted_labels(method).flatten(1)
    pixel = torch.randperm(99, generator=THIRD.generator("pixels"))[:40]
    with torch.no_grad():
        maps = [network.encode(view).maps[-1] for network, view in (
            (method.teacher, BATCH.weak), (method.student, BATCH.weak), (method.student, BATCH.strong[0])
        )]  # fmt: skip
    values = [one.flatten(2)[..., pixel].mT.flatten(0, 1) for one in maps]
    key = method.teacher_projector(values[0])
    labels, total = label[:, pixel].flatten(), torch.zeros(())
    present = [c for c in range(3) if (labels == c).any()]
    assert len(present) >= 2
    assert (labels == IGNORE).any()
    for value in values[1:]:
        loss = class_contrast(method.projector(value), labels, key, labels, 0.5)
        total = total + torch.stack([loss[labels == c].mean() for c in present]).mean()
    assert method.losses(BATCH, THIRD).scalars["contrastive"].item() == pytest.approx(total.item(), rel=1e-5)


def gradients(method: Method, at: Progress, batch: SemiBatch = BATCH) -> dict[str, Tensor]:
    method.losses(batch, at).total.backward()
    return {key: parameter.grad for key, parameter in method.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("at", "learning"),
    [
        (FIRST, {"student"}),
        (SECOND, {"student", "auxiliary", "localizer"}),
        (THIRD, {"student", "auxiliary", "localizer", "projector"}),
    ],
)
def test_each_phase_trains_more(make, at, learning):
    method = make(auxiliary_factors=(0.0, 0.0))
    found = {key.partition(".")[0] for key, gradient in gradients(method, at).items() if gradient.abs().max() > 0}
    assert found == learning
    scalars, total = (losses := method.losses(BATCH, at)).scalars, losses.total
    wanted = scalars["labeled"]
    if "localizer" in learning:
        wanted = wanted + scalars["auxiliary"] + scalars["localization"]
    if "projector" in learning:
        wanted = wanted + scalars["unlabeled"] + scalars["contrastive"]
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_student_learns_nothing_from_auxiliary_decoders_and_localizer(make):
    one, other = (gradients(make(auxiliary_factors=(0.0, 0.0)), at) for at in (FIRST, SECOND))
    for key, gradient in one.items():
        if key.startswith("student"):
            torch.testing.assert_close(gradient, other[key], msg=key)


def test_the_weights_of_the_third_phase(make):
    def total(**settings) -> float:
        return make(**settings).losses(BATCH, THIRD).total.item()

    scalars = make().losses(BATCH, THIRD).scalars
    assert total() - total(unlabeled_weight=0.0) == pytest.approx(scalars["unlabeled"].item(), rel=1e-3)
    assert total() - total(contrastive_weight=0.0) == pytest.approx(scalars["contrastive"].item(), rel=1e-3)


def test_the_teacher_is_a_copy_until_the_third_phase(make):
    method = make(norm=True, ema_decay=0.9)
    pairs = ((method.teacher, method.student), (method.teacher_projector, method.projector))
    for step, decay in ((23, 0.0), (24, 0.9)):
        with torch.no_grad():
            for _, its in pairs:
                for parameter in its.parameters():
                    parameter += 1
            before = [[p.clone() for p in own.parameters()] for own, _ in pairs]
            method.after_step(at := Progress(step, 100), method.observe(BATCH, at))
        for old, (own, its) in zip(before, pairs, strict=True):
            for value, one, other in zip(old, own.parameters(), its.parameters(), strict=True):
                torch.testing.assert_close(one, torch.lerp(other, value, decay))


def test_observing_changes_no_statistics(make):
    method = make(norm=True)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.observe(BATCH, THIRD)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_auxiliary_decoders_have_no_encoder_and_weights_of_their_own(make):
    method = make()
    heads = [network.net["segmentation_head"].weight for network in (method.student, *method.auxiliary)]
    assert not any(torch.equal(one, other) for one, other in pairwise(heads))
    assert not any("encoder" in key for key, _ in method.auxiliary.named_parameters())
    assert len(make(auxiliary_factors=()).auxiliary) == 0
    assert torch.isfinite(make(auxiliary_factors=()).losses(BATCH, THIRD).total)


def test_the_localizer_is_the_network_that_the_settings_ask_for(tiny):
    asked = []

    def build(*settings: object) -> Network:
        asked.append(settings)
        return tiny(0, False, *(settings[:2] or (3,)))

    config = Config()
    Method(config, build, CLASSES)
    assert asked == [(), (), (), (1, 7, config.localizer)]
    assert (config.localizer.architecture, config.localizer.encoder) == ("deeplabv3plus", "resnet34")


def test_without_trusted_pixels_nothing_is_learned_from_unlabeled_images(make):
    method = make()
    scalars = method.losses(replace(BATCH, valid=torch.zeros_like(BATCH.valid)), THIRD).scalars
    assert scalars["unlabeled"] == scalars["contrastive"] == scalars["trusted"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"supervised": 0.5, "localizing": 0.5}, "leave no part of the run"),
        ({"auxiliary_factors": (-1.0,)}, "auxiliary_factors must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


def test_a_network_without_an_encoder_is_refused():
    with pytest.raises(UserError, match=r"^method.name: eln perturbs .* method gct$"):
        Method(Config(), lambda *_: Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1), CLASSES)
