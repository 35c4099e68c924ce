import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from semiseg.augment.cutmix import random_partners, sample_some_boxes
from semiseg.augment.features import sample_channel_dropout
from semiseg.errors import UserError
from semiseg.methods import unimatch
from semiseg.methods.prevmatch import Config, Method
from semiseg.models.build import Network, Undivided
from semiseg.models.earlier import sample_mix
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
AT = Progress(30, 100, seed=3)
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    """The method with copies that have opinions of their own."""

    def make(norm: bool = False, **settings) -> Method:
        chosen = {"threshold": 0.6, "earlier_threshold": 0.5, "copies": 3, "stores": 5} | settings
        method = Method(Config(**chosen), lambda: tiny(0, norm), CLASSES).train()
        for number, one in enumerate(method.earlier.copies):
            one.load_state_dict(tiny(number + 1, norm).state_dict())
        return method

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 12, 12), generator=generator)
    label[0, :5] = IGNORE
    weak, first, second = torch.randn(3, slots, 3, 12, 12, generator=generator)
    valid = torch.ones(slots, 12, 12, dtype=torch.bool)
    valid[0, :, 9:] = False
    image = torch.randn(weak.shape, generator=generator)
    return SemiBatch(image, label, weak, (first, second), valid, torch.arange(slots))


BATCH = batch_of()


@pytest.mark.parametrize("norm", [False, True])
def test_without_copies_it_is_unimatch(make, norm):
    method = make(norm)
    other = unimatch.Method(unimatch.Config(threshold=0.6), lambda: copy.deepcopy(method.student), CLASSES)
    for at in (Progress(0, 100, seed=2), Progress(1, 100, seed=2)):
        assert not method.earlier.held(at)
        one, its = method.losses(BATCH, at), other.losses(BATCH, at)
        assert torch.equal(one.total, its.total)
        for name in ("labeled", "unlabeled", "confident"):
            assert torch.equal(one.scalars[name], its.scalars[name])
        assert one.scalars["earlier"] == 0


def test_the_weight_rises_until_half_of_the_run_and_falls(make):
    method = make(earlier_weight=0.8, stores=4)
    weights = [method._weight(Progress(step, 100)) for step in (0, 3, 4, 25, 50, 75, 100)]
    assert weights == pytest.approx([0, 0, 0.8 * 0.08, 0.4, 0.8, 0.4, 0])  # the first copy is made after 4 steps


@pytest.mark.parametrize("at", [AT, Progress(80, 100, seed=5)])
def test_a_step_equals_the_authors_formula(make, at):
    """Pixel by pixel: (L_x + w (L_std + lambda L_prev)) / (2 + lambda), with labels of a mixture that is made here."""
    method = make(unlabeled_weight=0.7, earlier_weight=0.9, cutmix_probability=1.0)
    slow, copies = copy.deepcopy(method.student), copy.deepcopy(method.earlier.copies)
    losses = method.losses(BATCH, at)

    chosen, weights = sample_mix(at.generator("earlier networks"), 3, 3)
    generator = at.generator("cutmix")
    partner = random_partners(4, generator)
    boxes = [sample_some_boxes(4, 12, 12, generator, probability=1.0) for _ in range(2)]
    factor = sample_channel_dropout(at.generator("feature dropout"), 4, 8)
    with torch.no_grad():
        own = slow(BATCH.weak).softmax(1)
        earlier = sum(w * copies[index](BATCH.weak) for index, w in zip(chosen, weights, strict=True)).softmax(1)
        maps = slow.net.encoder(BATCH.weak)[-1]
        on_features = slow.net.segmentation_head(maps * factor[..., None, None])
        on_strong = [
            slow(torch.where(box[:, None], view[partner], view)) for view, box in zip(BATCH.strong, boxes, strict=True)
        ]
        labeled = nn.functional.cross_entropy(slow(BATCH.image), BATCH.label, ignore_index=IGNORE).item()

    def loss(logits: Tensor, probability: Tensor, tau: float, box: Tensor) -> float:
        nll, kept, valid = -logits.double().log_softmax(1), 0.0, 0
        for i in range(4):
            for y in range(12):
                for x in range(12):
                    j = partner[i] if box[i, y, x] else i
                    valid += BATCH.valid[j, y, x].item()
                    if BATCH.valid[j, y, x] and probability[j, :, y, x].max() >= tau:
                        kept += nll[i, probability[j, :, y, x].argmax(), y, x].item()
        return kept / valid

    def unimatch_loss(probability: Tensor, tau: float) -> float:
        first, second = (loss(on, probability, tau, box) for on, box in zip(on_strong, boxes, strict=True))
        return first / 4 + second / 4 + loss(on_features, probability, tau, torch.zeros_like(boxes[0])) / 2

    standard, previous = unimatch_loss(own, 0.6), unimatch_loss(earlier, 0.5)
    assert min(standard, previous) > 0.05
    lam = 0.9 * {30: 0.6, 80: 0.4}[at.step]
    assert losses.scalars["unlabeled"].item() == pytest.approx(standard, rel=1e-5)
    assert losses.scalars["earlier"].item() == pytest.approx(previous, rel=1e-5)
    assert losses.total.item() == pytest.approx((labeled + 0.7 * (standard + lam * previous)) / (2 + lam), rel=1e-5)


def test_a_run_makes_copies_after_the_planned_steps(make):
    method = make(stores=3)
    before = copy.deepcopy(method.earlier.state_dict())
    with torch.no_grad():
        observed = method.observe(BATCH, Progress(0, 96))
        method.after_step(Progress(4, 96), observed)  # 5 of 96 steps are less than 1/16
        assert all(torch.equal(value, before[key]) for key, value in method.earlier.state_dict().items())
        method.after_step(Progress(5, 96), observed)
    first, second = method.earlier.copies[:2]
    assert all(torch.equal(own, its) for own, its in zip(first.parameters(), method.student.parameters(), strict=True))
    assert not torch.equal(second.net["segmentation_head"].weight, method.student.net["segmentation_head"].weight)


def test_the_gradient_does_not_flow_through_pseudo_labels(make):
    """With no labeled pixel and thresholds that no pixel passes there is no gradient; else there is."""
    nothing = replace(BATCH, label=torch.full_like(BATCH.label, IGNORE))
    for threshold, some in ((1.0, False), (0.0, True)):
        method = make(threshold=1.0, earlier_threshold=threshold)
        method.losses(nothing, AT).total.backward()
        assert any(parameter.grad.abs().sum() > 0 for parameter in method.student.parameters()) == some


def test_the_trained_network_is_evaluated(make):
    method = make()
    assert method.evaluated() == {"student": (method.student,)}
    assert method.views.strong == (method.config.strong,) * 2


def test_a_network_without_feature_maps_is_refused():
    network = Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1)
    with pytest.raises(UserError, match=r"^method\.name: prevmatch .* use another model\.architecture, or .*fixmatch$"):
        Method(Config(), lambda: network, CLASSES)
