import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.augment.cutmix import random_partners, sample_some_boxes
from semiseg.augment.features import sample_channel_dropout
from semiseg.errors import UserError
from semiseg.methods.scalematch import Config, Method
from semiseg.models.build import Network, Undivided
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
TAU, SIDE = 0.6, 12
EARLY, LATE = Progress(1, 16, seed=1), Progress(2, 16, seed=1)  # before and after an eighth of the run
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    def make(**settings) -> Method:
        with seeded(0, "method"):
            config = Config(**({"threshold": TAU} | settings))
            method = Method(config, lambda: tiny(0, False), CLASSES).train()
        with torch.no_grad():
            method.attention.score[2].weight *= 20  # so that it prefers one of the scales
        return method

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, SIDE, SIDE), generator=generator)
    label[0, :3] = IGNORE
    image, weak, first = torch.randn(3, slots, 3, SIDE, SIDE, generator=generator)
    valid = torch.ones(slots, SIDE, SIDE, dtype=torch.bool)
    valid[0, :, 9:] = False
    return SemiBatch(image, label, weak, (first,), valid, torch.arange(slots))


BATCH = batch_of()


def at_size(value: Tensor, side: int, antialias: bool = False) -> Tensor:
    return F.interpolate(value, (side, side), mode="bilinear", antialias=antialias)


@pytest.mark.parametrize("at", [EARLY, LATE])
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5, 2.0])
@torch.no_grad()
def test_a_step_equals_the_formula(make, at, scale):
    """(L_x + w (1/4 strong + 1/4 scaled + 1/2 features)) / 2, each loss pixel by pixel."""
    method = make(scales=(scale,), feature_scales=(0.75,), cutmix_probability=1.0, unlabeled_weight=0.7)
    net, attention = copy.deepcopy(method.student.net), copy.deepcopy(method.attention)
    losses = method.losses(BATCH, at)

    weak = BATCH.weak * BATCH.valid[:, None]
    maps = net.encoder(torch.cat([BATCH.image, weak]))[-1]
    images = at_size(torch.cat([BATCH.image, weak]), round(SIDE * scale), antialias=True)
    other = net.encoder(images)[-1]
    logits, there = net.segmentation_head(maps), at_size(net.segmentation_head(other), SIDE)
    scores = torch.cat([attention.score(maps), at_size(attention.score(other), SIDE)], 1).softmax(1)
    fused = scores[:, :1] * logits + scores[:, 1:] * there
    assert 0.2 < scores[:, 0].mean() < 0.8
    factor = sample_channel_dropout(at.generator("feature dropout"), 4, 8)[..., None, None]
    on_features = at_size(net.segmentation_head(at_size(maps[4:], 9) * factor), SIDE)
    generator = at.generator("cutmix")
    partner = random_partners(4, generator)
    box = sample_some_boxes(4, SIDE, SIDE, generator, probability=1.0)
    on_strong = net.segmentation_head(
        net.encoder(torch.where(box[:, None], BATCH.strong[0][partner], BATCH.strong[0]))[-1]
    )
    probability = (logits if at is EARLY else fused)[4:].softmax(1)
    in_eval = net.segmentation_head(net.encoder(BATCH.weak)[-1]).softmax(1)

    def loss(on: Tensor, box: Tensor) -> float:
        nll, kept, valid = -on.double().log_softmax(1), 0.0, 0
        for i in range(4):
            for y in range(SIDE):
                for x in range(SIDE):
                    j = partner[i] if box[i, y, x] else i
                    of_pixel = (in_eval if box[i, y, x] else probability)[j, :, y, x]
                    valid += BATCH.valid[j, y, x].item()
                    if BATCH.valid[j, y, x] and of_pixel.max() >= TAU:
                        kept += nll[i, of_pixel.argmax(), y, x].item()
        return kept / valid

    known = BATCH.label != IGNORE
    mixes = at_size(at_size((~known)[:, None].float(), round(SIDE * scale), antialias=True), SIDE)[:, 0]
    clear = torch.where(mixes > 0, IGNORE, BATCH.label)
    plain, both = (
        F.cross_entropy(on[:4], label, ignore_index=IGNORE, reduction="sum").item() / known.sum().item()
        for on, label in ((logits, BATCH.label), (fused, clear))
    )
    nowhere = torch.zeros_like(box)
    strong, scaled, features = loss(on_strong, box), loss(there[4:], nowhere), loss(on_features, nowhere)
    found = {name: value.item() for name, value in losses.scalars.items()}
    assert found["labeled"] == pytest.approx((plain + both) / 2, rel=1e-4)
    assert found["strong"] == pytest.approx(strong, rel=1e-4)
    assert found["scaled"] == pytest.approx(scaled, rel=1e-4)
    assert found["features"] == pytest.approx(features, rel=1e-4)
    unlabeled = strong / 4 + scaled / 4 + features / 2
    assert losses.total.item() == pytest.approx(((plain + both) / 2 + 0.7 * unlabeled) / 2, rel=1e-4)


def test_a_step_draws_a_scale(make):
    method, sides = make(), set()
    handle = method.student.net["encoder"].register_forward_pre_hook(lambda _, args: sides.add(args[0].shape[-1]))
    for step in range(20):
        method.losses(BATCH, Progress(step, 40))
    handle.remove()
    assert sides == {3, 6, 12, 18, 24}


def test_fused_labels_train_no_attention(make):
    """Only labeled pixels train it: pseudo-labels have no gradient, and the other losses do not use it."""
    method = make(threshold=0.0)
    method.losses(replace(BATCH, label=torch.full_like(BATCH.label, IGNORE)), LATE).total.backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in method.attention.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.student.parameters())
    method.losses(BATCH, LATE).total.backward()
    assert method.attention.score[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scales", [(), (1.0, 2.0), (0.05,), (5.0,)])
def test_scales_that_are_none(scales):
    for name in ("scales", "feature_scales"):
        with pytest.raises(ValidationError, match=r"scales are numbers from 0\.1 to 4, at least one, and none is 1"):
            Config(**{name: scales})


def test_the_network_is_evaluated_at_one_scale(make):
    method = make()
    assert method.evaluated() == {"student": (method.student,)}
    assert method.views.strong == (method.config.strong,)


def test_a_network_without_feature_maps_is_refused():
    network = Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1)
    with pytest.raises(
        UserError, match=r"^method\.name: scalematch .* use another model\.architecture, or .*fixmatch$"
    ):
        Method(Config(), lambda: network, CLASSES)
