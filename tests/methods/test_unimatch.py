import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from semiseg.augment.cutmix import sample_some_boxes
from semiseg.augment.features import sample_channel_dropout
from semiseg.errors import UserError
from semiseg.methods.unimatch import Config, Method
from semiseg.models.build import Network, Undivided
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, Losses, Normalization, Progress, SemiBatch

CLASSES = ClassTable.of(("background", "a", "b"), background=0)
AT = Progress(3, 10, seed=1)
TAU = 0.6
Make = Callable[..., Method]


@pytest.fixture
def make(tiny) -> Make:
    def make(norm: bool = False, **settings) -> Method:
        return Method(Config(**({"threshold": TAU} | settings)), lambda: tiny(0, norm), CLASSES).train()

    return make


def batch_of(slots: int = 4) -> SemiBatch:
    generator = fold_in(0, "batch")
    label = torch.randint(3, (slots, 16, 16), generator=generator)
    label[0, :5] = IGNORE
    weak, first, second = torch.randn(3, slots, 3, 16, 16, generator=generator)
    valid = torch.ones(slots, 16, 16, dtype=torch.bool)
    valid[0, :, 10:] = False
    image = torch.randn(weak.shape, generator=generator)
    return SemiBatch(image, label, weak, (first, second), valid, torch.arange(slots))


BATCH = batch_of()


def views_of(method: Method, batch: SemiBatch = BATCH, at: Progress = AT) -> tuple[Losses, list[Tensor]]:
    """The losses, and the two strong views that the network was trained on."""
    seen: list[Tensor] = []
    handle = method.student.net.encoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if module.training else None
    )
    losses = method.losses(batch, at)
    handle.remove()
    clean, strong = seen
    assert torch.equal(clean, torch.cat([batch.image, batch.weak]))
    return losses, list(strong.chunk(2))


@pytest.mark.parametrize("cutmix_probability", [0.0, 0.5, 1.0])
def test_a_step_equals_the_paper(make, cutmix_probability):
    """Pixel by pixel: L = (L_s + lambda (1/4 first + 1/4 second + 1/2 features)) / 2, batch norm included."""
    settings = {"cutmix_probability": cutmix_probability, "unlabeled_weight": 0.8, "feature_dropout": 0.3}
    method = make(norm=True, **settings)
    slow = copy.deepcopy(method.student)
    losses, views = views_of(method)

    with torch.no_grad():
        in_eval = copy.deepcopy(slow).eval()(BATCH.weak).softmax(1)
        # the pass over labeled and weak images, in train mode; channels of the weak ones are dropped, too
        maps = slow.net.encoder(torch.cat([BATCH.image, BATCH.weak]))[-1]
        factor = sample_channel_dropout(AT.generator("feature dropout"), 4, 8, 0.3)
        assert sorted(set(factor.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
        logits, on_features = (
            slow.net.segmentation_head(maps),
            slow.net.segmentation_head(maps[4:] * factor[..., None, None]),
        )
        in_train = logits[4:].softmax(1)
        on_strong = slow(torch.cat(views)).chunk(2)

    def loss(logits: Tensor, source: Tensor) -> float:
        """source[i, y, x]: the image that the pixel of image i is from. The mean is over the whole batch."""
        nll, kept, valid = -logits.double().log_softmax(1), 0.0, 0
        for i in range(4):
            for y in range(16):
                for x in range(16):
                    j = source[i, y, x].item()
                    probability = (in_train if j == i else in_eval)[j, :, y, x]
                    valid += BATCH.valid[j, y, x].item()
                    if BATCH.valid[j, y, x] and probability.max() >= TAU:
                        kept += nll[i, probability.argmax(), y, x].item()
        return kept / valid

    own = torch.arange(4)[:, None, None].expand(4, 16, 16)
    sources, partners = [], []
    for view, strong in zip(views, BATCH.strong, strict=True):
        pasted = (view != strong)[:, 0]
        of = [
            next(j for j in range(4) if torch.equal(view[i][:, pasted[i]], strong[j][:, pasted[i]])) for i in range(4)
        ]
        partners.append(of)
        sources.append(torch.where(pasted, torch.tensor(of)[:, None, None], own))
        number = pasted.flatten(1).any(1).sum()
        assert number == 4 * cutmix_probability if cutmix_probability != 0.5 else 0 < number < 4
    nll = -logits[:4].double().log_softmax(1)
    labeled = [nll[i, BATCH.label[i, y, x], y, x].item() for i, y, x in (BATCH.label != IGNORE).nonzero().tolist()]
    labeled_loss = sum(labeled) / len(labeled)
    first, second = (loss(*pair) for pair in zip(on_strong, sources, strict=True))
    features = loss(on_features, own)

    scalars = {name: value.item() for name, value in losses.scalars.items()}
    assert scalars["labeled"] == pytest.approx(labeled_loss, rel=1e-5)
    assert scalars["strong"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert scalars["features"] == pytest.approx(features, rel=1e-5)
    assert scalars["unlabeled"] == pytest.approx(first / 4 + second / 4 + features / 2, rel=1e-5)
    assert losses.total.item() == pytest.approx((labeled_loss + 0.8 * scalars["unlabeled"]) / 2, rel=1e-5)
    confident = [((in_train[i].amax(0) >= TAU) & BATCH.valid[i]).sum() / BATCH.valid[i].sum() for i in range(4)]
    assert scalars["confident"] == pytest.approx(sum(confident).item() / 4, rel=1e-5)
    for own_state, its in zip(method.student.buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(own_state, its)
    if cutmix_probability == 1:
        assert partners[0] == partners[1]  # one partner, two boxes
        assert all(partner != i for i, partner in enumerate(partners[0]))
        assert not torch.equal(*(view != strong for view, strong in zip(views, BATCH.strong, strict=True)))


def test_boxes_are_drawn_after_the_partner(make):
    _, views = views_of(make(cutmix_probability=1.0))
    generator = AT.generator("cutmix")
    torch.randperm(4, generator=generator)
    for view, strong in zip(views, BATCH.strong, strict=True):
        box = sample_some_boxes(4, 16, 16, generator, probability=1.0)
        assert torch.equal((view != strong).all(1), box)


def test_whole_channels_of_every_map_are_dropped_for_the_weak_views_only(make):
    method, seen = make(), []
    method.student.net.encoder = TwoMaps(method.student.net.encoder)
    method.student.net.decoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if module.training else None
    )
    method.losses(BATCH, AT)
    maps = seen[0]
    assert [len(value) for value in maps] == [12, 12]
    ratios = []
    for value in maps:
        weak, perturbed = value[4:8], value[8:]
        ratio = (perturbed.sum((2, 3)) / weak.sum((2, 3)).clamp(min=1e-6)).round(decimals=4)
        torch.testing.assert_close(perturbed, weak * ratio[..., None, None])
        ratios.append(ratio)
        assert set(ratio.flatten().tolist()) == {0.0, 2.0}
        assert len({tuple(row) for row in ratio.tolist()}) == 4
    assert not torch.equal(*ratios)


class TwoMaps(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> list[Tensor]:
        (value,) = self.encoder(image)
        return [value + 1, value + 2]


def test_the_gradient_does_not_flow_through_pseudo_labels(make):
    """With no labeled pixel and a threshold that no pixel passes there is no gradient; else there is."""
    for threshold, some in ((1.0, False), (0.0, True)):
        method = make(threshold=threshold)
        nothing = replace(BATCH, label=torch.full_like(BATCH.label, IGNORE))
        method.losses(nothing, AT).total.backward()
        assert any(parameter.grad.abs().sum() > 0 for parameter in method.student.parameters()) == some


def test_a_single_image_is_its_own_partner(make):
    """A micro-batch of one image passes the check of shapes before a run as if it were the whole batch."""
    batch = batch_of(1)
    _, views = views_of(make(cutmix_probability=1.0), batch)
    assert all(torch.equal(view, strong) for view, strong in zip(views, batch.strong, strict=True))


def test_two_strong_views_of_one_pool(make):
    method = make()
    assert method.views.strong == (method.config.strong,) * 2
    assert method.evaluated() == {"student": (method.student,)}


def test_a_network_without_feature_maps_is_refused():
    network = Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), 1)
    with pytest.raises(UserError, match=r"^method\.name: unimatch .* use another model\.architecture, or .*fixmatch$"):
        Method(Config(), lambda: network, CLASSES)
