import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semiseg.metrics import add_confusion, scores
from semiseg.percent import miou_percent, percent
from semiseg.rng import fold_in
from semiseg.types import IGNORE


def empty(num_classes: int) -> Tensor:
    return torch.zeros(num_classes, num_classes, dtype=torch.int64)


def random_maps(seed: int, num_classes: int, shape: tuple[int, ...] = (2, 5, 4)) -> tuple[Tensor, Tensor]:
    generator = fold_in(seed, "metrics")
    prediction = torch.randint(num_classes, shape, generator=generator)
    label = torch.randint(num_classes, shape, generator=generator)
    agreed = torch.where(torch.rand(shape, generator=generator) < 0.5, prediction, label)
    return prediction, torch.where(torch.rand(shape, generator=generator) < 0.2, IGNORE, agreed)


def test_by_hand():
    label = torch.tensor([[0, 0, 0, 1], [1, 1, 2, IGNORE]])
    prediction = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 2]])
    matrix = add_confusion(empty(3), prediction, label)
    assert matrix.tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 1]]  # labels in rows
    result = scores(matrix)
    assert result.iou == pytest.approx((2 / 3, 2 / 4, 1 / 2))
    assert result.miou == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert result.accuracy == pytest.approx(5 / 7)


def test_a_class_that_occurs_nowhere_has_no_iou():
    """D52: in the authors' code it counts as 0."""
    label, prediction = torch.tensor([0, 0, 3]), torch.tensor([0, 3, 3])
    result = scores(add_confusion(empty(5), prediction, label))
    assert [math.isnan(iou) for iou in result.iou] == [False, True, True, False, True]
    assert result.iou[0] == result.iou[3] == result.miou == 0.5


def test_a_class_that_is_only_predicted_or_only_labeled_counts_as_0():
    result = scores(add_confusion(empty(3), torch.tensor([0, 1]), torch.tensor([0, 2])))
    assert result.iou == (1.0, 0.0, 0.0)
    assert result.miou == pytest.approx(1 / 3)


def test_ignored_pixels_count_nowhere():
    prediction, label = random_maps(0, 4)
    matrix = add_confusion(empty(4), prediction, label)
    assert matrix.sum() == (label != IGNORE).sum()
    other = torch.where(label == IGNORE, (prediction + 1) % 4, prediction)
    assert torch.equal(add_confusion(empty(4), other, label), matrix)
    assert add_confusion(empty(4), prediction, torch.full_like(label, IGNORE)).sum() == 0


def test_accumulation_equals_one_pass():
    prediction, label = random_maps(1, 3, (6, 4, 4))
    matrix = empty(3)
    for i in range(6):
        before = matrix
        matrix = add_confusion(matrix, prediction[i], label[i])
        assert matrix is not before
    assert torch.equal(matrix, add_confusion(empty(3), prediction, label))


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5, 254]))
def test_equals_a_slow_reference(seed, num_classes):
    prediction, label = random_maps(seed, num_classes)
    pixels = [(p, t) for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True) if t != 255]
    iou = {}
    for c in range(num_classes):
        union = sum(p == c or t == c for p, t in pixels)
        if union:
            iou[c] = sum(p == c and t == c for p, t in pixels) / union
    result = scores(add_confusion(empty(num_classes), prediction, label))
    assert {c: value for c, value in enumerate(result.iou) if not math.isnan(value)} == pytest.approx(iou)
    assert result.miou == pytest.approx(sum(iou.values()) / len(iou))
    assert result.accuracy == pytest.approx(sum(p == t for p, t in pixels) / len(pixels))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_maps_of_few_bits(dtype):
    prediction, label = random_maps(2, 254)
    narrow = add_confusion(empty(254), prediction.to(dtype), label.to(dtype))
    assert torch.equal(narrow, add_confusion(empty(254), prediction, label))


def test_counts_larger_than_fp32_can_hold():
    matrix = add_confusion(torch.tensor([[2**24, 0], [0, 2**40]]), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert matrix.tolist() == [[2**24 + 1, 0], [0, 2**40 + 1]]
    assert scores(matrix).accuracy == 1


def test_the_host_never_waits(no_host_sync):
    prediction, label = random_maps(3, 3)
    assert no_host_sync(add_confusion, empty(3), prediction, label).is_meta


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "12.35"), (0.0, "0.00"), (1.0, "100.00"), (None, "-"), (math.nan, "-")]
)
def test_percent(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("label", "prediction", "text"),
    [
        ([0, 0], [0, 0], "100.00 (1 class of 3)"),
        ([2, IGNORE], [2, 1], "100.00 (1 class of 3)"),  # what is predicted for ignored pixels is not counted
        ([0, 0], [0, 1], "25.00"),  # a class that is only predicted is one more
        ([0, 1], [0, 0], "25.00"),
    ],
)
def test_an_miou_of_one_class_says_so(label, prediction, text):
    result = scores(add_confusion(empty(3), torch.tensor(prediction), torch.tensor(label)))
    assert miou_percent(result.miou, result.iou) == text
