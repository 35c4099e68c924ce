import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.augment.features import cuts
from semiseg.errors import UserError
from semiseg.methods.cct import Config, Decoders, Method
from semiseg.models.build import Network, Undivided
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("a", "sky", "c"), background=1)
AT = Progress(50, 100, seed=3)
KINDS = list(Decoders.model_fields)
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    """make(dropout=2) -> a method with two auxiliary decoders that drop channels."""

    def make(classes: ClassTable = CLASSES, settings: dict | None = None, **decoders: int) -> Method:
        config = Config(decoders=Decoders(**(dict.fromkeys(KINDS, 0) | decoders)), **(settings or {}))
        with seeded(0, "method"):
            return Method(config, lambda *_: tiny(0, norm=False), classes).train()

    return make


def batch_of(slots: int = 3) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 9, 11), generator=generator)
    valid = torch.ones(slots, 9, 11, dtype=torch.bool)
    valid[-1, 6:] = False
    return SemiBatch(
        image=torch.randn(slots, 3, 9, 11, generator=generator),
        label=label,
        weak=torch.randn(slots, 3, 9, 11, generator=generator),
        strong=(),
        valid=valid,
        index=torch.arange(slots),
    )


BATCH = batch_of()


class Recording(nn.Module):
    """Keeps what an auxiliary decoder sees."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.seen = decoder, []

    def forward(self, value: Tensor, *size: tuple[int, int]) -> Tensor:
        self.seen.append(value.detach())
        return self.decoder(value, *size)


def seen_by(method: Method, at: Progress = AT, batch: SemiBatch = BATCH) -> list[Tensor]:
    """What each auxiliary decoder sees in the loss."""
    method.auxiliary = nn.ModuleList(Recording(decoder) for decoder in method.auxiliary)
    method.losses(batch, at)
    return [decoder.seen[-1] for decoder in method.auxiliary]


def features(method: Method) -> tuple[Tensor, Tensor]:
    """The feature map of unlabeled images, and the label that the main decoder gives each of its places."""
    with torch.no_grad():
        return method.student.encode(BATCH.weak).maps[-1], method.student(BATCH.weak).argmax(1)


def test_the_loss_is_the_mean_distance_of_the_decoders_from_the_main_one(make):
    method = make(context_mask=1, object_mask=2)
    value, label = features(method)
    target = method.student(BATCH.weak).softmax(1)
    total = torch.zeros(())
    for number, decoder in enumerate(method.auxiliary):
        shown = (label != 1) & BATCH.valid if number == 0 else ~((label != 1) & BATCH.valid)
        probability = F.conv2d(value * shown[:, None], decoder.layers[0].weight).softmax(1)
        total = total + ((probability - target) ** 2).movedim(1, -1)[BATCH.valid].mean()
    scalars = method.losses(BATCH, AT).scalars
    assert scalars["unlabeled"].item() == pytest.approx(total.item() / 3, rel=1e-5)
    labeled = F.cross_entropy(method.student(BATCH.image), BATCH.label)
    assert scalars["labeled"].item() == pytest.approx(labeled.item(), rel=1e-5)


def test_the_main_decoder_learns_from_labels_alone(make):
    method = make(**dict.fromkeys(KINDS, 1))
    unlabeled = replace(BATCH, label=torch.full_like(BATCH.label, IGNORE))
    method.losses(unlabeled, AT).total.backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad.abs().max() > 0) != ("segmentation_head" in key), key


def test_the_weight_rises(make):
    def weight(step: int, **settings) -> float:
        losses = make(dropout=1, settings=settings).losses(BATCH, Progress(step, 100))
        return ((losses.total - losses.scalars["labeled"]) / losses.scalars["unlabeled"]).item()

    assert weight(5) == pytest.approx(30 * math.exp(-5 / 4), rel=1e-4)
    assert weight(10) == pytest.approx(weight(90), rel=1e-4) == pytest.approx(30, rel=1e-4)
    assert weight(0, ramp=0.0, unlabeled_weight=2.0) == pytest.approx(2, rel=1e-3)


def test_masks_hide_context_or_objects(make):
    method = make(context_mask=1, object_mask=1)
    context, objects = seen_by(method)
    value, label = features(method)
    is_object = ((label != 1) & BATCH.valid)[:, None]
    assert 0.1 < is_object.float().mean() < 0.9
    assert torch.equal(context, torch.where(is_object, value, 0.0))
    assert torch.equal(objects, torch.where(is_object, 0.0, value))


def test_without_a_background_class_0_is_the_context(make):
    (context,) = seen_by(method := make(ClassTable.of(("a", "b", "c")), context_mask=1))
    value, label = features(method)
    assert torch.equal(context, value * ((label != 0) & BATCH.valid)[:, None])


def test_a_part_of_each_object_is_cut(make):
    method = make(cutout=2, settings={"cutout_side": 0.5})
    value, label = features(method)
    member = torch.stack([(label == index) & BATCH.valid for index in (0, 2)], 1)
    cut = [value != seen for seen in seen_by(method)]
    assert not torch.equal(*cut)
    for number, one in enumerate(cut):
        position = torch.rand(3, 2, 2, generator=AT.generator("auxiliary", number))
        assert torch.equal(one.any(1), cuts(member, position, 0.5) & (value != 0).any(1))
        assert one.any()


def test_channels_and_active_places_are_dropped(make):
    method = make(dropout=2, feature_drop=2, settings={"dropout_probability": 0.25, "kept_below": (0.5, 0.7)})
    value, _ = features(method)
    first, second, third, fourth = seen_by(method)
    for seen in (first, second):
        ratio = (seen.sum((2, 3)) / value.sum((2, 3))).flatten()
        assert all(one == pytest.approx(0) or one == pytest.approx(4 / 3) for one in ratio.tolist())
    assert not torch.equal(first, second)
    activity = value.mean(1)
    for number, seen in ((2, third), (3, fourth)):
        share = 0.5 + 0.2 * torch.rand(3, generator=AT.generator("auxiliary", number))
        for image in range(3):
            stays = activity[image] < share[image] * activity[image][BATCH.valid[image]].max()
            assert torch.equal(seen[image], value[image] * stays)
    assert not torch.equal(third, fourth)


def test_noise_is_the_same_for_all_images(make):
    method = make(feature_noise=2, settings={"noise_amplitude": 0.2})
    value, _ = features(method)
    one, other = seen_by(method)
    assert not torch.equal(one, other)
    factor = one / value
    assert 0.8 <= factor[value > 0].min() < 0.81
    assert 1.19 < factor[value > 0].max() < 1.2 + 1e-5
    both = (value[0] > 0) & (value[1] > 0)
    torch.testing.assert_close(factor[0][both], factor[1][both])


def test_adversarial_noise_has_its_length_and_moves_its_own_decoder(make):
    method = make(vat=2, settings={"vat_radius": 0.5})
    value, _ = features(method)
    for seen, recording in zip(seen_by(method), method.auxiliary, strict=True):
        noise, layers = seen - value, recording.decoder.layers
        torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((3,), 0.5))
        assert noise[~BATCH.valid[:, None].expand_as(noise)].abs().max() < 1e-6
        before, after = layers(value).log_softmax(1), layers(seen).log_softmax(1)
        random = torch.randn(value.shape, generator=fold_in(1)) * BATCH.valid[:, None]
        random = 0.5 * random / random.flatten(1).norm(dim=1)[:, None, None, None]
        other = layers(value + random).log_softmax(1)
        moved, by_chance = (F.kl_div(one, before, log_target=True, reduction="sum") for one in (after, other))
        assert moved > 1.5 * by_chance


def test_the_numbers_of_decoders_are_those_of_the_paper():
    kinds = Decoders().kinds()
    assert len(kinds) == 30
    assert [kinds.count(kind) for kind in KINDS] == [2, 6, 6, 2, 2, 6, 6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoders": dict.fromkeys(KINDS, 0)}, "decoders: there are none"),
        ({"decoders": {"vat": 0}, "vat_radius": 1.0}, "vat_radius does nothing without decoders of kind vat"),
        ({"decoders": {"cutout": 0}, "cutout_side": 0.3}, "cutout_side does nothing without"),
        ({"kept_below": (0.9, 0.7)}, "kept_below needs"),
        ({"decoders": {"vat": -1}}, "greater than or equal to 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


def test_a_network_without_an_encoder_is_refused():
    with pytest.raises(UserError, match=r"^method.name: cct perturbs the feature maps .* method cps$"):
        Method(Config(), lambda *_: Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1), CLASSES)
