import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from semiseg.augment.cutmix import paste
from semiseg.methods.cps import Config, Crossed, Method
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
AT = Progress(3, 10, seed=1)


@pytest.fixture
def make(tiny):
    """make(norm=..., **settings) -> a method. Without batch norm images do not influence each other."""

    def make(norm: bool = False, **settings) -> Method:
        seeds = iter(range(10))
        return Method(Config(**settings), lambda *_: tiny(next(seeds), norm), CLASSES).train()

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 12, 16), generator=generator)
    label[0, :5] = IGNORE
    valid = torch.ones(slots, 12, 16, dtype=torch.bool)
    valid[0, :, 9:] = False
    valid[-1, 7:] = False
    return SemiBatch(
        image=torch.randn(slots, 3, 12, 16, generator=generator),
        label=label,
        weak=torch.randn(slots, 3, 12, 16, generator=generator),
        strong=(),
        valid=valid,
        index=torch.arange(slots),
    )


BATCH = batch_of()


def slow_cross_entropy(logits: Tensor, target: Tensor, counted: Tensor) -> float:
    """Mean of -log softmax over the counted pixels, one by one."""
    losses = []
    for image, row, column in counted.nonzero().tolist():
        pixel = logits[image, :, row, column].double().tolist()
        losses.append(math.log(sum(map(math.exp, pixel))) - pixel[target[image, row, column]])
    return sum(losses) / len(losses)


def parts(method: Method, size: int) -> Losses:
    """The sum of the losses of parts of the batch, as the engine computes them."""
    whole = method.alone(BATCH, AT)
    total, scalars = [], []
    for first in range(0, len(BATCH.image), size):
        rows = slice(first, first + size)
        own = {
            one.name: getattr(BATCH, one.name)
            for one in fields(SemiBatch)
            if one.name not in ("strong", "second", "pseudo")
        }
        batch = SemiBatch(**{name: value[rows] for name, value in own.items()}, strong=())
        observed = whole.observed
        mine = None if observed is None else Crossed(*(value[rows] for value in vars(observed).values()))
        part = Part(observed, mine, rows, len(batch.image) / len(BATCH.image), whole.labeled_px, whole.valid_px)
        losses = method(batch, AT, part)
        losses.total.backward()
        total.append(losses.total.detach())
        scalars.append(losses.scalars)
    return Losses(sum(total), {name: sum(one[name] for one in scalars) for name in scalars[0]})


def test_the_networks_learn_from_labels_and_from_each_other(make):
    method = make()
    with torch.no_grad():
        logits = [network(torch.cat([BATCH.image, BATCH.weak])) for network in (method.first, method.second)]
    labeled = BATCH.label != IGNORE
    counted = torch.cat([labeled, BATCH.valid])
    of_labels = sum(slow_cross_entropy(one[:4], BATCH.label, labeled) for one in logits)
    crossed = sum(
        slow_cross_entropy(one, other.argmax(1), counted) for one, other in (logits, reversed(logits))
    )  # on labeled pixels, too
    losses = method.losses(BATCH, AT)
    assert losses.scalars["labeled"].item() == pytest.approx(of_labels, rel=1e-5)
    assert losses.scalars["unlabeled"].item() == pytest.approx(crossed, rel=1e-5)
    assert losses.total.item() == pytest.approx(of_labels + 1.5 * crossed, rel=1e-5)
    other = make(unlabeled_weight=6).losses(BATCH, AT)
    assert other.total.item() == pytest.approx(of_labels + 6 * crossed, rel=1e-5)


def test_each_network_has_weights_of_its_own(make):
    method = make()
    pairs = zip(method.first.parameters(), method.second.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in pairs)
    assert method.evaluated() == {"first": (method.first,), "second": (method.second,)}
    assert method.views.min_unlabeled == 1
    assert make(cutmix=True).views.min_unlabeled == 2


def cutmix_step(method: Method) -> tuple[Losses, Tensor]:
    """Also returns the mixed images that the first network was trained on."""
    seen: list[Tensor] = []
    hook = method.first.register_forward_pre_hook(
        lambda _, images: seen.append(images[0]) if torch.is_grad_enabled() else None
    )
    losses = method.losses(BATCH, AT)
    hook.remove()
    (images,) = seen
    assert torch.equal(images[:4], BATCH.image)
    return losses, images[4:]


def test_cutmix_mixes_images_and_targets_alike(make):
    """What a pixel shows comes from its own image or from that of the partner, and its target as well."""
    method = make(cutmix=True)
    losses, mixed = cutmix_step(method)
    pasted = (mixed != BATCH.weak).all(1)
    shares = pasted.float().mean((1, 2))
    assert (shares > 0.05).all()
    assert (shares < 0.55).all()  # the area of the boxes: a quarter to a half
    partners = [
        [p for p in range(4) if torch.equal(mixed[i][:, pasted[i]], BATCH.weak[p][:, pasted[i]])] for i in range(4)
    ]
    partner = torch.tensor(partners)[:, 0]
    assert sorted(partner.tolist()) == [0, 1, 2, 3]
    assert all(partner[i] != i for i in range(4))

    with torch.no_grad():
        targets = [network(BATCH.weak).argmax(1) for network in (method.first, method.second)]
        logits = [network(mixed) for network in (method.first, method.second)]
    first, second = (paste(target, target[partner], pasted) for target in targets)
    counted = paste(BATCH.valid, BATCH.valid[partner], pasted)
    assert counted.sum() != BATCH.valid.sum()
    expected = slow_cross_entropy(logits[0], second, counted) + slow_cross_entropy(logits[1], first, counted)
    assert losses.scalars["unlabeled"].item() == pytest.approx(expected, rel=1e-5)  # not on labeled pixels
    assert losses.scalars["labeled"] == make().losses(BATCH, AT).scalars["labeled"]


@pytest.mark.parametrize("cutmix", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_parts_add_up_to_the_whole(make, cutmix, size):
    whole, divided = make(cutmix=cutmix), make(cutmix=cutmix)
    one, other = whole.losses(BATCH, AT), parts(divided, size)
    one.total.backward()
    torch.testing.assert_close(one.total.detach(), other.total)
    for name, value in one.scalars.items():
        torch.testing.assert_close(value, other.scalars[name])
    for mine, its in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_targets_for_cutmix_are_made_with_batch_statistics_and_without_dropout(make):
    method = make(norm=True, cutmix=True)
    method.first.net["encoder"].append(nn.Dropout2d(0.5))
    reference = make(norm=True).train()
    with torch.no_grad():
        expected = reference.first(BATCH.weak).argmax(1), reference.second(BATCH.weak).argmax(1)
    observed = method.observe(BATCH, AT)
    assert torch.equal(observed.first, expected[0])
    assert torch.equal(observed.second, expected[1])
    for mine, its in zip(method.first.buffers(), reference.first.buffers(), strict=True):
        assert torch.equal(mine, its)
    assert all(module.training for module in method.modules())


def test_without_cutmix_targets_come_from_the_pass_that_learns(make):
    """With batch norm, targets of another pass would differ."""
    method = make(norm=True)
    calls = []
    method.first.register_forward_hook(lambda _, __, logits: calls.append(logits.detach()))
    losses = method.losses(BATCH, AT)
    (first,) = calls
    second = make(norm=True).second(torch.cat([BATCH.image, BATCH.weak])).detach()
    counted = torch.cat([BATCH.label != IGNORE, BATCH.valid])
    expected = slow_cross_entropy(first, second.argmax(1), counted) + slow_cross_entropy(
        second, first.argmax(1), counted
    )
    assert losses.scalars["unlabeled"].item() == pytest.approx(expected, rel=1e-5)


def test_equal_steps_mix_alike_and_others_do_not(make):
    method = make(cutmix=True)
    _, one = cutmix_step(method)
    _, again = cutmix_step(method)
    assert torch.equal(one, again)
    whole = method.alone(BATCH, AT)
    other = method._mix(whole, replace(AT, step=4))[0]
    assert not torch.equal(one, other.image)


def test_with_batch_norm_apart_images_to_mix_change_no_running_statistics(make):
    def statistics(how: str, factor: float) -> Tensor:
        method = make(norm=True, cutmix=True, batch_norm=how)
        method.losses(replace(BATCH, weak=factor * BATCH.weak), AT)
        return torch.cat([value for key, value in method.state_dict().items() if "running" in key])

    assert not torch.equal(statistics("joint", 1.0), statistics("joint", 2.0))
    torch.testing.assert_close(statistics("apart", 1.0), statistics("apart", 2.0))
