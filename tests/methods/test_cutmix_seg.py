import copy
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.augment import jitter
from semiseg.methods.cutmix_seg import Config, Method
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


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 12, 16), generator=generator)
    label[0, :5] = IGNORE
    valid = torch.ones(slots, 12, 16, dtype=torch.bool)
    valid[0, :, 9:] = False
    valid[-1, 7:] = False
    image, weak, strong = torch.randn(3, slots, 3, 12, 16, generator=generator)
    return SemiBatch(image, label, weak, (strong,), valid, torch.arange(slots))


BATCH = batch_of()


def step_of(method: Method, batch: SemiBatch = BATCH, at: Progress = AT) -> tuple[Losses, Tensor]:
    """The losses, and the mixed images that the student was trained on."""
    seen: list[Tensor] = []
    handle = method.student.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    losses = method.losses(batch, at)
    handle.remove()
    (together,) = seen  # one pass for everything that has a gradient
    assert torch.equal(together[: len(batch.image)], batch.image)
    return losses, together[len(batch.image) :]


def half_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are the right half of each image of 4 px."""
    box = torch.tensor([False, False, True, True]).expand(2, 1, 4)
    monkeypatch.setattr("semiseg.methods.cutmix_seg.sample_boxes_of_area", lambda *_, **__: box)


def by_hand() -> SemiBatch:
    """Two unlabeled images of four pixels, which are logits; student and teacher see different views.

    Of the teacher, 0 is the probability (1/2, 1/4, 1/4) and 1 the probability (4/5, 1/10, 1/10).
    The student says (1/4, 1/2, 1/4) everywhere.
    """
    kinds = torch.tensor([[2.0, 1.0, 1.0], [8.0, 1.0, 1.0]]).log()
    weak = kinds[torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])].mT[:, :, None]
    strong = torch.tensor([1.0, 2.0, 1.0]).log()[None, :, None, None].expand(weak.shape)
    valid = torch.tensor([[[True, True, True, True]], [[False, True, True, True]]])
    label = torch.full((2, 1, 4), IGNORE)
    return SemiBatch(torch.zeros(weak.shape), label, weak, (strong,), valid, torch.arange(2))


@pytest.mark.parametrize(("confidence", "expected"), [(None, "scalar"), ("scalar", "scalar"), ("pixel", "pixel")])
def test_the_confidence_mask_by_hand(identity, monkeypatch, confidence, expected):
    """Mixed by the right halves, the kinds of pixels are [0 1 | 0 1] and [padded 0 | 1 1].

    Of 7 valid pixels 4 are of kind 1, whose confidence 0.8 is enough. The squared distance of the student is
    1/16 + 1/16 to kind 0, and (0.55)^2 + (0.4)^2 + (0.15)^2 = 0.485 to kind 1.
    """
    half_boxes(monkeypatch)
    method = identity(threshold=0.7, confidence=confidence, strong=jitter.Config(), unlabeled_weight=2.0)
    losses = method.losses(by_hand(), AT)
    value = {"scalar": 4 / 7 * (3 * 0.125 + 4 * 0.485) / 7, "pixel": 4 * 0.485 / 7}[expected]
    assert losses.scalars["confident"].item() == pytest.approx(4 / 7)
    assert losses.scalars["unlabeled"].item() == pytest.approx(value)
    assert losses.total.item() == pytest.approx(2 * value)


def test_the_threshold_by_hand(identity, monkeypatch):
    """The confidence of the surer pixels is 0.8; a pixel at the threshold is confident."""
    half_boxes(monkeypatch)
    everything = (3 * 0.125 + 4 * 0.485) / 7
    for threshold, share in ((0.0, 1.0), (0.49, 1.0), (0.51, 4 / 7), (0.79, 4 / 7), (0.81, 0.0)):
        losses = identity(threshold=threshold, strong=jitter.Config()).losses(by_hand(), AT)
        assert losses.scalars["unlabeled"].item() == pytest.approx(share * everything)


@pytest.mark.parametrize("strong", [None, jitter.Config()])
@pytest.mark.parametrize("confidence", ["scalar", "pixel"])
def test_a_step_equals_a_slow_reference(make, strong, confidence):
    """Pixel by pixel, in double precision; partners are found by comparing pixels."""
    method = make(strong=strong, confidence=confidence, unlabeled_weight=3.0)
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher).eval()
    losses, mixed = step_of(method)
    seen = BATCH.weak if strong is None else BATCH.strong[0]
    boxes = (mixed != seen).any(1)
    partner = [next(j for j in range(4) if torch.equal(mixed[i][:, boxes[i]], seen[j][:, boxes[i]])) for i in range(4)]
    assert all(partner[i] != i for i in range(4))
    logits = student(torch.cat([BATCH.image, mixed])).detach().double()
    probability = teacher(BATCH.weak).detach().double().softmax(1)  # of whole weak views
    own = logits[4:].softmax(1)
    distances, sure = [], []
    for i in range(4):
        for y in range(12):
            for x in range(16):
                j = partner[i] if boxes[i, y, x] else i
                if BATCH.valid[j, y, x]:
                    target = probability[j, :, y, x].tolist()
                    of_student = own[i, :, y, x].tolist()
                    distances.append(sum((a - b) ** 2 for a, b in zip(of_student, target, strict=True)))
                    sure.append(float(max(target) >= TAU))
    share = sum(sure) / len(sure)
    assert 0.2 < share < 0.95
    weights = [share] * len(sure) if confidence == "scalar" else sure
    unlabeled = sum(weight * one for weight, one in zip(weights, distances, strict=True)) / len(sure)
    labeled = nn.functional.cross_entropy(logits[:4], BATCH.label, ignore_index=IGNORE).item()
    assert losses.scalars["labeled"].item() == pytest.approx(labeled, rel=1e-5)
    assert losses.scalars["confident"].item() == pytest.approx(share, rel=1e-5)
    assert losses.scalars["unlabeled"].item() == pytest.approx(unlabeled, rel=1e-5)
    assert losses.total.item() == pytest.approx(labeled + 3 * unlabeled, rel=1e-5)


def test_boxes_cover_half_of_each_image_and_differ(make):
    method, weak = make(), torch.randn(4, 3, 96, 100, generator=fold_in(1))
    label, valid = torch.zeros(4, 96, 100, dtype=torch.long), torch.ones(4, 96, 100, dtype=torch.bool)
    batch = SemiBatch(weak, label, weak, (), valid, torch.arange(4))
    boxes = torch.cat([(step_of(method, batch, Progress(step, 10))[1] != weak).any(1) for step in range(2)])
    assert boxes.float().mean((1, 2)).tolist() == pytest.approx([0.5] * 8, abs=0.02)
    assert len({(tuple(one.any(1).tolist()), tuple(one.any(0).tolist())) for one in boxes}) == 8


def test_the_teacher_predicts_each_image_once_in_eval_mode(make):
    method, seen = make(), []
    method.teacher.register_forward_pre_hook(lambda module, images: seen.append((module.training, images[0])))
    before = copy.deepcopy(method.teacher.state_dict())
    method.losses(BATCH, AT)
    ((training, images),) = seen
    assert not training
    assert torch.equal(images, BATCH.weak)
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())


def test_the_average_takes_in_parameters_and_statistics(make):
    method = make()
    method.losses(BATCH, AT)
    old, its = (copy.deepcopy(network.state_dict()) for network in (method.teacher, method.student))
    method.after_step(Progress(9999, 10_000), method.observe(BATCH, AT))
    for key, value in method.teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.99 * old[key] + 0.01 * its[key])
    assert list(method.evaluated()) == ["teacher", "student"]
    assert method.evaluated() == {"teacher": (method.teacher,), "student": (method.student,)}


def test_data_with_a_single_unlabeled_image_are_refused(make):
    assert make().views.min_unlabeled == 2


def test_a_kind_of_confidence_needs_a_threshold():
    with pytest.raises(ValidationError, match="confidence does nothing with threshold 0"):
        Config(threshold=0, confidence="pixel")
