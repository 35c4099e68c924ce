import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from semiseg.errors import UserError
from semiseg.methods.pseudo_seg import Config, Method, Observed, fuse
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "background", "b", "c"), background=1)
AT = Progress(50, 100, seed=3)
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    def make(norm: bool = False, size: int = 3, classes: ClassTable = CLASSES, **settings) -> Method:
        settings = {"attention_channels": 4, "cutout": 0.5} | settings
        with seeded(0, "method"):
            build = lambda: tiny(0, norm, len(classes), size=size)  # noqa: E731
            return Method(Config(**settings), build, classes).train()

    return make


def batch_of() -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(4, (4, 10, 12), generator=generator)
    label[0][label[0] == 2] = 0  # image 0 has no class 2
    label[1] = IGNORE
    label[2, :5] = IGNORE
    image, weak = (torch.randn(4, 3, 10, 12, generator=generator) for _ in range(2))
    strong = weak + 0.3 * torch.randn(4, 3, 10, 12, generator=generator)
    valid = torch.ones(4, 10, 12, dtype=torch.bool)
    valid[0, :, 9:] = False
    return SemiBatch(image, label, weak, (strong,), valid, torch.arange(4))


BATCH = batch_of()


def column(*values: float) -> torch.Tensor:
    """Logits or probabilities of one pixel."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_fusion_by_hand():
    """Logits (4, 0, 0) and (0, 2, -2): sum of squares 16 + 8 = 24 over 6 values, so the RMS is 2.

    Divided by it: (2, 0, 0) and (0, 1, -1).
    """
    found = fuse(column(4.0, 0.0, 0.0), column(0.0, 2.0, -2.0), torch.ones(1, 1, 1, dtype=torch.bool), 0.5)
    e, one, other = math.e, math.e**2 + 2, 1 + math.e + 1 / math.e
    mean = [(e**2 / one + 1 / other) / 2, (1 / one + e / other) / 2, (1 / one + 1 / e / other) / 2]
    assert mean == pytest.approx([0.5158573, 0.3858740, 0.0982688], abs=1e-6)
    squared = [value**2 for value in mean]  # T = 0.5
    assert found.flatten().tolist() == pytest.approx([value / sum(squared) for value in squared], rel=1e-5)
    assert found.flatten().tolist() == pytest.approx([0.6266333, 0.3506270, 0.0227397], abs=1e-6)


def test_without_sharpening_the_mean_stays():
    found = fuse(column(2.0, 0.0), column(0.0, 0.0), torch.ones(1, 1, 1, dtype=torch.bool), 1.0)
    assert found[0, 0].item() == pytest.approx((math.exp(2) / (math.exp(2) + 1) + 0.5) / 2, rel=1e-5)


def test_both_predictions_are_scaled_image_by_image_by_their_valid_pixels():
    generator = fold_in(0, "logits")
    one, other = (torch.randn(3, 4, 5, 6, generator=generator) for _ in range(2))
    valid = torch.rand(3, 5, 6, generator=generator) < 0.7
    found = fuse(one, other, valid, 0.5)
    torch.testing.assert_close(fuse(7 * one, 7 * other, valid, 0.5), found)  # calibrated: sizes do not matter
    for i in range(3):
        logits = [torch.stack([one[i, :, y, x], other[i, :, y, x]]) for y, x in valid[i].nonzero().tolist()]
        rms = torch.stack(logits).square().mean().sqrt()
        mean = ((one[i] / rms).softmax(0) + (other[i] / rms).softmax(0)) / 2
        torch.testing.assert_close(found[i], mean**2 / (mean**2).sum(0), rtol=1e-4, atol=1e-6)
    padded = torch.where(valid[:, None], one, 100.0)
    torch.testing.assert_close(fuse(padded, other, valid, 0.5).movedim(1, -1)[valid], found.movedim(1, -1)[valid])
    nothing = fuse(one, other, torch.zeros_like(valid), 0.01)
    assert torch.isfinite(nothing).all()


def slow_losses(method: Method) -> dict[str, float]:
    """The four losses, image by image and pixel by pixel."""
    cfg, cams = method.config, method.cams
    with torch.no_grad():
        box = method._cutouts(AT, method.alone(BATCH, AT))
        strong = BATCH.strong[0] * ~box[:, None]
        log_strong = method.student(strong).log_softmax(1)
        terms: dict[str, list[float]] = {"labeled": [], "unlabeled": [], "attention": [], "classifier": []}
        for i in range(4):
            features = method.student.encode(BATCH.image[i : i + 1])
            counted = BATCH.label[i : i + 1] != IGNORE
            seen = cams.see(features, counted, (10, 12))
            present = torch.tensor([[bool((BATCH.label[i] == c).any()) for c in (0, 2, 3)]])
            refined = cams(seen, present)
            logits = method.student(BATCH.image[i : i + 1])
            for y, x in counted[0].nonzero().tolist():
                label = BATCH.label[i, y, x]
                terms["labeled"].append(-logits[0].log_softmax(0)[label, y, x].item())
                terms["attention"].append(-refined[0].log_softmax(0)[label, y, x].item())
            if counted.any():
                for c in range(3):
                    probability = seen.presence[0, c].sigmoid().item()
                    terms["classifier"].append(-math.log(probability if present[0, c] else 1 - probability))
            valid = BATCH.valid[i : i + 1]
            weak = cams.see(method.student.encode(BATCH.weak[i : i + 1]), valid, (10, 12))
            guess = cams(weak, weak.presence.sigmoid() >= cfg.presence)
            target = fuse(method.student(BATCH.weak[i : i + 1]), guess, valid, cfg.temperature)
            for y, x in (valid[0] & ~box[i]).nonzero().tolist():
                terms["unlabeled"].append(-(target[0, :, y, x] * log_strong[i, :, y, x]).sum().item())
    return {name: sum(values) / len(values) for name, values in terms.items()}


@pytest.mark.parametrize("presence", [0.5, 0.45, 1.0])
def test_the_losses_are_those_of_a_slow_reference(make, presence):
    method = make(presence=presence, unlabeled_weight=0.5, attention_weight=2.0, classifier_weight=3.0)
    expected = slow_losses(method)
    losses = method.losses(BATCH, AT)
    for name, value in expected.items():
        assert losses.scalars[name].item() == pytest.approx(value, rel=1e-4), name
    total = expected["labeled"] + 0.5 * expected["unlabeled"] + 2 * expected["attention"] + 3 * expected["classifier"]
    assert losses.total.item() == pytest.approx(total, rel=1e-4)


def test_the_pseudo_label_is_soft_and_gets_no_gradient(make):
    method = make(norm=True)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    target = method._pseudo_label(BATCH)
    assert not target.requires_grad
    torch.testing.assert_close(target.sum(1), torch.ones(4, 10, 12))
    assert ((target > 0.05) & (target < 0.9)).any()
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())  # eval mode
    assert method.student.training
    assert method.cams.training


def test_each_loss_trains_its_own_part(make):
    method = make()
    decoder_alone = {"attention_weight": 1e-30, "classifier_weight": 1e-30}
    for settings, trained in (
        (decoder_alone, {"student"}),
        ({"unlabeled_weight": 0.0, "classifier_weight": 1e-30}, {"student", "cams.key", "cams.query", "cams.score.0"}),
        ({"unlabeled_weight": 0.0, "attention_weight": 1e-30}, {"student", "cams.classifier"}),
    ):
        method = make(**settings)
        method.losses(BATCH, AT).total.backward()
        found = {
            "student" if key.startswith("student") else key.rpartition(".")[0]
            for key, parameter in method.named_parameters()
            if parameter.grad.abs().sum() > 1e-10
        }
        assert found == trained


def test_the_square_is_neither_seen_nor_learned(make):
    method = make(size=1)  # pixels do not mix
    part = method.alone(BATCH, AT)
    box = method._cutouts(AT, part)
    assert 0 < box.float().mean() < 0.4
    assert box.flatten(1).any(1).all()
    inside = torch.where(box[:, None], 5.0, BATCH.strong[0])
    outside = torch.where(box[:, None], BATCH.strong[0], 5.0)
    loss = method(BATCH, AT, part).scalars["unlabeled"]
    assert method(replace(BATCH, strong=(inside,)), AT, part).scalars["unlabeled"] == loss
    assert method(replace(BATCH, strong=(outside,)), AT, part).scalars["unlabeled"] != loss
    assert not make(cutout=0)._cutouts(AT, part).any()


def test_parts_add_up_to_the_whole(make):
    """Parts with different numbers of labeled and of valid pixels, and of images with labels."""
    method = make()
    whole = method.alone(BATCH, AT)
    expected = method(BATCH, AT, whole)
    expected.total.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in method.named_parameters()}
    method.zero_grad()
    found: dict[str, float] = {}
    for rows in (slice(0, 2), slice(2, 4)):
        fields = {key: value[rows] for key, value in vars(BATCH).items() if isinstance(value, torch.Tensor)}
        batch = replace(BATCH, strong=(BATCH.strong[0][rows],), **fields)
        own = Observed(**{key: value[rows] for key, value in vars(whole.observed).items()})
        losses = method(batch, AT, replace(whole, own=own, rows=rows, share=0.5))
        losses.total.backward()
        for name, value in losses.scalars.items():
            found[name] = found.get(name, 0.0) + value.item()
    assert found == pytest.approx({name: value.item() for name, value in expected.scalars.items()}, rel=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(method.get_parameter(key).grad, gradient, rtol=1e-4, atol=1e-6, msg=key)


def test_padded_and_unlabeled_pixels_change_nothing(make):
    method = make(size=1)
    counted = (BATCH.label != IGNORE)[:, None]
    expected = method.losses(BATCH, AT).scalars
    batch = replace(
        BATCH,
        image=torch.where(counted, BATCH.image, 7.0),
        weak=torch.where(BATCH.valid[:, None], BATCH.weak, 7.0),
        strong=(torch.where(BATCH.valid[:, None], BATCH.strong[0], 7.0),),
    )
    for name, value in method.losses(batch, AT).scalars.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_classes_that_an_image_may_lack(make):
    assert make().present.tolist() == [0, 2, 3]
    assert make(classes=ClassTable.of(("a", "b"))).present.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"^method.name: pseudo_seg needs a class that is not the background"):
        make(classes=ClassTable.of(("background",), background=0))


def test_the_classifier_learns_which_classes_are_in_an_image(make):
    method = make(unlabeled_weight=0.0)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
    for step in range(60):
        losses = method.losses(BATCH, Progress(step, 100))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses.scalars["classifier"] < 0.3
    assert F.relu(losses.scalars["labeled"]) < 1.4
