import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from semiseg.methods import pc2_seg
from semiseg.methods.pc2_seg import Config, Method, Observed
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Part, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b", "c"), background=0)
SMALL = {"channels": 6, "cell": 2, "anchors": 1000, "negatives": 1000}
AT = Progress(50, 100, seed=3)
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    def make(norm: bool = False, size: int = 3, **settings) -> Method:
        seed = 16 if size == 3 else 5  # networks that predict several classes
        with seeded(0, "method"):
            return Method(Config(**SMALL | settings), lambda: tiny(seed, norm, 4, size=size), CLASSES).train()

    return make


def batch_of() -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(4, (4, 8, 12), generator=generator)
    image, weak = (torch.randn(4, 3, 8, 12, generator=generator) for _ in range(2))
    strong = weak + 0.3 * torch.randn(4, 3, 8, 12, generator=generator)
    valid = torch.ones(4, 8, 12, dtype=torch.bool)
    valid[0, :, 9:] = False
    return SemiBatch(image, label, weak, (strong,), valid, torch.arange(4))


BATCH = batch_of()


def slow_losses(method: Method) -> tuple[float, float]:
    """Consistency and contrast, pixel by pixel and cell by cell."""
    with torch.no_grad():
        probability = [method.student(view).softmax(1) for view in (BATCH.weak, BATCH.strong[0])]
        keys = []
        for view in (BATCH.weak, BATCH.strong[0]):
            decoded = method.student.decode(method.student.encode(view))
            keys.append(F.normalize(method.projector(F.avg_pool2d(decoded, 2)), dim=1))
        labels = F.avg_pool2d(probability[0], 2).argmax(1)
    apart = [
        sum((probability[0][i, c, y, x] - probability[1][i, c, y, x]).item() ** 2 for c in range(4))
        for i, y, x in BATCH.valid.nonzero().tolist()
    ]
    cells = [(i, y, x) for i in range(4) for y in range(4) for x in range(6) if i or x < 4]
    losses = []
    for i, y, x in cells:
        similar = {
            (j, v, u): math.exp(keys[1][i, :, y, x] @ keys[0][j, :, v, u] / method.config.temperature)
            for j, v, u in cells
        }
        others = sum(value for (j, v, u), value in similar.items() if labels[j, v, u] != labels[i, y, x])
        losses.append(-math.log(similar[i, y, x] / (similar[i, y, x] + others)))
    return sum(apart) / len(apart), sum(losses) / len(losses)


def test_the_losses_are_those_of_a_slow_reference(make):
    method = make(consistency_weight=3.0, contrastive_weight=0.2)
    consistency, contrastive = slow_losses(method)
    losses = method.losses(BATCH, AT)
    assert losses.scalars["consistency"].item() == pytest.approx(consistency, rel=2e-3)  # half precision
    assert losses.scalars["contrastive"].item() == pytest.approx(contrastive, rel=1e-4)
    unlabeled = 3 * consistency + 0.2 * contrastive
    assert losses.scalars["unlabeled"].item() == pytest.approx(unlabeled, rel=1e-3)
    assert losses.total.item() == pytest.approx(losses.scalars["labeled"].item() + unlabeled, rel=1e-3)


def test_weak_views_get_no_gradient(make, monkeypatch):
    method, seen = make(norm=True), {}
    contrastive = pc2_seg.contrastive_between_classes

    def spy(anchor, positive, label, negative, *rest):
        seen.update(anchor=anchor, positive=positive, negative=negative)
        return contrastive(anchor, positive, label, negative, *rest)

    monkeypatch.setattr(pc2_seg, "contrastive_between_classes", spy)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    observed = method.observe(BATCH, AT)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())  # eval mode
    assert not observed.probability.requires_grad
    method.losses(BATCH, AT).total.backward()
    assert [seen[name].requires_grad for name in ("anchor", "positive", "negative")] == [True, False, False]
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.projector.parameters())


def test_each_unlabeled_loss_reaches_the_network(make):
    for weights in ({"consistency_weight": 0.0}, {"contrastive_weight": 1e-30}):
        method = make(**weights)
        batch = replace(BATCH, label=torch.full_like(BATCH.label, IGNORE))
        method.losses(batch, AT).total.backward()
        assert method.student.net["encoder"][0].weight.grad.abs().sum() > 1e-6


@pytest.mark.parametrize("anchors", [3, 1000])
def test_parts_add_up_to_the_whole(make, anchors):
    method = make(anchors=anchors, negatives=7)

    def step(parts: list[tuple[SemiBatch, Part]]) -> tuple[dict, dict]:
        method.zero_grad()
        scalars: dict[str, float] = {}
        for batch, part in parts:
            losses = method(batch, AT, part)
            losses.total.backward()
            for name, value in losses.scalars.items():
                scalars[name] = scalars.get(name, 0.0) + value.item()
        return scalars, {key: parameter.grad.clone() for key, parameter in method.named_parameters()}

    whole, parts = method.alone(BATCH, AT), []
    for rows in (slice(0, 1), slice(1, 4)):
        own = Observed(**{key: value[rows] for key, value in vars(whole.observed).items()})
        fields = {key: value[rows] for key, value in vars(BATCH).items() if isinstance(value, torch.Tensor)}
        batch = replace(BATCH, strong=(BATCH.strong[0][rows],), **fields)
        parts.append((batch, replace(whole, own=own, rows=rows, share=(rows.stop - rows.start) / 4)))
    (one, gradients), (other, its) = step([(BATCH, whole)]), step(parts)
    assert one["contrastive"] > 0.1
    assert one == pytest.approx(other, rel=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, its[key], rtol=1e-4, atol=1e-6, msg=key)


def test_padded_pixels_change_nothing(make):
    """Pixels of the network do not mix, but those of a cell do; so a cell with padding does not count."""
    method, inside = make(size=1), BATCH.valid[:, None]
    found = []
    for value in (0.0, 5.0):
        weak, strong = (torch.where(inside, view, value) for view in (BATCH.weak, BATCH.strong[0]))
        found.append(method.losses(replace(BATCH, weak=weak, strong=(strong,)), AT).scalars)
    for name, value in found[0].items():
        assert value.item() == pytest.approx(found[1][name].item(), rel=1e-5), name


def test_the_limits(make, monkeypatch):
    method, seen = make(anchors=5, negatives=3), {}

    def spy(anchor, positive, label, negative, *rest):
        seen.update(anchors=len(anchor), negatives=len(negative))
        return anchor.sum(1)

    monkeypatch.setattr(pc2_seg, "contrastive_between_classes", spy)
    method.losses(BATCH, AT)
    assert seen == {"anchors": 4 * 5, "negatives": 4 * 3}
