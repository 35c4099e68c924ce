import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from semiseg.methods import cac
from semiseg.methods.cac import Config, Method, Observed, learners
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Part, Progress, Second, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b", "c", "d"), background=0)
SMALL = {"threshold": 0.3, "channels": 6, "cell": 2, "anchors": 1000, "negatives": 1000, "memory": 50}
AT = Progress(50, 100, seed=3)
SIDE, CELLS = 12, 6  # px, and cells, along a side of a crop
# of each image: top and left of both crops, px of the image, and whether they are flipped
PLACES = [((0, 0), (4, 2), False, False), ((6, 4), (0, 6), True, False), ((2, 2), (2, 8), False, True),
          ((0, 8), (6, 0), True, True)]  # fmt: skip
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    def make(norm: bool = False, size: int = 3, **settings) -> Method:
        with seeded(0, "method"):
            return Method(Config(**SMALL | settings), lambda: tiny(0, norm, 5, size=size), CLASSES).train()

    return make


def batch_of() -> SemiBatch:
    """Crops of images of 20 px. In image 0 both crops are padded on the right."""
    generator = fold_in(0, "batch")
    whole = torch.randn(4, 3, 20, 20, generator=generator)
    label = torch.randint(5, (4, SIDE, SIDE), generator=generator)
    crops, lines = ([], []), []
    for image, (first, second, flip, its_flip) in zip(whole, PLACES, strict=True):
        for crop, (top, left), flipped in zip(crops, (first, second), (flip, its_flip), strict=True):
            shown = image[:, top : top + SIDE, left : left + SIDE]
            crop.append(shown.flip(-1) if flipped else shown)
        # px of a crop = factor * px of the image + shift
        rows = (1.0, -float(first[0])), (1.0, -float(second[0]))
        columns = [(-1.0, SIDE + left) if flipped else (1.0, -left) for (_, left), flipped in
                   ((first, flip), (second, its_flip))]  # fmt: skip
        lines.append([[its[0] * one[0], its[1] - its[0] * one[0] * one[1]] for one, its in (rows, columns)])
    weak, second = (torch.stack(crop) for crop in crops)
    valid = torch.ones(4, SIDE, SIDE, dtype=torch.bool)
    valid[0, :, 9:] = False
    noise = torch.randn(2, *weak.shape, generator=generator)
    strong, its_strong = weak + 0.1 * noise[0], second + 0.1 * noise[1]
    image = torch.randn(4, 3, SIDE, SIDE, generator=generator)
    its = Second(second, (its_strong,), valid, torch.tensor(lines))
    return SemiBatch(image, label, weak, (strong,), valid, torch.arange(4), its)


BATCH = batch_of()


def part_of(batch: SemiBatch, rows: slice) -> SemiBatch:
    second = batch.second
    own = Second(second.weak[rows], (second.strong[0][rows],), second.valid[rows], second.align[rows])
    fields = {key: value[rows] for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, strong=(batch.strong[0][rows],), second=own, **fields)


def filled(method: Method) -> Method:
    """The memory holds what another batch left there."""
    with torch.no_grad():
        method.memory.key.copy_(F.normalize(torch.randn(50, 6, generator=fold_in(0, "memory")), dim=1))
        method.memory.label.copy_(torch.arange(50) % 6)
        method.memory.label[method.memory.label == 5] = IGNORE
    return method


# The loss once more, slowly.


def common_cells(image: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Cells of both crops that show the same, by where they are in the image."""

    def where(row: int, column: int, corner: tuple[int, int], flipped: bool) -> tuple[int, int]:
        column = CELLS - 1 - column if flipped else column
        return corner[0] + 2 * row, corner[1] + 2 * column

    first, second, flip, its_flip = PLACES[image]
    places = [(row, column) for row in range(CELLS) for column in range(CELLS)]
    its = {where(*place, second, its_flip): place for place in places}
    for place in places:
        if (shown := where(*place, first, flip)) in its:
            yield place, its[shown]


def slow_loss(method: Method) -> tuple[float, int]:
    """The contrastive loss, and the number of cells that learn."""
    cfg, crops = method.config, []
    for view in (BATCH.strong[0], BATCH.second.strong[0]):
        with torch.no_grad():
            decoded = method.student.decode(method.student.encode(view))
            logits = F.avg_pool2d(method.student.classify(decoded, (SIDE, SIDE)), 2)
            represented = F.normalize(method.projector(F.avg_pool2d(decoded, 2)), dim=1)
        crops.append((logits.softmax(1).amax(1), logits.argmax(1), represented))
    valid = -F.max_pool2d(-BATCH.valid.float(), 2) == 1
    negatives = [(key, int(label)) for key, label in zip(method.memory.key, method.memory.label, strict=True)]
    for _, labels, represented in crops:
        for image, row, column in valid.nonzero().tolist():
            negatives.append((represented[image, :, row, column], int(labels[image, row, column])))
    losses: list[list[float]] = [[], []]
    for image in range(4):
        for place, its_place in common_cells(image):
            if not (valid[image, *place] and valid[image, *its_place]):
                continue
            sides = [
                (sure[image, *at].item(), int(label[image, *at]), key[image, :, at[0], at[1]])
                for (sure, label, key), at in zip(crops, (place, its_place), strict=True)
            ]
            for direction, (own, its) in enumerate((sides, sides[::-1])):
                if not (its[0] > cfg.threshold and own[0] < its[0]):
                    continue
                of_positive = math.exp(own[2] @ its[2] / cfg.temperature)
                others = [key for key, label in negatives if label not in (own[1], IGNORE)]
                of_others = sum(math.exp(own[2] @ key / cfg.temperature) for key in others)
                losses[direction].append(-math.log(of_positive / (of_positive + of_others)))
    return sum(sum(one) / len(one) for one in losses), len(losses[0]) + len(losses[1])


@pytest.mark.parametrize("threshold", [0.0, 0.35])
def test_the_loss_is_that_of_a_slow_reference(make, threshold):
    method = filled(make(threshold=threshold))
    expected, learning = slow_loss(method)
    losses = method.losses(BATCH, AT)
    assert losses.scalars["unlabeled"].item() == pytest.approx(expected, rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.scalars["labeled"].item() + 0.1 * expected, rel=1e-4)
    seen = method.observe(BATCH, AT).seen.sum()
    assert losses.scalars["learning"].item() == pytest.approx(learning / seen.item())
    assert (learning == seen) == (threshold == 0)


def test_the_less_confident_crop_learns_from_a_confident_one():
    """By hand: the threshold is 0.75, which a confidence must exceed."""
    first = torch.tensor([0.6, 0.9, 0.75, 0.5, 0.8, 0.8, 0.7])
    second = torch.tensor([0.8, 0.2, 0.4, 0.7, 0.8, 0.81, 0.75])
    first_learns, second_learns = learners(first, second, 0.75)
    assert first_learns.tolist() == [True, False, False, False, False, True, False]
    assert second_learns.tolist() == [False, True, False, False, False, False, False]


def test_one_anchor_by_hand(make):
    """First crop, class 0 with 0.6; second crop, class 1 with 0.9. Class 1 and 0 are in the memory.

    The first one learns. It has its own class, 0, so class 1 is its negative, although the positive has that class.
    """
    method = make(temperature=0.5, channels=2)
    anchor, positive = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.6, 0.8]]])
    method.memory.key[:2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    method.memory.label[:2] = torch.tensor([1, 0])
    everyone = Observed(
        label=torch.tensor([[[0], [1]]]),
        confidence=torch.tensor([[[0.6], [0.9]]]),
        seen=torch.tensor([[True]]),
        key=torch.zeros(1, 2, 0, 2),
        key_label=torch.zeros(1, 2, 0, dtype=torch.long),
    )
    assert everyone.learning(0.75).flatten().tolist() == [True, False]
    loss = method._contrast(anchor, positive, torch.tensor([[0]]), everyone)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.6 / 0.5)), rel=1e-5)


def test_gradients_go_to_the_less_confident_side_alone(make, monkeypatch):
    method, seen = filled(make()), {}
    contrastive = cac.contrastive_between_classes

    def spy(anchor, positive, label, negative, *rest):
        seen.update(anchor=anchor, positive=positive, negative=negative)
        return contrastive(anchor, positive, label, negative, *rest)

    monkeypatch.setattr(cac, "contrastive_between_classes", spy)
    method.losses(BATCH, AT).total.backward()
    assert seen["anchor"].requires_grad
    assert not seen["positive"].requires_grad
    assert not seen["negative"].requires_grad
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.projector.parameters())


def gradients_of(method: Method, batches: list[tuple[SemiBatch, Part]]) -> tuple[dict, dict]:
    method.zero_grad()
    scalars: dict[str, float] = {}
    for batch, part in batches:
        losses = method(batch, AT, part)
        losses.total.backward()
        for name, value in losses.scalars.items():
            scalars[name] = scalars.get(name, 0.0) + value.item()
    return scalars, {key: parameter.grad.clone() for key, parameter in method.named_parameters()}


@pytest.mark.parametrize("anchors", [3, 1000])
def test_parts_add_up_to_the_whole(make, anchors):
    method = filled(make(anchors=anchors, negatives=7))
    whole = method.alone(BATCH, AT)
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        own = Observed(**{key: value[rows] for key, value in vars(whole.observed).items()})
        parts.append((part_of(BATCH, rows), replace(whole, own=own, rows=rows, share=(rows.stop - rows.start) / 4)))
    (one, gradients), (other, its) = gradients_of(method, [(BATCH, whole)]), gradients_of(method, parts)
    assert one["unlabeled"] > 0.1
    assert one == pytest.approx(other, rel=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, its[key], rtol=1e-4, atol=1e-5, msg=key)
    observed = method.observe(part_of(BATCH, slice(1, 4)), AT)
    for key, value in vars(whole.observed).items():
        torch.testing.assert_close(value[1:4], getattr(observed, key), msg=key)


def test_padded_pixels_change_nothing(make):
    """Pixels of one network do not mix, but those of a cell do; so a cell with padding does not count."""

    def step(value: float) -> tuple[float, torch.Tensor]:
        method = filled(make(size=1))
        inside = BATCH.valid[:, None]
        second = replace(BATCH.second, strong=(torch.where(inside, BATCH.second.strong[0], value),))
        batch = replace(BATCH, strong=(torch.where(inside, BATCH.strong[0], value),), second=second)
        loss = method.losses(batch, AT).scalars["unlabeled"].item()
        method.after_step(AT, method.observe(batch, AT))
        return loss, method.memory.key[method.memory.label != IGNORE]

    (one, memory), (other, its) = step(0.0), step(3.0)
    assert one > 0.1
    assert one == pytest.approx(other)
    torch.testing.assert_close(memory, its)


def test_at_most_so_many_anchors_of_an_image_learn(make, monkeypatch):
    method, seen = make(anchors=5), {}
    monkeypatch.setattr(
        cac, "contrastive_between_classes", lambda anchor, *_: seen.update(n=len(anchor)) or anchor.sum(1)
    )
    method.losses(BATCH, AT)
    assert seen["n"] == 4 * 5


def test_the_memory_gets_negatives_of_all_images_and_is_bounded(make):
    method = make(negatives=20, memory=64)
    observed = method.observe(BATCH, AT)
    assert observed.key.shape == (4, 2, 20, 6)
    method.after_step(AT, observed)
    assert method.memory.key.shape == (64, 6)
    for place in range(8):  # cell by cell: eight crops each
        rows = slice(8 * place, 8 * place + 8)
        torch.testing.assert_close(method.memory.key[rows], observed.key[:, :, place].flatten(0, 1))
        assert torch.equal(method.memory.label[rows], observed.key_label[:, :, place].flatten())
    assert (observed.key_label[0] == IGNORE).any()
    assert not (observed.key_label[1:] == IGNORE).any()
    before = method.memory.label.clone()
    with torch.no_grad():
        method.after_step(Progress(51, 100, seed=3), method.observe(BATCH, Progress(51, 100, seed=3)))
    assert not torch.equal(method.memory.label, before)


def test_the_warm_up_has_the_labeled_loss_alone(make):
    method = filled(make(warmup=0.1))
    for step, alone in ((9, True), (10, False)):
        losses = method.losses(BATCH, Progress(step, 100))
        assert losses.scalars["unlabeled"] > 0
        assert (losses.total == losses.scalars["labeled"]) == alone


@pytest.mark.parametrize("overlap", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.5)])
def test_an_overlap_that_is_none(overlap):
    with pytest.raises(ValidationError, match="overlap needs"):
        Config(overlap=overlap)
    assert Method.Config().overlap == (0.1, 1.0)


def test_the_data_make_a_second_crop(make):
    views = make(overlap=(0.3, 0.6)).views
    assert views.overlap == (0.3, 0.6)
    assert views.images_per_slot == 3
    assert views.strong == (make().config.strong,)
