import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semiseg.augment.cutmix import random_partners, sample_some_boxes
from semiseg.augment.features import sample_channel_dropout
from semiseg.augment.pairs import cutmix_view
from semiseg.errors import UserError
from semiseg.methods.corrmatch import Config, Method
from semiseg.models.build import Network, Undivided
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
AT = Progress(3, 10, seed=1)
TAU = 0.5
SIDE = 8
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    def make(norm: bool = False, **settings) -> Method:
        with seeded(0, "method"):
            chosen = {"threshold": TAU, "channels": 6, "regions": 20} | settings
            return Method(Config(**chosen), lambda: tiny(0, norm), CLASSES).train()

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, SIDE, SIDE), generator=generator)
    label[0, :3] = IGNORE
    image, weak, first = torch.randn(3, slots, 3, SIDE, SIDE, generator=generator)
    valid = torch.ones(slots, SIDE, SIDE, dtype=torch.bool)
    valid[0, :, 6:] = False
    return SemiBatch(image, label, weak, (first,), valid, torch.arange(slots))


BATCH = batch_of()


def correlation_of(head: nn.Module, maps: Tensor, counted: Tensor) -> Tensor:
    """[i, j] of one image: how much cell i gives to cell j."""
    projected = head.project((maps * counted)[None])
    query, key = head.query(projected)[0].flatten(1), head.key(projected)[0].flatten(1)
    similarity = torch.einsum("di,dj->ij", query, key) / 3**0.5
    similarity[:, ~counted.flatten()] = -torch.inf
    return similarity.softmax(1)


def spread_of(correlation: Tensor, logits: Tensor, counted: Tensor) -> Tensor:
    given = torch.where(counted, logits, 0.0).flatten(1)
    return torch.stack([sum(given[:, i] * row[j] for i, row in enumerate(correlation)) for j in range(SIDE**2)], 1)


def spread_labels(correlation: Tensor, drawn: list[int], label: Tensor, confident: Tensor, inside: Tensor, own: Tensor):
    """One region after the other, as the authors do, but each votes with the first labels."""
    new, counted = label.clone(), confident.clone()
    for cell in drawn:
        if not own.flatten()[cell]:
            continue
        row = correlation[cell].view(SIDE, SIDE)
        values = row[inside]
        region = (row - values.min() > 0.5 * (values.max() - values.min())) & inside
        voters = label[region & confident].tolist()
        if not voters or len(voters) / region.sum() < TAU:
            continue
        top = max(sorted(set(voters)), key=voters.count)
        if voters.count(top) / len(voters) > TAU:
            new[region], counted[region] = top, True
    return new, counted


def cross_entropy(logits: Tensor, label: Tensor, counted: Tensor, px: Tensor) -> float:
    nll = -logits.double().log_softmax(0)
    return sum(nll[label[y, x], y, x].item() for y, x in counted.nonzero().tolist()) / px.item()


@pytest.mark.parametrize("cutmix_probability", [0.0, 1.0])
@torch.no_grad()
def test_a_step_equals_the_authors_formula(make, cutmix_probability):
    """Image by image, cell by cell: ((L_s + L_s corr)/2 + w (s + soft + features + correlation)/4) / 2."""
    method = make(cutmix_probability=cutmix_probability, unlabeled_weight=0.7)
    net, head = copy.deepcopy(method.student.net), copy.deepcopy(method.head)
    losses = method.losses(BATCH, AT)

    generator = AT.generator("cutmix")
    partner = random_partners(4, generator)
    box = sample_some_boxes(4, SIDE, SIDE, generator, probability=cutmix_probability)
    image = torch.where(box[:, None], BATCH.strong[0][partner], BATCH.strong[0])
    valid = torch.where(box, BATCH.valid[partner], BATCH.valid)
    drawn = torch.randint(SIDE**2, (20,), generator=AT.generator("regions")).tolist()
    maps = {name: net.encoder(value)[-1] for name, value in (("x", BATCH.image), ("w", BATCH.weak), ("s", image))}
    logits = {name: net.segmentation_head(value) for name, value in maps.items()}
    factor = sample_channel_dropout(AT.generator("feature dropout"), 4, 8)
    on_features = net.segmentation_head(maps["w"] * factor[..., None, None])
    probability = logits["w"].softmax(1)
    confidence, label = probability.max(1)
    confidence, mixed = (torch.where(box, value[partner], value) for value in (confidence, label))
    own_sure, sure = (probability.amax(1) >= TAU) & BATCH.valid, (confidence >= TAU) & valid

    wanted = dict.fromkeys(("labeled", "labeled_correlation", "strong", "soft", "features", "correlation"), 0.0)
    known, px, mixed_px, more = BATCH.label != IGNORE, BATCH.valid.sum(), valid.sum(), 0
    for i in range(4):
        of_image = spread_of(correlation_of(head, maps["x"][i], known[i]), logits["x"][i], known[i])
        correlation = correlation_of(head, maps["w"][i], BATCH.valid[i])
        of_weak = spread_of(correlation, logits["w"][i], BATCH.valid[i])
        of_strong = spread_of(correlation_of(head, maps["s"][i], valid[i]), logits["s"][i], valid[i])
        of_image, of_weak, of_strong = (one.view(3, SIDE, SIDE) for one in (of_image, of_weak, of_strong))
        inside = BATCH.valid[i] & ~box[i]
        target, counted = spread_labels(correlation, drawn, mixed[i], sure[i], inside, inside)
        more += (counted & ~sure[i]).sum().item()
        wanted["labeled"] += cross_entropy(logits["x"][i], BATCH.label[i], known[i], known.sum())
        wanted["labeled_correlation"] += cross_entropy(of_image, BATCH.label[i], known[i], known.sum())
        wanted["strong"] += cross_entropy(logits["s"][i], target, counted, mixed_px)
        wanted["features"] += cross_entropy(on_features[i], label[i], own_sure[i], px)
        wanted["correlation"] += cross_entropy(of_strong, target, counted, mixed_px) / 2
        wanted["correlation"] += cross_entropy(of_weak, label[i], own_sure[i], px) / 2
        p, q = probability[i].double(), logits["s"][i].double().softmax(0)
        divergence = (p * (p.log() - q.log())).sum(0)
        wanted["soft"] += divergence[sure[i] & ~box[i]].sum().item() / mixed_px.item()
    for name, value in wanted.items():
        assert losses.scalars[name].item() == pytest.approx(value, rel=1e-4), name
    assert losses.scalars["propagated"].item() == pytest.approx(more / mixed_px.item())
    assert more > 5
    unlabeled = sum(wanted[name] for name in ("strong", "soft", "features", "correlation")) / 4
    total = (wanted["labeled"] + wanted["labeled_correlation"]) / 4 + 0.7 * unlabeled / 2
    assert losses.total.item() == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_the_threshold_follows_the_confidence_after_a_step(make):
    method = make(threshold=0.9, threshold_decay=0.75)
    observed = method.observe(BATCH, AT)
    method.losses(BATCH, AT)
    assert method.threshold.value == torch.tensor(0.9)
    method.after_step(AT, observed)
    predicted = copy.deepcopy(method.student).eval()(BATCH.weak).softmax(1)
    confidence, label = predicted.max(1)
    each = [confidence[(label == c) & BATCH.valid].max().item() for c in range(3) if ((label == c) & BATCH.valid).any()]
    assert method.threshold.value.item() == pytest.approx(0.75 * 0.9 + 0.25 * sum(each) / len(each))
    assert method.losses(BATCH, AT).scalars["threshold"] == method.threshold.value


def test_the_spread_logits_train_the_encoder_and_the_head_but_not_the_classifier(make):
    method = make(unlabeled_weight=0)
    images = method.student.encode(BATCH.image)
    logits = method.student.classify(method.student.decode(images), images.size)
    _, correlated = method._correlate(images, logits, BATCH.label != IGNORE)
    correlated.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.head.parameters() if parameter.ndim > 1)
    assert method.student.net["encoder"][0].weight.grad.abs().sum() > 0
    assert method.student.net["segmentation_head"].weight.grad is None


def test_the_gradient_does_not_flow_through_pseudo_labels(make):
    """With no labeled pixel and a threshold that no pixel passes there is no gradient; else there is."""
    nothing = replace(BATCH, label=torch.full_like(BATCH.label, IGNORE))
    for threshold, some in ((1.0, False), (0.0, True)):
        method = make(threshold=threshold)
        method.losses(nothing, AT).total.backward()
        assert any(parameter.grad.abs().sum() > 0 for parameter in method.parameters()) == some


def test_the_soft_target_has_no_gradient(make, monkeypatch):
    divergence, seen = F.kl_div, []
    monkeypatch.setattr(
        F, "kl_div", lambda on, target, **how: seen.append((on, target)) or divergence(on, target, **how)
    )
    make().losses(BATCH, AT)
    ((on_strong, on_weak),) = seen
    assert on_strong.requires_grad
    assert not on_weak.requires_grad


def test_valid_pixels_are_counted_after_cutmix(make):
    method, differs = make(cutmix_probability=1.0), 0
    for step in range(8):
        at = Progress(step, 10)
        part = method.alone(BATCH, at)
        mixed, _, valid_px = cutmix_view(part.own, part, at.generator("cutmix"), 1.0)
        assert valid_px == mixed.valid.sum()
        differs += bool(valid_px != BATCH.valid.sum())
    assert differs


def test_the_network_is_evaluated_without_the_head(make):
    method = make()
    assert method.evaluated() == {"student": (method.student,)}
    assert method.views.strong == (method.config.strong,)


def test_a_network_without_feature_maps_is_refused():
    network = Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1)
    with pytest.raises(UserError, match=r"^method\.name: corrmatch .* use another model\.architecture, or .*fixmatch$"):
        Method(Config(), lambda: network, CLASSES)
