import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from semiseg.errors import UserError
from semiseg.losses import (
    LabeledLoss,
    class_contrast,
    confident_cross_entropy,
    contrastive_between_classes,
    cross_entropy,
    full_precision,
    inverse_sqrt,
    ohem_cross_entropy,
    weighted_cross_entropy,
)
from semiseg.rng import fold_in
from semiseg.types import IGNORE, Part


def of_probability(probability: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Logits of two classes for one image, and labels that have these probabilities."""
    p = torch.tensor(probability, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()])[None].float()
    return logits, torch.zeros(1, *p.shape, dtype=torch.long)


def random_case(seed: int, batch: int = 3, classes: int = 4, size: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = fold_in(seed, "losses")
    logits = 3 * torch.randn(batch, classes, size, size, generator=generator)
    label = torch.randint(classes, (batch, size, size), generator=generator)
    confidence = torch.tensor([0.3, 0.7, 0.9])[torch.randint(3, label.shape, generator=generator)]
    valid = torch.rand(label.shape, generator=generator) < 0.8
    return logits, label, confidence, valid


def slow_cross_entropy(logits: Tensor, label: int) -> float:
    """-log softmax of one pixel, in double precision."""
    values = logits.double().tolist()
    return math.log(sum(math.exp(value) for value in values)) - values[label]


def test_cross_entropy_by_hand():
    logits, label = of_probability([[0.5, 0.25], [0.8, 0.1]])
    label[0, 1, 1] = IGNORE
    expected = -(math.log(0.5) + math.log(0.25) + math.log(0.8)) / 3
    assert cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 10_000))
def test_cross_entropy_equals_that_of_torch(seed):
    logits, label, _, valid = random_case(seed)
    label = torch.where(valid, label, IGNORE)
    torch.testing.assert_close(cross_entropy(logits, label), F.cross_entropy(logits, label, ignore_index=IGNORE))


def test_cross_entropy_is_a_mean_over_pixels_and_not_over_images():
    """D19: one labeled pixel in the first image, three in the second; each counts a quarter."""
    one, _ = of_probability([[0.5, 0.9, 0.9]])
    two, _ = of_probability([[0.2, 0.3, 0.4]])
    label = torch.tensor([[[0, IGNORE, IGNORE]], [[0, 0, 0]]])
    expected = -sum(math.log(p) for p in (0.5, 0.2, 0.3, 0.4)) / 4
    assert cross_entropy(torch.cat([one, two]), label).item() == pytest.approx(expected, rel=1e-6)


def test_class_weights_by_hand():
    """Divided by the number of pixels: -(2 log 0.5 + 2 log 0.25 + 3 log 0.2) / 3, the last pixel of class 1."""
    logits, label = of_probability([[0.5, 0.25, 0.8]])
    label[0, 0, 2] = 1
    expected = -(2 * math.log(0.5) + 2 * math.log(0.25) + 3 * math.log(0.2)) / 3
    assert cross_entropy(logits, label, class_weights=(2.0, 3.0)).item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(cross_entropy(logits, label, class_weights=(1.0, 1.0)), cross_entropy(logits, label))
    half = cross_entropy(logits, label, labeled_px=torch.tensor(6), class_weights=(2.0, 3.0))
    assert half.item() == pytest.approx(expected / 2, rel=1e-6)


def test_weights_from_labeled_pixels_by_hand():
    """Shares 0.64, 0.04, 0.32 of 100 px: roots 0.8, 0.2, 0.5657, which sum up to 1.5657. Class 3 has no pixel."""
    counts = [{0: 60, 1: 4, IGNORE: 1000}, {0: 4, 2: 32}]
    found = inverse_sqrt(counts, 4)
    assert found == pytest.approx((0.79838, 3.19352, 1.12908, 1.0), abs=1e-4)
    assert 0.64 * found[0] + 0.04 * found[1] + 0.32 * found[2] == pytest.approx(1)
    assert inverse_sqrt([], 2) == (1.0, 1.0)


def test_class_weights_that_fit_the_classes():
    counts, names = [{0: 75, 1: 25}], ("ok", "crack")
    loss = LabeledLoss(class_weights="inverse_sqrt").fitted(names, counts)
    assert loss.class_weights == inverse_sqrt(counts, 2)
    assert loss.fitted(names, [{0: 1, 1: 99}]) == loss  # numbers stay as they are
    assert LabeledLoss().fitted(names, counts) == LabeledLoss()
    logits, label, _, valid = random_case(7, classes=2)
    label = torch.where(valid, label, IGNORE)
    weighted = cross_entropy(logits, label, class_weights=inverse_sqrt(counts, 2))
    assert torch.equal(loss(logits, label, part_of(label)), weighted)
    assert not torch.equal(weighted, cross_entropy(logits, label))
    message = r"method.labeled_loss.class_weights: .* does not fit 2 classes \(ok, crack\); give one number for each"
    for wrong in ((1.0,), (1.0, 2.0, 3.0), (), (0.0, 0.0)):
        with pytest.raises(UserError, match=message):
            LabeledLoss(class_weights=wrong).fitted(names, counts)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_a_batch_without_labels_has_loss_zero_and_a_gradient_of_zero(loss):
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), IGNORE))
    assert value.item() == 0
    value.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_logits_of_ignored_pixels_change_nothing(loss):
    logits, label, _, valid = random_case(0)
    label = torch.where(valid, label, IGNORE)
    changed = torch.where(valid[:, None], logits, 100 * logits.flip(1))
    assert torch.equal(loss(changed, label), loss(logits, label))


HARDEST = [[0.9, 0.8, 0.6], [0.5, 0.3, 0.02]]  # the last one is IGNORE


@pytest.mark.parametrize(
    ("threshold", "min_kept", "kept"),
    [
        (0.7, 1, [0.6, 0.5, 0.3]),  # the threshold keeps enough
        (0.7, 3, [0.6, 0.5, 0.3]),
        (0.7, 4, [0.8, 0.6, 0.5, 0.3]),  # too few are hard: the four hardest
        (0.1, 2, [0.5, 0.3]),
        (0.1, 0, []),
        (0.1, 5, [0.9, 0.8, 0.6, 0.5, 0.3]),  # every labeled pixel
        (0.1, 6, [0.9, 0.8, 0.6, 0.5, 0.3]),  # more than there are: the ignored pixel is still not kept
        (0.1, 100_000, [0.9, 0.8, 0.6, 0.5, 0.3]),
        (1.0, 1, [0.9, 0.8, 0.6, 0.5, 0.3]),
    ],
)
def test_ohem_by_hand(threshold, min_kept, kept):
    logits, label = of_probability(HARDEST)
    label[0, 1, 2] = IGNORE
    expected = -sum(math.log(p) for p in kept) / max(len(kept), 1)
    assert ohem_cross_entropy(logits, label, threshold, min_kept).item() == pytest.approx(expected, rel=1e-5)


def test_ohem_keeps_all_of_equally_hard_pixels():
    logits, label = of_probability([[0.5, 0.5, 0.5, 0.9]])
    assert ohem_cross_entropy(logits, label, 0.1, 1).item() == pytest.approx(-math.log(0.5), rel=1e-6)
    logits.requires_grad_()
    ohem_cross_entropy(logits, label, 0.1, 2).backward()
    assert logits.grad.abs().sum(1)[0, 0].gt(0).tolist() == [True, True, True, False]


def test_ohem_counts_a_pixel_exactly_at_the_threshold_as_hard():
    probability = F.softmax(torch.zeros(4), 0)[0].item()
    assert probability == 0.25
    loss = ohem_cross_entropy(torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long), probability, 0)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.3, 0.7, 1.0]), st.integers(0, 80))
def test_ohem_equals_a_slow_reference(seed, threshold, min_kept):
    logits, label, _, valid = random_case(seed)
    label = torch.where(valid, label, IGNORE)
    losses = sorted(
        (
            slow_cross_entropy(logits[i, :, y, x], int(label[i, y, x]))
            for i in range(3)
            for y in range(5)
            for x in range(5)
            if label[i, y, x] != IGNORE
        ),
        reverse=True,
    )
    hard = sum(math.exp(-loss) <= threshold for loss in losses)
    kept = losses[: max(hard, min_kept)]
    expected = sum(kept) / max(len(kept), 1)
    assert ohem_cross_entropy(logits, label, threshold, min_kept).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_confident_cross_entropy_by_hand():
    """Divided by the valid pixels of each image and not by the confident ones."""
    first, _ = of_probability([[0.5, 0.25], [0.8, 0.1]])
    second, target = of_probability([[0.2, 0.3], [0.4, 0.6]])
    confidence = torch.tensor([[[0.95, 0.94], [0.99, 0.2]], [[0.95, 1.0], [0.96, 0.97]]])
    valid = torch.tensor([[[True, True], [True, True]], [[True, True], [False, False]]])
    logits, target = torch.cat([first, second]), target.expand(2, -1, -1)
    by_image = confident_cross_entropy(logits, target, confidence, 0.95, valid)
    assert by_image.tolist() == pytest.approx(
        [-(math.log(0.5) + math.log(0.8)) / 4, -(math.log(0.2) + math.log(0.3)) / 2], rel=1e-5
    )
    everywhere = confident_cross_entropy(logits, target, confidence, 0.95)
    assert everywhere[1].item() == pytest.approx(-sum(math.log(p) for p in (0.2, 0.3, 0.4, 0.6)) / 4, rel=1e-5)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 0.95]), st.booleans())
def test_confident_cross_entropy_equals_a_slow_reference(seed, threshold, masked):
    """The inner sum of Eq. 11, pixel by pixel."""
    logits, target, confidence, valid = random_case(seed)
    expected = []
    for i in range(3):
        total, pixels = 0.0, 0
        for y in range(5):
            for x in range(5):
                if masked and not valid[i, y, x]:
                    continue
                pixels += 1
                if confidence[i, y, x] >= torch.tensor(threshold):
                    total += slow_cross_entropy(logits[i, :, y, x], int(target[i, y, x]))
        expected.append(total / max(pixels, 1))
    by_image = confident_cross_entropy(logits, target, confidence, threshold, valid if masked else None)
    assert by_image.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.95, 1.0])
def test_a_pixel_exactly_at_the_threshold_is_confident(threshold):
    logits, target = of_probability([[0.5]])
    below = torch.nextafter(torch.tensor(threshold), torch.tensor(-1.0))
    for confidence, expected in ((torch.tensor(threshold), -math.log(0.5)), (below, 0.0)):
        loss = confident_cross_entropy(logits, target, confidence.expand(1, 1, 1), threshold)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_only_confident_valid_pixels_have_a_gradient():
    logits, target, confidence, valid = random_case(1)
    logits.requires_grad_()
    confident_cross_entropy(logits, target, confidence, 0.7, valid).sum().backward()
    assert torch.equal(logits.grad.abs().sum(1) > 0, (confidence > 0.6) & valid)


def test_an_image_without_a_valid_pixel_has_loss_zero():
    logits, target, confidence, valid = random_case(2)
    valid[1] = False
    logits.requires_grad_()
    by_image = confident_cross_entropy(logits, target, confidence, 0.5, valid)
    assert by_image[1].item() == 0
    assert by_image[0] > 0
    by_image.sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_few_bits_are_reduced_in_fp32(dtype):
    logits, label, confidence, valid = random_case(3)
    low = logits.to(dtype)
    for loss in (
        lambda z: cross_entropy(z, label),
        lambda z: ohem_cross_entropy(z, label, 0.7, 10),
        lambda z: confident_cross_entropy(z, label, confidence, 0.5, valid),
    ):
        assert loss(low).dtype == torch.float32
        assert torch.equal(loss(low), loss(low.float()))


def test_the_host_never_waits(no_host_sync):
    logits, label, confidence, valid = random_case(4)
    assert no_host_sync(cross_entropy, logits, label).is_meta
    assert no_host_sync(ohem_cross_entropy, logits, label, 0.7, 10).is_meta
    for mask in (None, valid):
        assert no_host_sync(confident_cross_entropy, logits, label, confidence, 0.5, mask).is_meta
    assert no_host_sync(weighted_cross_entropy, logits, label, confidence).is_meta


def test_a_weighted_mean_of_each_image():
    logits, label, confidence, valid = random_case(7)
    weight = confidence * valid
    weight[1] = 0
    weight[2] *= 1e-30  # it counts as much as the others
    loss = F.cross_entropy(logits, label, reduction="none")
    found = weighted_cross_entropy(logits, label, weight)
    for i in (0, 2):
        wanted = (loss[i].double() * weight[i]).sum() / weight[i].double().sum()
        assert found[i].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found[1] == 0


def test_infonce_counts_negatives_of_other_classes():
    """By hand: cosines 0.6 and 0 to the positives; 1, 0.8, -1 and 1 to the negatives."""
    anchor, positive = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    negative = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [1.0, 0.0]])
    label, its = torch.tensor([0, 1]), torch.tensor([1, 0, 1, IGNORE])
    found = contrastive_between_classes(anchor, positive, label, negative, its, temperature=0.5)
    first = -math.log(math.exp(1.2) / (math.exp(1.2) + math.exp(2) + math.exp(-2)))
    second = -math.log(1 / (1 + math.exp(1.6)))
    assert found.tolist() == pytest.approx([first, second], rel=1e-5)
    alone = contrastive_between_classes(anchor, positive, label, negative, torch.full((4,), IGNORE), 0.5)
    assert alone.tolist() == [0, 0]


def test_infonce_has_finite_gradients_and_full_precision():
    generator = fold_in(0, "contrast")
    anchor, positive, negative = (F.normalize(torch.randn(9, 4, generator=generator), dim=1) for _ in range(3))
    labels = torch.arange(9), torch.zeros(9, dtype=torch.long)
    own = anchor.clone().requires_grad_()
    expected = contrastive_between_classes(own, positive, labels[0], negative, labels[1], temperature=0.01)
    expected.sum().backward()
    assert torch.isfinite(own.grad).all()
    assert (own.grad[0] == 0).all()  # without negatives
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_between_classes(anchor, positive, labels[0], negative, labels[1], temperature=0.01)
        assert torch.equal(found, expected)
        assert (anchor @ negative.mT).dtype == torch.bfloat16
        with full_precision(torch.device("cpu")):
            assert (anchor @ negative.mT).dtype == torch.float32
    with full_precision(torch.device("meta")):
        pass


def part_of(label: Tensor) -> Part:
    """A part that is the whole batch."""
    return Part(None, None, slice(0, len(label)), 1.0, (label != IGNORE).sum(), torch.tensor(0))


def test_an_anchor_is_compared_with_keys_of_all_classes():
    generator = fold_in(0, "keys")
    anchor, key = torch.randn(6, 4, generator=generator), torch.randn(8, 4, generator=generator)
    label, keys = torch.tensor([0, 1, 2, IGNORE, 1, 0]), torch.tensor([0, 1, 1, IGNORE, 0, 1, IGNORE, 3])
    anchor.requires_grad_()
    loss = class_contrast(anchor, label, key, keys, temperature=0.5)
    for row, own in zip(range(6), label.tolist(), strict=True):
        of_own, of_all = 0.0, 0.0
        for other, its in zip(key, keys.tolist(), strict=True):
            cosine = (anchor[row] @ other / anchor[row].norm() / other.norm()).item()
            of_own += math.exp(cosine / 0.5) * (its == own) * (its != IGNORE)
            of_all += math.exp(cosine / 0.5) * (its != IGNORE)
        assert loss[row].item() == pytest.approx(-math.log(of_own / of_all) if of_own else 0, rel=1e-5)
    assert (loss == 0).tolist() == [False, False, True, True, False, False]
    none = class_contrast(anchor, label, key, torch.full_like(keys, IGNORE), temperature=0.5)
    assert torch.equal(none, torch.zeros(6))
    (loss.sum() + none.sum()).backward()
    assert torch.isfinite(anchor.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_contrast(anchor, label, key, keys, temperature=0.5), loss)


def test_the_labeled_loss_that_a_recipe_asks_for():
    logits, label, _, valid = random_case(5)
    label = torch.where(valid, label, IGNORE)
    whole = part_of(label)
    assert torch.equal(LabeledLoss()(logits, label, whole), cross_entropy(logits, label))
    settings = {"kind": "ohem", "ohem_threshold": 0.2, "min_kept": 7}
    assert torch.equal(LabeledLoss(**settings)(logits, label, whole), ohem_cross_entropy(logits, label, 0.2, 7))
    default = LabeledLoss(kind="ohem", min_kept=1)
    assert torch.equal(default(logits, label, whole), ohem_cross_entropy(logits, label, 0.7, 1))
    default = LabeledLoss(kind="ohem", ohem_threshold=0.1)
    assert torch.equal(default(logits, label, whole), ohem_cross_entropy(logits, label, 0.1, 100_000))


def test_the_shares_of_the_parts_add_up():
    """Cross-entropy to that of the whole, whatever the parts' numbers of labeled pixels; OHEM to the parts' mean."""
    logits, label, _, valid = random_case(6)
    label = torch.where(valid, label, IGNORE)
    label[0, 1:] = IGNORE
    third = replace(part_of(label), share=1 / 3)
    parts = [(logits[i : i + 1], label[i : i + 1]) for i in range(len(label))]
    shares = [LabeledLoss()(*part, third) for part in parts]
    torch.testing.assert_close(sum(shares), cross_entropy(logits, label))
    ohem = LabeledLoss(kind="ohem", ohem_threshold=0.1, min_kept=2 * len(parts))
    mined = [ohem_cross_entropy(*part, 0.1, 2) for part in parts]
    torch.testing.assert_close(sum(ohem(*part, third) for part in parts), torch.stack(mined).mean())


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"ohem_threshold": 0.7}, "ohem"),
        ({"min_kept": 10}, "ohem"),
        ({"kind": "cross_entropy", "ohem_threshold": 0.7}, "ohem"),
        ({"kind": "focal"}, "kind"),
        ({"kind": "ohem", "class_weights": "inverse_sqrt"}, "class_weights belong to kind: cross_entropy"),
        ({"class_weights": [1.0, -1.0]}, "class_weights"),
        ({"kind": "ohem", "ohem_threshold": 0}, "threshold"),
        ({"kind": "ohem", "ohem_threshold": 1.1}, "threshold"),
        ({"kind": "ohem", "min_kept": 0}, "min_kept"),
        ({"weight": 1}, "weight"),
    ],
)
def test_settings_that_cannot_be_meant(settings, place):
    with pytest.raises(ValidationError, match=place):
        LabeledLoss(**settings)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        LabeledLoss().kind = "ohem"
