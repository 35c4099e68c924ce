import copy
import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from semiseg.augment.cutmix import sample_some_boxes
from semiseg.methods.fixmatch import Config, Method
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
AT = Progress(3, 10, seed=1)
TAU = 0.6
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(norm, **settings) -> a method; its teacher, if any, differs from the student."""

    def make(norm: bool = False, **settings) -> Method:
        method = Method(Config(**({"threshold": TAU} | settings)), lambda: tiny(0, norm), CLASSES)
        if method.teacher:
            differ(method.teacher)
        return method.train()

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 16, 16), generator=generator)
    label[0, :5] = IGNORE
    weak, strong = torch.randn(2, slots, 3, 16, 16, generator=generator)
    valid = torch.ones(slots, 16, 16, dtype=torch.bool)
    valid[0, :, 10:] = False
    return SemiBatch(torch.randn(weak.shape, generator=generator), label, weak, (strong,), valid, torch.arange(slots))


BATCH = batch_of()


def view_of(method: Method, batch: SemiBatch = BATCH, at: Progress = AT) -> tuple[Losses, Tensor]:
    """The losses, and the unlabeled view that the student was trained on."""
    seen: list[Tensor] = []
    handle = method.student.register_forward_pre_hook(lambda m, args: seen.append(args[0]) if m.training else None)
    losses = method.losses(batch, at)
    handle.remove()
    (together,) = seen  # one pass for everything that has a gradient
    assert torch.equal(together[: len(batch.image)], batch.image)
    return losses, together[len(batch.image) :]


@pytest.mark.parametrize("teacher", ["student", "ema"])
@pytest.mark.parametrize("cutmix_probability", [0.0, 0.5, 1.0])
def test_a_step_equals_eq_4(make, teacher, cutmix_probability):
    """Pixel by pixel, in double precision; partners are found by comparing pixels."""
    method = make(norm=True, teacher=teacher, cutmix_probability=cutmix_probability, unlabeled_weight=0.7)
    network = copy.deepcopy(method.teacher or method.student).eval()
    student = copy.deepcopy(method.student)
    losses, view = view_of(method)

    probability = network(BATCH.weak).softmax(1)
    sure, target = probability.max(1)
    nll = -student(torch.cat([BATCH.image, view])).double().log_softmax(1)
    on_label = [nll[i, BATCH.label[i, y, x], y, x].item() for i, y, x in (BATCH.label != IGNORE).nonzero().tolist()]
    boxes = [view[i] != BATCH.strong[0][i] for i in range(4)]
    total = 0.0
    for i, box in enumerate(boxes):
        partners = [j for j in range(4) if torch.equal(view[i][box], BATCH.strong[0][j][box])]
        partner = partners[0] if box.any() else i
        assert len(partners) == (1 if box.any() else 4)
        source = torch.where(box[0], partner, i)
        kept, valid = 0.0, 0
        for y in range(16):
            for x in range(16):
                j = source[y, x]
                valid += BATCH.valid[j, y, x].item()
                if BATCH.valid[j, y, x] and sure[j, y, x] >= TAU:
                    kept += nll[4 + i, target[j, y, x], y, x].item()
        total += kept / valid / 4
    assert total > 0.05
    labeled = sum(on_label) / len(on_label)
    assert losses.scalars["labeled"].item() == pytest.approx(labeled, rel=1e-5)
    assert losses.scalars["unlabeled"].item() == pytest.approx(total, rel=1e-5)
    assert losses.total.item() == pytest.approx(labeled + 0.7 * total, rel=1e-5)
    confident = [((sure[i] >= TAU) & BATCH.valid[i]).sum() / BATCH.valid[i].sum() for i in range(4)]
    assert losses.scalars["confident"].item() == pytest.approx(sum(confident).item() / 4, rel=1e-5)
    number = sum(bool(box.any()) for box in boxes)
    assert number == 4 * cutmix_probability if cutmix_probability != 0.5 else 0 < number < 4


def test_the_unlabeled_weight_may_rise(make):
    method = make(ramp=0.5)
    for step, factor in ((0, math.exp(-5)), (25, math.exp(-5 / 4)), (50, 1.0), (99, 1.0)):
        losses, _ = view_of(method, at=Progress(step, 100))
        labeled, unlabeled = losses.scalars["labeled"], losses.scalars["unlabeled"]
        assert losses.total.item() == pytest.approx((labeled + factor * unlabeled).item(), rel=1e-5)


def test_each_image_has_its_own_partner_and_box_in_each_step(make):
    method = make(cutmix_probability=1.0)
    views = [view_of(method, at=Progress(step, 10))[1] for step in range(2)]
    boxes = [(view != BATCH.strong[0])[:, 0] for view in views]
    assert len({tuple(box.flatten().tolist()) for box in torch.cat(boxes)}) == 8
    assert torch.equal(boxes[0], sample_all_after_partners(Progress(0, 10)))


def sample_all_after_partners(at: Progress) -> Tensor:
    generator = at.generator("cutmix")
    torch.randperm(4, generator=generator)
    return sample_some_boxes(4, 16, 16, generator, probability=1.0)


def test_the_network_labels_images_itself_or_its_average_does(make):
    alone, averaged = make(), make(teacher="ema", ema_decay=0.25)
    assert alone.teacher is None
    assert alone.evaluated() == {"student": (alone.student,)}
    assert averaged.evaluated() == {"teacher": (averaged.teacher,), "student": (averaged.student,)}
    for method in (alone, averaged):
        before = copy.deepcopy(method)
        method.after_step(Progress(5, 10), method.observe(BATCH, AT))
        for own, old in zip(method.student.parameters(), before.student.parameters(), strict=True):
            assert torch.equal(own, old)
    own, student, old = (next(net.parameters()) for net in (averaged.teacher, averaged.student, before.teacher))
    torch.testing.assert_close(own, 0.25 * old + 0.75 * student)
    default = make(teacher="ema")
    old = next(default.teacher.parameters()).clone()
    default.after_step(Progress(9999, 10_000), default.observe(BATCH, AT))
    torch.testing.assert_close(next(default.teacher.parameters()), 0.996 * old + 0.004 * student)


def test_a_decay_without_an_average_is_an_error():
    with pytest.raises(ValidationError, match="ema_decay belongs to teacher: ema"):
        Config(ema_decay=0.9)


def test_a_threshold_of_0_keeps_every_pixel_and_a_high_one_none(make):
    assert view_of(make(threshold=0.0))[0].scalars["confident"] == 1
    assert view_of(make(threshold=1.0))[0].scalars["unlabeled"] == 0
