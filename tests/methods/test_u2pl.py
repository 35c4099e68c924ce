import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.errors import UserError
from semiseg.methods.u2pl import Config, Method, Observed
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch

NAMES = ("background", "a", "b", "c", "d")
CLASSES = ClassTable.of(NAMES, background=0)
SMALL = {"channels": 6, "bank_size": 40, "negatives": 5, "anchors": 8, "pixels": 60}
START, LAST = Progress(0, 100, seed=3), Progress(99, 100, seed=3)
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(norm=..., **settings) -> a method whose teacher and student differ. Without batch norm images do not mix."""

    def make(norm: bool = False, classes: ClassTable = CLASSES, **settings) -> Method:
        method = Method(Config(**SMALL | settings), lambda: tiny(0, norm, num_classes=len(classes)), classes)
        differ(method.teacher, method.teacher_head, by=0.1)
        return method.train()

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(5, (slots, 12, 12), generator=generator)
    label[0, :5] = IGNORE
    valid = torch.ones(slots, 12, 12, dtype=torch.bool)
    valid[0, :, 9:] = False
    weak, image = (torch.randn(slots, 3, 12, 12, generator=generator) for _ in range(2))
    return SemiBatch(image, label, weak, (), valid, torch.arange(slots))


BATCH = batch_of()


def filled(method: Method, steps: int = 2, batch: SemiBatch = BATCH) -> Method:
    """Fills the bank. The networks stay as they are."""
    for step in range(steps):
        with torch.no_grad():
            before = copy.deepcopy(method.state_dict())
            method.after_step(Progress(step, 100), method.observe(batch, Progress(step, 100)))
            banks = {key: value for key, value in method.state_dict().items() if key.startswith("bank.")}
            method.load_state_dict({**before, **banks})
    return method


def when(fires: bool, method: Method) -> Progress:
    """A step in which CutMix happens, or does not."""
    found = (Progress(step, 100, seed=3) for step in range(30))
    return next(at for at in found if method.losses(BATCH, at).scalars["mixed"] == fires)


# The losses once more, slowly.


def slow_quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.floor((len(values) - 1) * share)]


def slow_losses(method: Method, at: Progress) -> tuple[float, float]:
    """The unlabeled and the contrastive loss without CutMix, over all pixels; every bank repeats a single key."""
    cfg = method.config
    with torch.no_grad():
        images = torch.cat([BATCH.image, BATCH.weak])
        teacher = method.teacher(images).softmax(1)
        student = method.student(images).log_softmax(1)
        keys = method.teacher_head(method.teacher.decode(method.teacher.encode(images)))
        own = method.head(method.student.decode(method.student.encode(images)))
    places = [(i, y, x) for i in range(8) for y in range(12) for x in range(12)]
    entropy = {(i, y, x): -sum(p * math.log(p) for p in teacher[i, :, y, x].tolist()) for i, y, x in places}
    counted = [place for place in places if place[0] >= 4 and BATCH.valid[place[0] - 4, place[1], place[2]]]
    limit = slow_quantile([entropy[place] for place in counted], 1 - cfg.unreliable * (1 - at.step / at.num_steps))
    reliable = [place for place in counted if entropy[place] <= limit]
    guess = teacher.argmax(1)
    cross_entropy = [-student[i, guess[i, y, x], y, x].item() for i, y, x in reliable]
    unlabeled = sum(cross_entropy) / len(reliable) * len(counted) / len(reliable)

    losses = []
    for c in range(5):
        labeled = [(i, y, x) for i, y, x in places if i < 4 and BATCH.label[i, y, x] == c]
        pixels = labeled + [(i, y, x) for i, y, x in reliable if guess[i, y, x] == c]
        pixels = [(i, y, x) for i, y, x in pixels if teacher[i, c, y, x] > cfg.anchor_probability]
        if not pixels:
            continue
        center = torch.stack([keys[i, :, y, x] for i, y, x in pixels]).mean(0)
        negative = method.bank.key[c, 0]
        of_class = []
        for i, y, x in pixels:
            to_center = F.cosine_similarity(own[i, :, y, x], center, dim=0) / cfg.temperature
            to_negative = F.cosine_similarity(own[i, :, y, x], negative, dim=0) / cfg.temperature
            denominator = to_center.exp() + cfg.negatives * to_negative.exp()
            of_class.append(-(to_center.exp() / denominator).log().item())
        losses.append(sum(of_class) / len(of_class))
    return unlabeled, sum(losses) / len(losses)


@pytest.mark.parametrize("at", [START, Progress(60, 100, seed=3)])
def test_the_losses_are_those_of_a_slow_reference(make, at):
    method = make(cutmix_probability=0, pixels=10**6, anchors=10**6, bank_size=1, unreliable=0.4)
    filled(method, steps=1)
    assert (method.bank.count > 0).all()
    unlabeled, contrastive = slow_losses(method, at)
    losses = method.losses(BATCH, at)
    labeled = losses.scalars["labeled"].item()
    assert losses.scalars["unlabeled"].item() == pytest.approx(unlabeled, rel=1e-4)
    assert losses.scalars["contrastive"].item() == pytest.approx(contrastive, rel=1e-4)
    assert losses.total.item() == pytest.approx(labeled + unlabeled + contrastive, rel=1e-4)
    weighted = make(**vars(method.config) | {"unlabeled_weight": 2.0, "contrastive_weight": 0.5})
    weighted.load_state_dict(method.state_dict())
    assert weighted.losses(BATCH, at).total.item() == pytest.approx(
        labeled + 2 * unlabeled + 0.5 * contrastive, rel=1e-4
    )


def test_the_contrastive_loss_trains_the_student_and_its_head_alone(make):
    method = filled(make(unlabeled_weight=0))
    losses = method.losses(BATCH, START)
    losses.total.backward()
    assert losses.scalars["contrastive"] > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.head.parameters())
    assert all(parameter.grad is None for parameter in method.teacher_head.parameters())


def parts_of(method: Method, batch: SemiBatch, at: Progress, size: int) -> list[Losses]:
    whole, shares = method.alone(batch, at), []
    for first in range(0, len(batch.image), size):
        rows = slice(first, first + size)
        fields = {key: value[rows] for key, value in vars(batch).items() if isinstance(value, Tensor)}
        part = Part(whole.observed, whole.observed[rows], rows, size / 4, whole.labeled_px, whole.valid_px)
        shares.append(method(replace(batch, **fields), at, part))
    return shares


@pytest.mark.parametrize("fires", [False, True])
def test_parts_add_up_to_the_whole(make, fires):
    method = filled(make())
    at = when(fires, method)
    whole = method.losses(BATCH, at)
    shares = parts_of(method, BATCH, at, 1)
    assert whole.scalars["contrastive"] > 0.1
    for name, value in whole.scalars.items():
        assert sum(share.scalars[name] for share in shares) == pytest.approx(value.item(), abs=1e-5), name
    whole.total.backward()
    gradients = {key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    sum(share.total for share in shares).backward()
    for key, gradient in gradients.items():
        torch.testing.assert_close(method.get_parameter(key).grad, gradient, rtol=1e-4, atol=1e-5)
    observed = method.observe(
        replace(BATCH, **{k: v[1:3] for k, v in vars(BATCH).items() if k not in ("strong", "second", "pseudo")}), at
    )
    for key, value in vars(method.observe(BATCH, at)[1:3]).items():
        torch.testing.assert_close(getattr(observed, key), value)


def test_cutmix_pastes_half_of_the_next_image_with_all_that_is_known_of_it(make):
    method = make()
    for fires in (False, True):
        at = when(fires, method)
        everyone = method.observe(BATCH, at)
        mixed, fired = method._mixed(everyone, at)
        assert fired == fires
        if not fires:
            assert torch.equal(mixed.image, everyone.image)
            continue
        inside = (mixed.image != everyone.image).all(1)
        assert 0.4 < inside.float().mean() < 0.6
        for name in ("label", "confidence", "entropy", "valid"):
            value, following = getattr(everyone, name), getattr(everyone, name).roll(-1, 0)
            assert torch.equal(getattr(mixed, name), torch.where(inside, following, value)), name


def test_anchors_are_pixels_of_the_mixed_images_and_positives_of_the_whole_ones(make, monkeypatch):
    method = filled(make(pixels=144, anchor_probability=0.5))
    at, seen = when(True, method), {}
    monkeypatch.setattr(
        method.bank, "contrast", lambda *args: seen.update(label=args[2], positive=args[3]) or args[0].sum()
    )
    part = method.alone(BATCH, at)
    method(BATCH, at, part)
    everyone, pixel = part.observed, method._pixels(BATCH.valid, at)
    threshold = method._threshold(everyone, at)
    mixed, _ = method._mixed(everyone, at)
    for slot in range(4):
        for n in range(0, 144, 5):
            y, x = divmod(pixel[n].item(), 12)
            sure = mixed.valid[slot, y, x] and mixed.entropy[slot, y, x] <= threshold
            wanted = mixed.label[slot, y, x] if sure and mixed.confidence[slot, y, x] > 0.5 else 5
            assert seen["label"].view(4, 2, 144)[slot, 1, n] == wanted
    keys, labels = everyone.key.flatten(0, 2), method._classes(everyone, threshold, pixel)
    assert not torch.equal(labels, seen["label"])
    for c in labels.unique()[:-1]:
        torch.testing.assert_close(seen["positive"][c], F.normalize(keys[labels == c].mean(0), dim=0))


def test_negatives_of_a_class(make):
    """In a labeled image another class that the teacher finds likely; in an unlabeled one a class of middle rank."""
    method = make(low_rank=2, high_rank=4)
    observed: Observed = method.observe(BATCH, START)
    pixels = method._pixels(BATCH.valid, START)
    probability = method.teacher(torch.cat([BATCH.image, BATCH.weak])).softmax(1).flatten(2)[..., pixels]
    seen = set()
    for slot in range(4):
        for n, pixel in enumerate(pixels.tolist()):
            label = BATCH.label[slot].flatten()[pixel].item()
            for c in range(5):
                of_labeled, of_unlabeled = (
                    (probability[row, :, n] > probability[row, c, n]).sum().item() for row in (slot, slot + 4)
                )
                wanted = label != IGNORE and c != label and of_labeled < 2, 2 <= of_unlabeled < 4
                assert tuple(observed.negative[slot, :, n, c].tolist()) == wanted
                seen.add(wanted)
    assert len(seen) == 4


def test_only_unreliable_pixels_become_negatives(make):
    def added(at: Progress) -> int:
        method = make(bank_size=1000, pixels=144)
        labels = torch.full_like(BATCH.label, IGNORE)
        with torch.no_grad():
            method.after_step(at, method.observe(replace(BATCH, label=labels), at))
        return int(method.bank.count.sum())

    valid_px = int(BATCH.valid.sum())
    unreliable = valid_px - 1 - math.floor((valid_px - 1) * 0.8)
    assert added(START) == 2 * unreliable  # ranks 3 and 4 of five classes
    assert added(Progress(50, 100)) == 2 * (valid_px - 1 - math.floor((valid_px - 1) * 0.9))
    assert added(LAST) <= 4


def test_nothing_but_labels_counts_in_the_warm_up(make):
    method, at = filled(make(warmup_steps=10), steps=12), Progress(9, 100, seed=3)
    losses = method.losses(BATCH, at)
    assert losses.scalars["contrastive"] > 0
    assert losses.total == losses.scalars["labeled"]
    later = method.losses(BATCH, Progress(10, 100, seed=3))
    assert later.total > later.scalars["labeled"]
    with torch.no_grad():
        before = method.bank.count.clone()
        method.after_step(at, method.observe(BATCH, at))
        assert torch.equal(method.bank.count, before)
        for own, its in ((method.teacher, method.student), (method.teacher_head, method.head)):
            assert all(torch.equal(a, b) for a, b in zip(own.parameters(), its.parameters(), strict=True))


@pytest.mark.parametrize("statistics", ["own", "averaged"])
def test_the_teachers_batch_statistics(make, statistics):
    method = make(norm=True, teacher_statistics=statistics)
    norm, its = (network.net["encoder"][1] for network in (method.teacher, method.student))
    with torch.no_grad():
        norm.running_mean += 1
        before = norm.running_mean.clone()
        observed = method.observe(BATCH, START)
        assert torch.equal(norm.running_mean, before)
        method(BATCH, START, method.alone(BATCH, START))
        seen = norm.running_mean.clone()
        assert torch.equal(seen, before) == (statistics == "averaged")
        at = Progress(4, 100)
        method.after_step(at, observed)
    wanted = seen if statistics == "own" else 0.8 * before + 0.2 * its.running_mean
    torch.testing.assert_close(norm.running_mean, wanted)


@pytest.mark.parametrize(("number", "ranks"), [(2, (1, 20)), (3, (2, 20)), (4, (3, 20)), (21, (3, 20))])
def test_the_ranks_suit_the_number_of_classes(make, number, ranks):
    assert make(classes=ClassTable.of([f"c{i}" for i in range(number)])).ranks == ranks


def test_two_classes_are_contrasted(make):
    method = make(classes=ClassTable.of(("a", "b")))
    batch = replace(BATCH, label=torch.where(BATCH.label == IGNORE, IGNORE, BATCH.label.clamp(max=1)))
    assert filled(method, batch=batch).losses(batch, START).scalars["contrastive"] > 0.1


@pytest.mark.parametrize(
    ("number", "settings", "message"),
    [
        (2, {"low_rank": 3}, r"^method.low_rank: 3 needs more than 2 classes; use 1 to 1$"),
        (5, {"low_rank": 5}, r"^method.low_rank: 5 needs more than 5 classes; use 1 to 4$"),
        (5, {"high_rank": 3}, r"^method.high_rank: 3 must be larger than low_rank, which is 3$"),
        (1, {}, r"^method.name: u2pl contrasts classes, so it needs two or more; the data have 1$"),
    ],
)
def test_data_without_negatives(make, number, settings, message):
    with pytest.raises(UserError, match=message):
        make(classes=ClassTable.of([f"c{i}" for i in range(number)]), **settings)
