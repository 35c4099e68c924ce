"""ST++: values by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from semiseg.augment import jitter
from semiseg.augment.cutmix import sample_some_boxes
from semiseg.methods import st_pp
from semiseg.types import IGNORE, ClassTable, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "b", "c"))
AT = Progress(3, 10, seed=1)


@pytest.fixture
def make(tiny):
    """make(cutout=1) -> the method with a network that sees one pixel at a time."""

    def make(**settings) -> st_pp.Method:
        return st_pp.Method(st_pp.Config(**settings), lambda: tiny(0, False, size=1), CLASSES)

    return make


@pytest.fixture
def batch() -> SemiBatch:
    generator = torch.Generator().manual_seed(0)
    image, weak, strong = torch.randn(3, 2, 3, 8, 8, generator=generator).unbind()
    label, pseudo = torch.randint(3, (2, 2, 8, 8), generator=generator).unbind()
    label[0, :3] = IGNORE
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, :, 5:] = False  # the pseudo-label of these pixels is no IGNORE: nothing but `valid` leaves them out
    return SemiBatch(image, label, weak, (strong,), valid, torch.arange(2), pseudo=pseudo)


def expected(method: st_pp.Method, batch: SemiBatch, box: torch.Tensor) -> tuple[float, float, float]:
    """Labeled, unlabeled and total, pixel by pixel."""
    sums, counts = [0.0, 0.0], [0, 0]
    image = batch.strong[0].clone()
    image.permute(0, 2, 3, 1)[box] = 0
    for kind, (images, labels) in enumerate(((batch.image, batch.label), (image, batch.pseudo))):
        with torch.no_grad():
            logits = method.student(images)
        for n in range(2):
            for y in range(8):
                for x in range(8):
                    counted = labels[n, y, x] != IGNORE if kind == 0 else batch.valid[n, y, x] and not box[n, y, x]
                    if counted:
                        sums[kind] += F.cross_entropy(logits[n, :, y, x], labels[n, y, x]).item()
                        counts[kind] += 1
    return sums[0] / counts[0], sums[1] / counts[1], sum(sums) / sum(counts)


@pytest.mark.parametrize("cutout", [0.0, 1.0])
def test_the_loss_is_one_mean_over_labels_and_pseudo_labels(make, batch, cutout):
    method = make(cutout=cutout)
    box = sample_some_boxes(2, 8, 8, generator=AT.generator("cut-out"), probability=cutout)
    assert box.any() == (cutout > 0)
    losses = method.losses(batch, AT)
    labeled, unlabeled, total = expected(method, batch, box)
    assert losses.scalars["labeled"].item() == pytest.approx(labeled, rel=1e-5)
    assert losses.scalars["unlabeled"].item() == pytest.approx(unlabeled, rel=1e-5)
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def test_the_network_does_not_see_what_is_cut_out(make, batch):
    method, seen = make(cutout=1.0), []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.losses(batch, AT)
    box = sample_some_boxes(2, 8, 8, generator=AT.generator("cut-out"), probability=1.0)[:, None]
    wanted = torch.cat([batch.image, batch.strong[0] * ~box])
    assert len(seen) == 1  # one pass
    assert torch.equal(seen[0], wanted)


def test_a_cut_out_is_new_in_every_step(make, batch):
    method = make(cutout=1.0)
    one, same, other = (method.losses(batch, replace(AT, step=step)).total.item() for step in (3, 3, 4))
    assert one == same != other


def test_only_images_with_pseudo_labels_are_augmented_strongly(make):
    method = make()
    assert method.views.strong == (jitter.Config(),)
    assert method.views.labeled is None
    assert method.views.pseudo
    assert make(labeled="mild").views.labeled is not None


def test_without_pseudo_labels_labels_are_learned(make, batch):
    losses = make().losses(replace(batch, pseudo=torch.full_like(batch.pseudo, IGNORE)), AT)
    assert losses.total == losses.scalars["labeled"]
    assert losses.scalars["unlabeled"] == 0
