from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semiseg.augment.scales import rescale
from semiseg.hardness import confident_ratio, confusion, easiness, quantile, subsample, weighted_iou
from semiseg.rng import fold_in
from semiseg.types import Prediction

TAU = 0.95

# Golden vectors computed outside this project.
GOLDEN_STUDENT = Prediction(
    torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 1, 1], [2, 2, 2, 0]]]),
    torch.tensor([0.99, 0.96, 0.9, 0.9])[None, :, None].expand(1, 4, 4),
    3,
)
GOLDEN_TEACHER = Prediction(
    torch.tensor([[[0, 0, 0, 1], [0, 1, 1, 1], [2, 2, 2, 1], [2, 2, 0, 0]]]),
    torch.tensor([0.97, 0.97, 0.97, 0.5])[None, :, None].expand(1, 4, 4),
    3,
)


@dataclass(frozen=True)
class Case:
    student: Prediction
    teacher: Prediction
    valid: Tensor
    ignore_class: int | None
    tau: float = TAU


def prediction(generator: torch.Generator, label: Tensor, num_classes: int) -> Prediction:
    # A few values only, one of them tau itself: "at least tau" counts.
    choice = torch.randint(4, label.shape, generator=generator)
    return Prediction(label, torch.tensor([0.5, 0.9499, TAU, 1.0])[choice], num_classes)


@st.composite
def cases(draw, num_classes: tuple[int, ...] = (2, 3, 4, 5)) -> Case:
    classes, batch = draw(st.sampled_from(num_classes)), draw(st.integers(1, 4))
    shape = (batch, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    agreement, padding = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), draw(st.sampled_from([0.0, 0.3, 0.95]))
    generator = fold_in(draw(st.integers(0, 2**32)), "case")
    labels = [torch.randint(draw(st.integers(1, classes)), shape, generator=generator) for _ in range(2)]
    agreed = torch.where(torch.rand(shape, generator=generator) < agreement, labels[0], labels[1])
    return Case(
        prediction(generator, labels[0], classes),
        prediction(generator, agreed, classes),
        torch.rand(shape, generator=generator) >= padding,
        draw(st.none() | st.integers(0, classes - 1)),
    )


def ours(case: Case, all_ignored_is_hard: bool = False) -> Tensor:
    return easiness(case.student, case.teacher, case.tau, case.valid, case.ignore_class, all_ignored_is_hard)


def slow_wiou(z1: list[int], z2: list[int], ignore: int | None, all_ignored_is_hard: bool) -> float:
    """wIoU(z1, z2): IoU of the classes, weighted by how often each occurs in z1."""
    frequency, total, weights = Counter(z1), 0.0, 0
    if ignore is not None:
        if set(frequency) <= {ignore} and all_ignored_is_hard:
            return 0.0
        if set(frequency) != {ignore}:
            del frequency[ignore]
    for label, count in frequency.items():
        both = sum(a == label and b == label for a, b in zip(z1, z2, strict=True))
        either = sum(a == label or b == label for a, b in zip(z1, z2, strict=True))
        total, weights = total + count * both / either, weights + count
    return total / weights if weights else 0.0


def slow_hardness(case: Case, all_ignored_is_hard: bool = False) -> np.ndarray:
    """Eq. 5-7, one pixel after the other."""
    gammas = []
    for i in range(len(case.valid)):
        seen = [
            (int(s), int(t), s_sure.item(), t_sure.item())
            for s, t, s_sure, t_sure, valid in zip(
                case.student.label[i].flatten(),
                case.teacher.label[i].flatten(),
                case.student.confidence[i].flatten(),
                case.teacher.confidence[i].flatten(),
                case.valid[i].flatten(),
                strict=True,
            )
            if valid
        ]
        p_s, p_t = [pixel[0] for pixel in seen], [pixel[1] for pixel in seen]
        tau = np.float32(case.tau)
        rho_s = sum(pixel[2] >= tau for pixel in seen) / max(len(seen), 1)
        rho_t = sum(pixel[3] >= tau for pixel in seen) / max(len(seen), 1)
        agreement = rho_s / 2 * slow_wiou(p_s, p_t, case.ignore_class, all_ignored_is_hard)
        agreement += rho_t / 2 * slow_wiou(p_t, p_s, case.ignore_class, all_ignored_is_hard)
        gammas.append(1 - agreement)
    return np.array(gammas, dtype=np.float32)


@pytest.mark.parametrize(
    ("ignore_class", "by_teacher", "by_student", "expected"),
    [(0, 0.690476, 0.694444, 0.4325397), (None, 0.681548, 0.687500, 0.4274554)],
)
def test_golden_vectors(ignore_class, by_teacher, by_student, expected):
    matrix = confusion(GOLDEN_STUDENT.label, GOLDEN_TEACHER.label, 3)
    assert weighted_iou(matrix.mT, ignore_class).item() == pytest.approx(by_teacher, abs=1e-6)
    assert weighted_iou(matrix, ignore_class).item() == pytest.approx(by_student, abs=1e-6)
    assert confident_ratio(GOLDEN_STUDENT.confidence, TAU).item() == 0.5
    assert confident_ratio(GOLDEN_TEACHER.confidence, TAU).item() == 0.75
    easy = easiness(GOLDEN_STUDENT, GOLDEN_TEACHER, TAU, ignore_class=ignore_class)
    assert easy.item() == pytest.approx(expected, abs=1e-7)
    case = Case(GOLDEN_STUDENT, GOLDEN_TEACHER, torch.ones(1, 4, 4, dtype=torch.bool), ignore_class)
    assert slow_hardness(case).item() == pytest.approx(1 - expected, abs=1e-6)


@pytest.mark.parametrize(("ignore_class", "all_ignored_is_hard", "expected"), [(0, True, 0.0), (None, True, 0.75)])
def test_golden_vectors_of_an_image_that_is_all_background(ignore_class, all_ignored_is_hard, expected):
    background = replace(GOLDEN_TEACHER, label=torch.zeros_like(GOLDEN_TEACHER.label))
    matrix = confusion(background.label, background.label, 3)
    zero = torch.zeros(())
    assert weighted_iou(matrix, ignore_class, zero).item() == (0.0 if ignore_class == 0 else 1.0)
    easy = easiness(background, background, TAU, ignore_class=ignore_class, all_ignored_is_hard=all_ignored_is_hard)
    assert easy.item() == expected


def test_an_image_that_is_all_background_falls_back_to_every_class():
    background = replace(GOLDEN_TEACHER, label=torch.zeros_like(GOLDEN_TEACHER.label))
    assert easiness(background, background, TAU, ignore_class=0).item() == 0.75


def test_only_the_side_that_sees_nothing_but_background_falls_back():
    """Student: all class 0. Teacher: half 0, half 1. IoU of class 0 is 1/2, of class 1 it is 0."""
    teacher = torch.zeros(2, 2, 4, dtype=torch.long)
    teacher[:, 1] = 1
    sure = torch.ones(2, 2, 4)
    student = Prediction(torch.zeros_like(teacher), sure, 2)
    fallback = easiness(student, Prediction(teacher, sure, 2), TAU, ignore_class=0)
    assert fallback.tolist() == [0.25, 0.25]  # student's side 1/2, teacher's side (class 1 alone) 0
    hard = easiness(student, Prediction(teacher, sure, 2), TAU, ignore_class=0, all_ignored_is_hard=True)
    assert hard.tolist() == [0.0, 0.0]


@given(cases())
def test_equals_the_slow_reference(case):
    np.testing.assert_allclose(1 - ours(case), slow_hardness(case), atol=1e-6)
    np.testing.assert_allclose(
        1 - ours(case, all_ignored_is_hard=True), slow_hardness(case, all_ignored_is_hard=True), atol=1e-6
    )


@given(cases())
def test_easiness_lies_between_0_and_1(case):
    easy = ours(case)
    assert easy.dtype == torch.float32
    assert easy.shape == case.valid.shape[:1]
    assert (easy >= 0).all()
    assert (easy <= 1).all()


@given(cases())
def test_student_and_teacher_are_exchangeable(case):
    assert torch.equal(ours(case), ours(replace(case, student=case.teacher, teacher=case.student)))


@given(cases(), st.randoms(use_true_random=False))
def test_images_do_not_influence_each_other(case, random):
    order = list(range(len(case.valid)))
    random.shuffle(order)

    def shuffled(p: Prediction) -> Prediction:
        return replace(p, label=p.label[order], confidence=p.confidence[order])

    permuted = Case(shuffled(case.student), shuffled(case.teacher), case.valid[order], case.ignore_class)
    assert torch.equal(ours(permuted), ours(case)[order])
    alone = replace(
        case,
        student=replace(case.student, label=case.student.label[:1], confidence=case.student.confidence[:1]),
        teacher=replace(case.teacher, label=case.teacher.label[:1], confidence=case.teacher.confidence[:1]),
        valid=case.valid[:1],
    )
    assert torch.equal(ours(alone), ours(case)[:1])


@given(cases(), st.integers(0, 3), st.integers(0, 3))
def test_padding_changes_nothing(case, rows, columns):
    generator = fold_in(0, "padding", rows, columns)

    def padded(p: Prediction) -> Prediction:
        label = torch.nn.functional.pad(p.label, (0, columns, 0, rows), value=-1)
        label = torch.where(label < 0, torch.randint(p.num_classes, label.shape, generator=generator), label)
        confidence = torch.nn.functional.pad(p.confidence, (0, columns, 0, rows), value=-1.0)
        confidence = torch.where(confidence < 0, torch.rand(label.shape, generator=generator), confidence)
        return Prediction(label, confidence, p.num_classes)

    valid = torch.nn.functional.pad(case.valid, (0, columns, 0, rows), value=False)
    larger = Case(padded(case.student), padded(case.teacher), valid, case.ignore_class)
    assert torch.equal(ours(larger), ours(case))


@given(cases(), st.randoms(use_true_random=False))
def test_names_of_classes_do_not_matter(case, random):
    names = list(range(case.student.num_classes))
    random.shuffle(names)

    def renamed(p: Prediction) -> Prediction:
        return replace(p, label=torch.tensor(names)[p.label])

    ignore_class = None if case.ignore_class is None else names[case.ignore_class]
    other = Case(renamed(case.student), renamed(case.teacher), case.valid, ignore_class)
    torch.testing.assert_close(ours(other), ours(case))


@given(cases())
def test_identical_confident_predictions_are_not_hard(case):
    sure = replace(case.student, confidence=torch.full_like(case.student.confidence, TAU))
    easy = ours(replace(case, student=sure, teacher=sure))
    torch.testing.assert_close(easy, case.valid.any(2).any(1).float())  # an image without a valid pixel is hard


@given(cases())
def test_without_confidence_everything_is_hard(case):
    unsure = replace(case.teacher, confidence=torch.full_like(case.teacher.confidence, 0.9))
    assert (ours(replace(case, student=unsure, teacher=unsure)) == 0).all()


@given(cases())
def test_no_mask_counts_every_pixel(case):
    everything = replace(case, valid=torch.ones_like(case.valid))
    without = easiness(case.student, case.teacher, case.tau, None, case.ignore_class)
    torch.testing.assert_close(without, ours(everything))


def test_an_image_without_a_valid_pixel_is_hard_and_leaves_the_others_alone():
    both = [
        Prediction(p.label.expand(2, -1, -1), p.confidence.expand(2, -1, -1), 3)
        for p in (GOLDEN_STUDENT, GOLDEN_TEACHER)
    ]
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0] = False
    for ignore_class, expected in ((0, 0.4325397), (None, 0.4274554)):
        easy = easiness(*both, TAU, valid, ignore_class)
        assert easy[0].item() == 0
        assert easy[1].item() == pytest.approx(expected, abs=1e-6)


def test_weighted_iou_is_not_commutative():
    matrix = confusion(GOLDEN_STUDENT.label, GOLDEN_TEACHER.label, 3)
    assert not torch.allclose(weighted_iou(matrix), weighted_iou(matrix.mT))


def test_confusion_by_hand():
    first = torch.tensor([[[0, 1], [1, 2]], [[2, 2], [2, 0]]])
    second = torch.tensor([[[0, 1], [2, 2]], [[0, 2], [2, 1]]])
    valid = torch.tensor([[[True, True], [True, False]], [[True, True], [True, True]]])
    assert confusion(first, second, 3, valid).tolist() == [
        [[1, 0, 0], [0, 1, 1], [0, 0, 0]],
        [[0, 1, 0], [0, 0, 0], [1, 0, 2]],
    ]


@given(cases(num_classes=(2, 254)))
def test_as_many_classes_as_a_mask_can_hold(case):
    np.testing.assert_allclose(1 - ours(case), slow_hardness(case), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_labels_of_few_bits(dtype):
    """253 * 254 + 253 does not fit into 16 bits."""
    label = torch.tensor([[[253, 252], [0, 253]]])
    narrow = confusion(label.to(dtype), label.to(dtype), 254)
    assert torch.equal(narrow, confusion(label, label, 254))
    assert narrow[0, 253, 253] == 2


def test_the_host_never_waits(no_host_sync):
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    for mask in (None, valid):
        for ignore_class in (None, 0):
            for hard in (False, True):
                easy = no_host_sync(easiness, GOLDEN_STUDENT, GOLDEN_TEACHER, TAU, mask, ignore_class, hard)
                assert easy.is_meta


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.bincount(x.long()),
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: torch.empty(3).copy_(x),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.equal(x, x),
        lambda x: x + torch.ones(3).to(x.device),
    ],
)
def test_every_way_to_wait_would_be_noticed(no_host_sync, wait):
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        no_host_sync(wait, torch.arange(3.0))


def test_subsample_takes_the_pixels_at_the_centers():
    label = torch.arange(6)[:, None].expand(6, 5).repeat(2, 1, 1) * 10 + torch.arange(5)
    prediction, valid = Prediction(label, label / 100, 60), label % 2 == 0
    assert subsample(prediction, valid, (6, 5)) == (prediction, valid)
    small, inside = subsample(prediction, valid, (3, 2))
    assert small.label.tolist() == [[[11, 13], [31, 33], [51, 53]]] * 2
    assert torch.equal(small.confidence, small.label / 100)
    assert torch.equal(inside, small.label % 2 == 0)
    assert small.num_classes == 60


def test_a_shrunk_image_and_its_subsampled_map_fit():
    """What is painted by a map is, seen at half size, painted by the half of the map."""
    blocks = torch.randint(2, (3, 1, 4, 4), generator=fold_in(0, "blocks")).float()
    image = torch.nn.functional.interpolate(blocks, (32, 40)).expand(-1, 3, -1, -1)
    assert rescale(image, 1.0) is image
    small = rescale(image, 0.5)
    prediction = Prediction(image[:, 0].long(), image[:, 0], 2)
    label = subsample(prediction, prediction.label >= 0, small.shape[-2:])[0].label
    assert torch.equal(small[:, 0] > 0.5, label == 1)


def test_a_smaller_look_never_waits(no_host_sync):
    prediction = Prediction(torch.zeros(2, 8, 8, dtype=torch.int64), torch.rand(2, 8, 8), 3)
    assert no_host_sync(rescale, torch.rand(2, 3, 8, 8), 0.5).is_meta
    assert no_host_sync(subsample, prediction, prediction.label == 0, (4, 4))[1].is_meta


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.83, 1.0])
def test_quantile_is_that_of_torch(share):
    value = torch.rand(3, 7, 11, generator=fold_in(0, "quantile"))
    counted = torch.rand(value.shape, generator=fold_in(0, "counted")) < 0.7
    wanted = torch.quantile(value[counted].double(), share, interpolation="lower")
    assert quantile(value, counted, share) == wanted
    value[~counted] = -9.0
    assert quantile(value, counted, share) == wanted
    assert quantile(value, torch.zeros_like(counted), share) == torch.inf
