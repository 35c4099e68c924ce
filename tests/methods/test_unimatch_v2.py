import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.augment.features import sample_complementary_dropout
from semiseg.errors import UserError
from semiseg.methods.unimatch_v2 import Config, Method
from semiseg.models import build
from semiseg.models.build import Network, Undivided
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE, ClassTable, Losses, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
AT = Progress(3, 10, seed=1)
TAU = 0.6
Make = Callable[..., Method]


@pytest.fixture
def make(tiny, differ) -> Make:
    """make(norm, **settings) -> a method whose teacher differs from the student."""

    def make(norm: bool = False, **settings) -> Method:
        method = Method(Config(**({"threshold": TAU} | settings)), lambda: tiny(0, norm), CLASSES)
        differ(method.teacher)
        return method.train()

    return make


def batch_of(slots: int = 4, side: int = 16) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, side, side), generator=generator)
    label[0, :5] = IGNORE
    weak, first, second = torch.randn(3, slots, 3, side, side, generator=generator)
    valid = torch.ones(slots, side, side, dtype=torch.bool)
    valid[0, :, 10:] = False
    image = torch.randn(weak.shape, generator=generator)
    return SemiBatch(image, label, weak, (first, second), valid, torch.arange(slots))


BATCH = batch_of()


def views_of(method: Method, batch: SemiBatch = BATCH, at: Progress = AT) -> tuple[Losses, list[Tensor]]:
    """The losses, and the two strong views that the student was trained on."""
    seen: list[Tensor] = []
    handle = method.student.net.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = method.losses(batch, at)
    handle.remove()
    (together,) = seen  # one pass for everything that has a gradient
    image, *views = together.chunk(3)
    assert torch.equal(image, batch.image)
    return losses, views


@pytest.mark.parametrize("dropout", [{}, {"whole_pairs": 0.0}, {"feature_dropout": "none"}])
@pytest.mark.parametrize("cutmix_probability", [0.0, 0.5, 1.0])
def test_a_step_equals_the_paper(make, cutmix_probability, dropout):
    """Pixel by pixel: L = (L_x + lambda (first + second) / 2) / 2; partners are found by comparing pixels."""
    method = make(norm=True, cutmix_probability=cutmix_probability, unlabeled_weight=0.8, **dropout)
    slow, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher).eval()
    losses, views = views_of(method)

    with torch.no_grad():
        probability = teacher(BATCH.weak).softmax(1)
        maps = slow.net.encoder(torch.cat([BATCH.image, *views]))[-1]
        if dropout != {"feature_dropout": "none"}:
            share = dropout.get("whole_pairs", 0.5)
            factor = sample_complementary_dropout(AT.generator("feature dropout"), 4, 8, share)
            assert ((factor == 1).all(2).all(0)).sum() == (2 if share else 0)
            maps[4:8] *= factor[0][..., None, None]
            maps[8:] *= factor[1][..., None, None]
        nll = -slow.net.segmentation_head(maps).double().log_softmax(1)

    def loss(view: Tensor, strong: Tensor, nll: Tensor) -> tuple[float, list[int]]:
        kept, valid, partners = 0.0, 0, []
        for i in range(4):
            pasted = (view[i] != strong[i])[0]
            j = next(j for j in range(4) if torch.equal(view[i][:, pasted], strong[j][:, pasted]))
            partners.append(j if pasted.any() else i)
            for y in range(16):
                for x in range(16):
                    source = j if pasted[y, x] else i
                    valid += BATCH.valid[source, y, x].item()
                    if BATCH.valid[source, y, x] and probability[source, :, y, x].max() >= TAU:
                        kept += nll[i, probability[source, :, y, x].argmax(), y, x].item()
        return kept / valid, partners

    (first, partners), (second, same) = (
        loss(view, strong, part) for view, strong, part in zip(views, BATCH.strong, nll[4:].chunk(2), strict=True)
    )
    on_label = [nll[i, BATCH.label[i, y, x], y, x].item() for i, y, x in (BATCH.label != IGNORE).nonzero().tolist()]
    labeled = sum(on_label) / len(on_label)
    assert first != second
    assert min(first, second) > 0.05
    scalars = {name: value.item() for name, value in losses.scalars.items()}
    assert scalars["labeled"] == pytest.approx(labeled, rel=1e-5)
    assert scalars["unlabeled"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert losses.total.item() == pytest.approx((labeled + 0.8 * (first + second) / 2) / 2, rel=1e-5)
    confident = [((probability[i].amax(0) >= TAU) & BATCH.valid[i]).sum() / BATCH.valid[i].sum() for i in range(4)]
    assert scalars["confident"] == pytest.approx(sum(confident).item() / 4, rel=1e-5)
    for own, its in zip(method.student.buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(own, its)
    alone = sum(j == i for both in (partners, same) for i, j in enumerate(both))
    assert alone == 8 * (1 - cutmix_probability) if cutmix_probability != 0.5 else 0 < alone < 8
    assert cutmix_probability != 1 or partners == same  # one partner, two boxes


OPTIONS = {"patch_size": 16, "dynamic_img_size": True, "embed_dim": 24, "num_heads": 2}
OPTIONS |= {"decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8, "decoder_readout": "ignore"}
NETWORKS = {
    "unet": {"encoder": "tu-test_efficientnet", "options": {"decoder_channels": [32, 24, 16, 8, 8]}},
    "deeplabv3plus": {"encoder": "tu-test_efficientnet", "options": {"decoder_channels": 16}},
    "dpt": {"encoder": "tu-vit_small_patch14_dinov2", "options": OPTIONS},
}


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_two_views_lose_complementary_channels_of_every_map(architecture):
    """Convolutional networks and a vision transformer, whose two views are the same image here."""
    settings = build.Config(architecture=architecture, weights=None, **NETWORKS[architecture])
    with seeded(0):
        method = Method(Config(cutmix_probability=0), lambda: build.build(settings, 3), CLASSES).train()
    batch = batch_of(side=37)
    batch = replace(batch, strong=(batch.weak, batch.weak))
    encoded, decoded = [], []
    encode, decode = method.student.encode, method.student.decode
    method.student.encode = lambda image: encoded.append(encode(image)) or encoded[-1]
    method.student.decode = lambda features: decoded.append(features) or decode(features)
    losses = method.losses(batch, AT)
    losses.total.backward()
    for name, parameter in method.student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name

    before, after = encoded[0].maps, decoded[0].maps
    masks = []
    for clean, dropped in zip(before, after, strict=True):
        (image, first, second), (same_image, one, other) = clean.chunk(3), dropped.chunk(3)
        assert torch.equal(same_image, image)  # labeled images keep everything
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(one + other, 2 * first)
        whole = [torch.equal(one[i], first[i]) for i in range(4)]
        assert sum(whole) == 2
        for i in range(4):
            lost, doubled = (one[i] == 0).all(2).all(1), (one[i] == 2 * first[i]).all(2).all(1)
            assert whole[i] or (lost | doubled).all()
            if not whole[i] and len(lost) > 8:
                assert lost.any()
                assert not lost.all()
        masks.append((one != 0).any(3).any(2))
    if architecture == "dpt":  # one mask for all maps
        assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_parts_drop_what_the_whole_batch_drops(make):
    """Here, unlike in the test of every method, some pixels are sure: the unlabeled loss is not 0."""
    method = make()
    everyone = method.alone(BATCH, AT)
    whole, shares = method(BATCH, AT, everyone), []
    for rows in (slice(0, 1), slice(1, 4)):
        of = {name: value[rows] for name, value in vars(BATCH).items() if name not in ("strong", "second", "pseudo")}
        batch = replace(BATCH, strong=tuple(view[rows] for view in BATCH.strong), **of)
        own = replace(everyone.own, **{name: value[rows] for name, value in vars(everyone.own).items()})
        shares.append(method(batch, AT, replace(everyone, own=own, rows=rows, share=len(batch.image) / 4)))
    assert whole.scalars["unlabeled"] > 0.05
    for name, value in whole.scalars.items():
        torch.testing.assert_close(sum(share.scalars[name] for share in shares), value, msg=name)
    torch.testing.assert_close(sum(share.total for share in shares), whole.total)


def test_the_teacher_labels_and_follows(make):
    method = make(ema_decay=0.25)
    assert method.evaluated() == {"teacher": (method.teacher,), "student": (method.student,)}
    assert method.views.strong == (method.config.strong,) * 2
    old = next(method.teacher.parameters()).clone()
    method.after_step(Progress(5, 10), method.observe(BATCH, AT))
    own, student = (next(network.parameters()) for network in (method.teacher, method.student))
    torch.testing.assert_close(own, 0.25 * old + 0.75 * student)
    default = make()
    old = next(default.teacher.parameters()).clone()
    default.after_step(Progress(9999, 10_000), default.observe(BATCH, AT))
    torch.testing.assert_close(next(default.teacher.parameters()), 0.996 * old + 0.004 * student)
    default.after_step(Progress(0, 10_000), default.observe(BATCH, AT))  # the first step copies
    torch.testing.assert_close(next(default.teacher.parameters()), student)


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(ValidationError, match="whole_pairs belongs to feature_dropout: complementary"):
        Config(feature_dropout="none", whole_pairs=0.5)


def test_a_network_without_feature_maps_needs_no_dropout():
    network = Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1)
    with pytest.raises(
        UserError, match=r"^method\.feature_dropout: complementary .* or method\.feature_dropout: none$"
    ):
        Method(Config(), lambda: network, CLASSES)
    Method(Config(feature_dropout="none"), lambda: network, CLASSES).losses(BATCH, AT).total.backward()
