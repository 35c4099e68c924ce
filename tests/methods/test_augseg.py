import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from semiseg.augment.cutmix import random_partners, sample_beta_boxes
from semiseg.augment.ops import OPS
from semiseg.methods.augseg import POOL, Config, Method, sureness
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
AT = Progress(3, 10, seed=1)
TAU = 0.6
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(norm, **settings) -> a method whose teacher differs from the student."""

    def make(norm: bool = True, **settings) -> Method:
        method = Method(Config(**({"threshold": TAU} | settings)), lambda: tiny(0, norm), CLASSES)
        differ(method.teacher)
        return method.train()

    return make


@pytest.fixture
def identity(identity_network) -> Make:
    """identity(**settings) -> a method whose networks return the image as logits."""
    return lambda **settings: Method(Config(**settings), identity_network, CLASSES).train()


def batch_of(slots: int = 5) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 12, 16), generator=generator)
    label[0, :5] = IGNORE
    label[2, :, 11:] = IGNORE
    valid = torch.ones(slots, 12, 16, dtype=torch.bool)
    valid[0, :, 9:] = False
    valid[-1, 7:] = False
    image, weak, strong = torch.randn(3, slots, 3, 12, 16, generator=generator)
    return SemiBatch(image, label, weak, (strong,), valid, torch.arange(slots))


BATCH = batch_of()


def step_of(method: Method, batch: SemiBatch = BATCH, at: Progress = AT) -> tuple[Losses, Tensor]:
    """The losses, and the strong views that the student was trained on."""
    seen: list[Tensor] = []
    handle = method.student.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    losses = method.losses(batch, at)
    handle.remove()
    (together,) = seen  # one pass for everything that has a gradient
    assert torch.equal(together[: len(batch.image)], batch.image)
    return losses, together[len(batch.image) :]


# How sure the teacher is of an image.


def test_sureness_by_hand():
    certain, undecided, likely = (1.0, 0.0), (0.5, 0.5), (0.9, 0.1)
    # H(0.9, 0.1) = 0.325083, over log 2 it is 0.468996; (1 - 0.468996) * 0.9 = 0.477904
    probability = torch.tensor([[certain, undecided, likely], [likely, likely, undecided]]).mT[:, :, None]
    valid = torch.tensor([[[True, True, True]], [[True, False, True]]])
    found = sureness(probability, valid)
    assert found.tolist() == pytest.approx([(1 + 0 + 0.477904) / 3, 0.477904 / 2], abs=1e-6)
    # of three classes: H(1/2, 1/4, 1/4) = 1.5 log 2 = 1.039721, over log 3 it is 0.946395; times 1/2
    probability = torch.tensor([0.5, 0.25, 0.25])[None, :, None, None]
    assert sureness(probability, valid[:1, :, :1]).item() == pytest.approx(0.053605 / 2, abs=1e-6)


def test_an_image_that_is_all_padding_and_a_single_class_have_a_sureness():
    nothing = torch.zeros(1, 1, 2, dtype=torch.bool)
    assert sureness(torch.full((1, 2, 1, 2), 0.5), nothing).tolist() == [0.0]
    assert sureness(torch.ones(1, 1, 1, 2), ~nothing).tolist() == [1.0]


# Injection, then CutMix.


def by_hand(monkeypatch: pytest.MonkeyPatch) -> SemiBatch:
    """Three slots of four pixels. Strong view i shows 10 + i and labeled image i shows 20 + i.

    A labeled image would go to the first two pixels of an image, a patch to all pixels but the first.
    Image 0 is unsure (0.0268) and draws 0.03, image 1 is certain and draws 0.99, image 2 is unsure and draws 0.5.
    """
    boxes = {(8, 2): [True, True, False, False], (4, 4): [False, True, True, True]}
    where = "semiseg.methods.augseg."
    monkeypatch.setattr(where + "random_partners", lambda *_: torch.tensor([1, 2, 0]))
    monkeypatch.setattr(where + "sample_beta_boxes", lambda *_, beta, **__: torch.tensor(boxes[beta]).expand(3, 1, 4))
    monkeypatch.setattr(where + "uniform", lambda *_: torch.tensor([0.03, 0.99, 0.5]))
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, 0.1]])
    number = torch.arange(3.0)[:, None, None, None].expand(3, 3, 1, 4)
    label = torch.tensor([[1, 0, 1, 1], [2, IGNORE, 2, 2], [1, 1, 1, 1]])[:, None]
    valid = torch.tensor([[True] * 4, [True] * 4, [False, True, True, True]])[:, None]
    weak = logits[:, :, None, None].expand(3, 3, 1, 4)
    return SemiBatch(20 + number, label, weak, (10 + number,), valid, torch.arange(3))


def test_label_injection_by_hand(identity, monkeypatch):
    method, batch = identity(), by_hand(monkeypatch)
    mixed, injected = method._mixed(AT, method.alone(batch, AT))
    # Image 0 gets the patch of image 1, which stays as it is. Image 1 gets the patch of image 2, into which labeled
    # image 0 was injected; image 2 that of image 0, with labeled image 1. The first pixels stay those of the image.
    assert injected.tolist() == [False, True, True]
    for channel in range(3):
        assert mixed.image[:, channel, 0].tolist() == [[10, 11, 11, 11], [11, 20, 12, 12], [12, 21, 10, 10]]
    assert mixed.valid[:, 0].tolist() == [[True] * 4, [True] * 4, [False, False, True, True]]  # padded, and IGNORE
    assert mixed.label[:2, 0].tolist() == [[0, 1, 1, 1], [1, 0, 2, 2]]
    assert mixed.label[2, 0, 2:].tolist() == [0, 0]
    unsure = math.exp(0.1) / (2 + math.exp(0.1))
    expected = torch.tensor([[0.5, 1, 1, 1], [1, 1, unsure, unsure], [unsure, 1, 0.5, 0.5]])
    torch.testing.assert_close(mixed.confidence[:, 0], expected)
    losses = method.losses(batch, AT)
    assert losses.scalars["injected"].item() == pytest.approx(2 / 3)
    certain = 1.0
    slight = (1 - entropy(unsure, (1 - unsure) / 2, (1 - unsure) / 2) / math.log(3)) * unsure
    assert losses.scalars["sure"].item() == pytest.approx((0.0268025 + certain + slight) / 3, abs=1e-6)


def entropy(*probability: float) -> float:
    return -sum(one * math.log(one) for one in probability)


@pytest.mark.parametrize(
    ("cutmix", "expected"),
    [
        ("standard", [[10, 11, 11, 11], [11, 12, 12, 12], [12, 10, 10, 10]]),
        ("none", [[10] * 4, [11] * 4, [12] * 4]),
    ],
)
def test_without_injection_by_hand(identity, monkeypatch, cutmix, expected):
    method, batch = identity(cutmix=cutmix), by_hand(monkeypatch)
    mixed, injected = method._mixed(AT, method.alone(batch, AT))
    assert mixed.image[:, 0, 0].tolist() == expected
    assert not injected.any()
    assert method.views.min_unlabeled == (1 if cutmix == "none" else 2)


def test_a_labeled_image_is_injected_with_probability_1_minus_sureness(identity):
    method = identity()
    logits = torch.tensor([3.0, 0.0, 0.0])[None, :, None, None].expand(4, 3, 2, 2)
    label = torch.zeros(4, 2, 2, dtype=torch.long)
    batch = SemiBatch(logits, label, logits, (logits,), torch.ones(4, 2, 2, dtype=torch.bool), torch.arange(4))
    sure = sureness(logits.softmax(1), batch.valid)[0].item()
    assert 0.4 < sure < 0.8
    part = method.alone(batch, AT)
    shares = [method._mixed(Progress(step, 500, seed=1), part)[1].float().mean().item() for step in range(500)]
    assert sum(shares) / 500 == pytest.approx(1 - sure, abs=0.03)
    assert len(set(shares)) > 2  # each image draws for itself


@pytest.mark.parametrize("threshold", [0.0, TAU])
def test_a_step_equals_a_slow_reference(make, threshold):
    """The authors' loops, image by image, with the same draws; losses pixel by pixel in double precision."""
    method = make(threshold=threshold, unlabeled_weight=0.7)
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher).eval()
    losses, view = step_of(method)
    probability = teacher(BATCH.weak).detach().softmax(1)
    confidence, target = probability.max(1)
    sure = sureness(probability, BATCH.valid)

    generator = AT.generator("cutmix")
    permutation = random_partners(5, generator).tolist()
    pasted = sample_beta_boxes(5, 12, 16, generator, (4, 4))
    injected = sample_beta_boxes(5, 12, 16, generator, (8, 2))
    draw = torch.rand(5, generator=generator)
    before = [BATCH.strong[0].clone(), target.clone(), confidence.clone(), BATCH.valid.clone()]
    patches = [value.clone() for value in before]
    for i in range(5):
        if draw[i] > sure[i]:
            giver, box = permutation[i], injected[i]
            patches[0][i][:, box] = BATCH.image[giver][:, box]
            patches[1][i][box] = BATCH.label[giver][box]
            patches[2][i][box] = 1.0
            patches[3][i][box] = BATCH.label[giver][box] != IGNORE
    assert 0 < sum(bool(draw[i] > sure[i]) for i in range(5)) < 5
    for i in range(5):
        for value, patch in zip(before, patches, strict=True):
            value[i][..., pasted[i]] = patch[permutation[i]][..., pasted[i]]
    image, target, confidence, valid = before
    assert torch.equal(view, image)

    nll = -student(torch.cat([BATCH.image, image])).detach().double().log_softmax(1)
    unlabeled = 0.0
    for i in range(5):
        kept = [
            nll[5 + i, target[i, y, x], y, x].item()
            for y, x in valid[i].nonzero().tolist()
            if confidence[i, y, x] >= threshold
        ]
        unlabeled += sum(kept) / valid[i].sum().item() / 5
    labeled = [nll[i, BATCH.label[i, y, x], y, x].item() for i, y, x in (BATCH.label != IGNORE).nonzero().tolist()]
    assert losses.scalars["labeled"].item() == pytest.approx(sum(labeled) / len(labeled), rel=1e-5)
    assert losses.scalars["unlabeled"].item() == pytest.approx(unlabeled, rel=1e-5)
    assert losses.total.item() == pytest.approx(sum(labeled) / len(labeled) + 0.7 * unlabeled, rel=1e-5)


def test_the_teacher_predicts_each_weak_view_once_in_eval_mode(make):
    method, seen = make(), []
    method.teacher.register_forward_pre_hook(lambda module, images: seen.append((module.training, images[0])))
    method.losses(BATCH, AT)
    ((training, images),) = seen
    assert not training
    assert torch.equal(images, BATCH.weak)


@pytest.mark.parametrize(("step", "copy_steps", "decay"), [(9999, 0, 0.999), (5, 0, 5 / 6), (5, 6, 0.0)])
def test_the_average(make, step, copy_steps, decay):
    method = make(copy_steps=copy_steps)
    method.losses(BATCH, AT)
    old, its = (copy.deepcopy(network.state_dict()) for network in (method.teacher, method.student))
    method.after_step(Progress(step, 10_000), method.observe(BATCH, AT))
    for key, value in method.teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, decay * old[key] + (1 - decay) * its[key])
    assert list(method.evaluated()) == ["teacher", "student"]
    assert method.evaluated() == {"teacher": (method.teacher,), "student": (method.student,)}


# The pool.


def test_the_pool_has_one_to_three_of_eleven_operations():
    assert POOL.names == tuple(name for name in OPS if name != "invert")
    assert len(POOL.names) == 11
    assert Config().strong == POOL
    drawn = POOL.sample(fold_in(0, "pool"), 6000)
    assert drawn.op.shape == (6000, 3)
    assert OPS.index("invert") not in drawn.op
    # the third operation is one of the pool for a third of the images, else it is the identity
    kept = (drawn.op != OPS.index("identity")).float().mean(0)
    assert kept.tolist() == pytest.approx([10 / 11, 10 / 11 * 2 / 3, 10 / 11 / 3], abs=0.02)
    assert (POOL.num_ops, POOL.min_ops, POOL.with_replacement) == (3, 1, True)
