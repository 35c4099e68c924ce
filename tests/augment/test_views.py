from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from semiseg.augment import intensity, jitter
from semiseg.augment.views import Views, make_batch
from semiseg.rng import fold_in
from semiseg.types import IGNORE, LoadedBatch, Normalization, SemiBatch

ONE = Views(strong=(intensity.Config(),))
TWO = Views(strong=(intensity.Config(), intensity.Config()))
IMAGENET = Normalization()


def loaded(slots: int = 3, size: int = 12, unlabeled: bool = True) -> LoadedBatch:
    generator = fold_in(0, "loaded", size)
    label = torch.randint(5, (slots, size, size), dtype=torch.uint8, generator=generator)
    num_unlabeled = slots if unlabeled else 0
    label[:, 0] = IGNORE
    return LoadedBatch(
        torch.randint(256, (slots, 3, size, size), dtype=torch.uint8, generator=generator),
        label,
        torch.randint(256, (num_unlabeled, 3, size, size), dtype=torch.uint8, generator=generator),
        torch.rand(num_unlabeled, size, size, generator=generator) < 0.9,
        torch.arange(slots) + 40,
        torch.arange(num_unlabeled) + 7,
    )


def overlapping(slots: int) -> LoadedBatch:
    one, other = loaded(slots), loaded(slots + 1)
    return replace(one, second=other.weak[1:], align=torch.rand(slots, 2, 2))


def batch(views: Views = ONE, seed: int = 0, step: int = 7, of: LoadedBatch | None = None) -> SemiBatch:
    return make_batch(of or loaded(), views, IMAGENET, seed, step)


def test_everything_but_the_strong_views_is_what_was_loaded():
    made, of = batch(), loaded()
    assert torch.equal(made.image, IMAGENET(of.image))
    assert torch.equal(made.weak, IMAGENET(of.weak))
    assert made.label.dtype == torch.int64
    assert torch.equal(made.label, of.label.long())
    assert (made.label[:, 0] == IGNORE).all()
    assert torch.equal(made.valid, of.valid)
    assert torch.equal(made.index, of.index)


def test_normalization_by_hand():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8)[None, :, None, None]
    normalized = Normalization((0.5, 0.25, 0.2), (0.5, 0.25, 0.1))(image)
    assert normalized.dtype == torch.float32
    assert normalized.flatten().tolist() == pytest.approx([-1.0, 3.0, 0.0], abs=1e-6)
    assert IMAGENET(image)[0, 0, 0, 0].item() == pytest.approx(-0.485 / 0.229, rel=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_strong_views_are_aligned_with_the_weak_view(seed):
    """A bright rectangle off the center. Far from its border all operations treat its pixels alike."""
    weak = torch.full((6, 3, 48, 40), 60, dtype=torch.uint8)
    weak[..., 4:24, 2:22] = torch.tensor([200, 160, 180], dtype=torch.uint8)[:, None, None]
    outside = torch.ones(48, 40, dtype=torch.bool)
    outside[:31, :29] = False
    of = LoadedBatch(weak, weak[:, 0], weak, torch.ones(6, 48, 40, dtype=torch.bool), torch.arange(6), torch.arange(6))
    (strong,) = batch(seed=seed, of=of).strong
    inner, outer = strong[..., 11:17, 9:15].flatten(2), strong[..., outside]
    torch.testing.assert_close(inner, inner[..., :1].expand_as(inner))
    torch.testing.assert_close(outer, outer[..., :1].expand_as(outer))
    told_apart = (inner[..., 0] - outer[..., 0]).abs().amax(1) > 0.01
    assert told_apart.sum() >= 3  # solarize or two dark operations can merge them


def test_every_image_and_every_view_draws_its_own_operations():
    of = loaded(8, size=16)
    first, second = batch(TWO, of=of).strong
    assert torch.equal(batch(ONE, of=of).strong[0], first)  # a further view leaves the first as it is
    assert not torch.equal(first, second)
    drawn = intensity.Config().sample(fold_in(0, "strong", 1, 7), 8)
    assert torch.equal(second, IMAGENET(intensity.Config().apply(of.weak, drawn)))
    assert len(set(map(tuple, drawn.op.tolist()))) > 1


def test_each_view_has_its_own_pool():
    neutral = intensity.Config(num_ops=1, factor=(0, 0), hue=(0, 0), bits=(8, 8), solarize=(0, 0))
    of = loaded(8, size=16)
    _, second = batch(Views(strong=(intensity.Config(), neutral)), of=of).strong
    drawn = neutral.sample(fold_in(0, "strong", 1, 7), 8)
    assert drawn.op.shape == (8, 1)
    assert torch.equal(second, IMAGENET(neutral.apply(of.weak, drawn)))


def test_strong_views_depend_on_seed_and_step_alone():
    alone = batch().strong[0]
    for step in range(7):
        batch(step=step)
    assert torch.equal(batch().strong[0], alone)
    for other in (batch(seed=1), batch(step=8)):
        assert not torch.equal(other.strong[0], alone)
        assert torch.equal(other.weak, batch().weak)


def test_the_parts_of_a_batch_are_augmented_as_the_whole():
    of = loaded(6, size=16)
    whole = batch(TWO, of=of)
    parts = [make_batch(part, TWO, IMAGENET, 0, 7, 2 * n, 6) for n, part in enumerate(of.split(2))]
    for view in range(2):
        assert torch.equal(torch.cat([part.strong[view] for part in parts]), whole.strong[view])
    for name in ("image", "label", "weak", "valid", "index"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("pool", [intensity.Config(ops=("hue", "invert", "color")), jitter.Config()])
def test_labeled_images_are_augmented_and_their_labels_are_not(pool):
    of = loaded(6, size=16)
    views = Views(strong=ONE.strong, labeled=pool)
    whole, weak = batch(views, of=of), batch(ONE, of=of)
    drawn = pool.sample(fold_in(0, "strong labeled", 7), 6)
    assert torch.equal(whole.image, IMAGENET(pool.apply(of.image, drawn)))
    assert (whole.image != weak.image).flatten(1).any(1).sum() >= 4
    for name in ("label", "weak", "valid", "index"):
        assert torch.equal(getattr(whole, name), getattr(weak, name))
    assert torch.equal(whole.strong[0], weak.strong[0])
    parts = [make_batch(part, views, IMAGENET, 0, 7, 2 * n, 6) for n, part in enumerate(of.split(2))]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert not torch.equal(batch(views, of=of, step=8).image, whole.image)
    alone = batch(Views(unlabeled=False, labeled=pool), of=loaded(6, size=16, unlabeled=False))
    assert alone.image.shape == whole.image.shape


def test_the_loaded_images_are_left_as_they_are():
    of = loaded()
    before = of.weak.clone(), of.image.clone()
    batch(Views(strong=TWO.strong, labeled=jitter.Config()), of=of)
    assert torch.equal(of.weak, before[0])
    assert torch.equal(of.image, before[1])


def test_supervised_training_has_no_strong_view():
    made = batch(Views(unlabeled=False), of=loaded(unlabeled=False))
    assert made.strong == ()
    assert made.weak.shape == (0, 3, 12, 12)
    assert made.image.shape == (3, 3, 12, 12)


def test_the_second_crop_has_draws_of_its_own_from_the_same_pools():
    views, of = Views(strong=(intensity.Config(), jitter.Config()), overlap=(0.1, 1.0)), overlapping(8)
    made, without = batch(views, of=of), batch(Views(strong=views.strong), of=of)
    assert without.second is None
    assert all(map(torch.equal, made.strong, without.strong))
    assert torch.equal(made.second.weak, IMAGENET(of.second))
    assert torch.equal(made.second.valid, of.valid)
    assert torch.equal(made.second.align, of.align)
    for view, pool in enumerate(views.strong):
        drawn = pool.sample(fold_in(0, "strong second", view, 7), 8)
        assert torch.equal(made.second.strong[view], IMAGENET(pool.apply(of.second, drawn)))
        assert not torch.equal(drawn.op, pool.sample(fold_in(0, "strong", view, 7), 8).op)
    parts = [make_batch(part, views, IMAGENET, 0, 7, 2 * n, 8).second for n, part in enumerate(of.split(2))]
    for name in ("weak", "valid", "align"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(made.second, name))
    for view in range(2):
        assert torch.equal(torch.cat([part.strong[view] for part in parts]), made.second.strong[view])


def test_a_blank_batch_is_like_a_real_one():
    views = Views(strong=ONE.strong, overlap=(0.1, 1.0))
    blank, real = views.blank(3, (12, 12), "cpu"), batch(views, of=overlapping(3))
    assert (Views(unlabeled=False).images_per_slot, ONE.images_per_slot, views.images_per_slot) == (1, 2, 3)
    for one, other in ((blank, real), (blank.second, real.second)):
        shapes = [
            [(leaf.shape, leaf.dtype) for leaf in tree_leaves(vars(each)) if torch.is_tensor(leaf)]
            for each in (one, other)
        ]
        assert shapes[0] == shapes[1]
    assert ONE.blank(3, (12, 12), "cpu").second is None


@pytest.mark.parametrize("overlap", [(0.0, 0.5), (0.5, 0.4), (0.5, 1.1), (float("nan"), 1.0)])
def test_an_overlap_that_is_no_range_is_refused(overlap):
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        Views(overlap=overlap)
    with pytest.raises(ValueError, match="unlabeled=False"):
        Views(unlabeled=False, overlap=(0.5, 1.0))


def test_the_host_never_waits(no_host_sync):
    views = Views(strong=(intensity.Config(), jitter.Config()), labeled=jitter.Config(), overlap=(0.1, 1.0))
    made = no_host_sync(make_batch, overlapping(24), views, IMAGENET, 0, 7)
    assert made.second.strong[1].is_meta
    assert made.strong[1].is_meta
    assert made.weak.is_meta
