import copy
import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from semiseg import optim
from semiseg.engine.optimizers import Optimizers
from semiseg.methods.gct import Config, Method
from semiseg.models.flaws import clear_flaws, true_flaws
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
AT = Progress(5, 90, seed=1)  # in the middle of the ramp
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    """make(**settings) -> a method with a small detector that finds many flaws."""

    def make(norm: bool = True, size: int = 3, **settings) -> Method:
        seeds = iter(range(10))
        with seeded(0, "method"):
            config = Config(**({"detector_channels": 2} | settings))
            method = Method(config, lambda *_: tiny(next(seeds), norm, size=size), CLASSES).train()
        with torch.no_grad():
            method.detector.layers[-1].weight *= 5
            method.detector.layers[-1].bias.fill_(0.5)
        return method

    return make


def batch_of(slots: int = 3) -> SemiBatch:
    """Large enough for a detector's map of four values."""
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 64, 70), generator=generator)
    label[0, :9] = IGNORE
    valid = torch.ones(slots, 64, 70, dtype=torch.bool)
    valid[-1, 50:] = False
    return SemiBatch(
        image=torch.randn(slots, 3, 64, 70, generator=generator),
        label=label,
        weak=torch.randn(slots, 3, 64, 70, generator=generator),
        strong=(),
        valid=valid,
        index=torch.arange(slots),
    )


BATCH = batch_of()
COUNTED = torch.cat([BATCH.label != IGNORE, BATCH.valid])
IMAGES = torch.cat([BATCH.image, BATCH.weak])


def slow_targets(
    probability: list[Tensor], flaws: list[Tensor], threshold: float
) -> tuple[list[Tensor], Tensor, int, int]:
    """Decides pixel by pixel. Also returns how often a network learns from the other one, and from the detector."""
    targets, both = [one.clone() for one in probability], torch.zeros_like(flaws[0])
    taught, corrected = 0, 0
    of_pixels = zip(COUNTED.nonzero().tolist(), *(one[COUNTED].tolist() for one in flaws), strict=True)
    for (image, row, column), first, second in of_pixels:
        at = (image, slice(None), row, column)
        if first > threshold and second > threshold:
            both[image, row, column] = 1
            corrected += 1
        elif first != second:
            better = int(second < first)
            targets[1 - better][at] = probability[better][at]
            taught += 1
    return targets, both, taught, corrected


def two_backward_passes(method: Method) -> tuple[dict[str, float], dict[str, int]]:
    """What the authors do, in their order: the networks with a detector that is not trained, then the detector."""
    cfg, pixels, labeled = method.config, COUNTED.sum(), BATCH.label != IGNORE
    masked = IMAGES * COUNTED[:, None]
    found: dict[str, float] = {}

    method.detector.requires_grad_(False)
    logits = [network(IMAGES) for network in (method.first, method.second)]
    probability = [one.softmax(1) for one in logits]
    flaws = [method.detector(masked, one * COUNTED[:, None]) for one in probability]
    clear = [clear_flaws(one, COUNTED) for one in flaws]
    targets, both, taught, corrected = slow_targets([one.detach() for one in probability], clear, cfg.threshold)
    of_labels = sum(
        nn.functional.cross_entropy(one[: len(BATCH.image)], BATCH.label, ignore_index=IGNORE) for one in logits
    )
    correction = sum((both * one**2).sum() / pixels for one in flaws)
    squares = [((one - target) ** 2 * COUNTED[:, None]) for one, target in zip(probability, targets, strict=True)]
    consistency = sum(one.sum() / (3 * pixels) for one in squares)
    ramp = math.exp(-5 * (1 - AT.step / 10) ** 2)
    (of_labels + cfg.correction_weight * correction + cfg.consistency_weight * ramp * consistency).backward()
    found |= {"labeled": of_labels.item(), "correction": correction.item(), "consistency": consistency.item()}
    found["unlabeled"] = (cfg.correction_weight * correction + cfg.consistency_weight * ramp * consistency).item()

    method.detector.requires_grad_(True)
    error = torch.zeros(())
    for one in probability:
        fixed = one.detach()
        said = method.detector(masked, fixed * COUNTED[:, None])[: len(BATCH.image)]
        true = true_flaws(fixed[: len(BATCH.image)], BATCH.label, cfg.dilations)
        error = error + ((said - true) ** 2)[labeled].mean() / 2
    (cfg.detector_weight * error).backward()
    found["detector"] = error.item()
    return found, {"taught": taught, "corrected": corrected}


@pytest.mark.parametrize(
    "settings",
    [
        {"ramp": 1 / 9},
        {"ramp": 1 / 9, "threshold": 0.1, "correction_weight": 30.0, "dilations": 2},
        {"ramp": 1 / 9, "consistency_weight": 3.0, "detector_weight": 0.5},
    ],
)
def test_one_backward_pass_equals_two_separate_ones(make, settings):
    """The losses are those of a slow reference, too."""
    method, reference = make(**settings), make(**settings)
    losses = method.losses(BATCH, AT)
    losses.total.backward()
    expected, counts = two_backward_passes(reference)
    assert counts["taught"] > 100
    assert counts["corrected"] > 20
    for name, value in expected.items():
        assert losses.scalars[name].item() == pytest.approx(value, rel=1e-4), name
    assert losses.scalars["both_wrong"].item() == pytest.approx(counts["corrected"] / COUNTED.sum().item())
    total = expected["labeled"] + expected["unlabeled"] + method.config.detector_weight * expected["detector"]
    assert losses.total.item() == pytest.approx(total, rel=1e-4)
    for (key, mine), its in zip(method.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-6, msg=key)
        assert mine.grad.abs().max() > 0, key


def test_each_part_has_a_gradient_of_its_own_terms_only(make):
    """Weights of the networks' terms change nothing for the detector, and the detector's weight nothing for them."""

    def gradients(**settings) -> dict[str, Tensor]:
        method = make(**settings)
        method.losses(BATCH, AT).total.backward()
        return {key: parameter.grad for key, parameter in method.named_parameters()}

    plain = gradients()
    others = gradients(correction_weight=50.0, consistency_weight=0.0)
    critic = gradients(detector_weight=20.0)
    for key, gradient in plain.items():
        if key.startswith("detector."):
            assert torch.equal(gradient, others[key]), key
            torch.testing.assert_close(2 * gradient, critic[key])
        else:
            assert not torch.equal(gradient, others[key]), key
            assert torch.equal(gradient, critic[key]), key


def test_ignored_and_padded_pixels_change_nothing(make):
    """Neither in the losses nor in the flaw maps, whose blurs and norm layers mix pixels."""

    def gradients(value: float) -> tuple[Tensor, dict[str, Tensor]]:
        method = make(norm=False, size=1)
        image, weak = (torch.where(COUNTED[:, None], IMAGES, value)).split(len(BATCH.image))
        losses = method.losses(replace(BATCH, image=image, weak=weak), AT)
        losses.total.backward()
        assert losses.scalars["correction"] > 0.01
        assert losses.scalars["consistency"] > 0.01
        return losses.total.detach(), {key: parameter.grad for key, parameter in method.named_parameters()}

    (one, first), (other, second) = gradients(0.0), gradients(3.0)
    torch.testing.assert_close(one, other)
    for key, gradient in first.items():
        torch.testing.assert_close(gradient, second[key], msg=key)


class Pointwise(nn.Module):
    """A detector without norm layers: images do not influence each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 1, 1)

    def forward(self, image: Tensor, probability: Tensor) -> Tensor:
        return self.conv(torch.cat([image, probability], 1))[:, 0]


def in_parts(method: Method, size: int) -> Losses:
    """The sum of the losses of parts of the batch, as the engine computes them."""
    whole, num_slots, each = method.alone(BATCH, AT), len(BATCH.image), []
    for first in range(0, num_slots, size):
        rows = slice(first, first + size)
        own = {
            one.name: getattr(BATCH, one.name)
            for one in fields(SemiBatch)
            if one.name not in ("strong", "second", "pseudo")
        }
        batch = SemiBatch(**{name: value[rows] for name, value in own.items()}, strong=())
        part = Part(None, None, rows, len(batch.image) / num_slots, whole.labeled_px, whole.valid_px)
        each.append(method(batch, AT, part))
        each[-1].total.backward()
    return Losses(
        sum(one.total.detach() for one in each),
        {name: sum(one.scalars[name] for one in each) for name in each[0].scalars},
    )


def test_parts_add_up_to_the_whole(make):
    whole = make(norm=False)
    whole.detector = Pointwise()
    divided = copy.deepcopy(whole)
    one, other = whole.losses(BATCH, AT), in_parts(divided, 2)
    one.total.backward()
    torch.testing.assert_close(one.total.detach(), other.total)
    for name, value in one.scalars.items():
        torch.testing.assert_close(value, other.scalars[name])
    for mine, its in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_the_consistency_term_rises(make):
    def weight(step: int, **settings) -> float:
        scalars = make(correction_weight=0.0, **settings).losses(BATCH, Progress(step, 90)).scalars
        return (scalars["unlabeled"] / scalars["consistency"]).item()

    assert weight(0) == pytest.approx(100 * math.exp(-5), rel=1e-5)
    assert weight(5) == pytest.approx(100 * math.exp(-5 / 4), rel=1e-5)
    assert weight(10) == weight(80) == pytest.approx(100)  # 5 of 45 epochs
    assert weight(0, ramp=0.0) == pytest.approx(100)


def test_the_detector_has_an_optimizer_of_its_own(make):
    method = make(detector_lr=3e-4)
    settings = optim.Config(lr=0.01, head_lr_factor=5)
    optimizers = Optimizers(settings, method)
    optimizers.set_lr(0, 100)
    (_, sgd), (_, adam) = optimizers.each
    assert isinstance(sgd, torch.optim.SGD)
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.01, 0.05])
    assert isinstance(adam, torch.optim.AdamW)
    (group,) = adam.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (pytest.approx(3e-4), (0.9, 0.99), 0)
    assert {id(one) for one in group["params"]} == {id(one) for one in method.detector.parameters()}
    optimizers.set_lr(50, 100)
    assert group["lr"] == pytest.approx(3e-4 * 0.5**0.9)


def test_both_networks_are_evaluated(make):
    method = make()
    assert method.evaluated() == {"first": (method.first,), "second": (method.second,)}
    pairs = zip(method.first.parameters(), method.second.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
