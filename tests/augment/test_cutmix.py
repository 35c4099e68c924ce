import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semiseg.augment.cutmix import (
    bounding_boxes,
    chosen_partners,
    hard_easy_partners,
    paste,
    random_partners,
    sample_beta_boxes,
    sample_boxes,
    sample_boxes_of_area,
    sample_boxes_official,
    sample_cutouts,
    sample_some_boxes,
    triggered,
)
from semiseg.rng import fold_in

seeds = st.integers(0, 10_000)
samplers = pytest.mark.parametrize("sample", [sample_boxes, sample_boxes_official])


def rectangle(box: Tensor) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the one filled rectangle in a map; all 0 when it is empty."""
    rows, columns = box.any(1).nonzero().flatten().tolist(), box.any(0).nonzero().flatten().tolist()
    if not rows:
        return 0, 0, 0, 0
    top, left, height, width = rows[0], columns[0], len(rows), len(columns)
    assert box[top : top + height, left : left + width].all()
    assert box.sum() == height * width
    return top, left, height, width


# Who is paired.


@pytest.mark.parametrize(
    ("easiness", "partners"),
    [([0.1, 0.8, 0.4, 0.6], [1, 0, 3, 2]), ([0.1, 0.8, 0.4], [1, 0, 2]), ([0.3], [0]), ([0.9, 0.2], [1, 0])],
)
def test_golden_hard_easy_partners(easiness, partners):
    assert hard_easy_partners(torch.tensor(easiness)).tolist() == partners


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_hard_easy_partners_are_mutual_and_of_opposite_rank(easiness):
    partner = hard_easy_partners(torch.tensor(easiness)).tolist()
    size = len(easiness)
    assert sorted(partner) == list(range(size))
    assert [partner[p] for p in partner] == list(range(size))
    assert sum(partner[i] == i for i in range(size)) == size % 2  # the middle of an odd batch
    ordered = sorted(easiness)
    for i, p in enumerate(partner):
        assert easiness[p] in {ordered[size - 1 - rank] for rank in range(size) if ordered[rank] == easiness[i]}


@given(seeds, st.integers(2, 9))
def test_random_partners_pair_nobody_with_itself(seed, batch_size):
    partner = random_partners(batch_size, fold_in(seed)).tolist()
    assert sorted(partner) == list(range(batch_size))
    assert all(p != i for i, p in enumerate(partner))


def test_random_partners_reach_everyone():
    drawn = {tuple(random_partners(4, fold_in(seed)).tolist()) for seed in range(200)}
    assert len(drawn) == 6  # the cycles through four images
    assert random_partners(1, fold_in(0)).tolist() == [0]


def test_the_suitable_partner_with_the_largest_rank():
    generator = fold_in(0, "partners")
    suitable = torch.rand(50, 4, generator=generator) < 0.3
    rank, otherwise = torch.rand(50, 4, generator=generator), torch.randint(4, (50,), generator=generator)
    for row, partner in enumerate(chosen_partners(suitable, otherwise, rank).tolist()):
        candidates = [i for i in range(4) if suitable[row, i]]
        assert partner == max(candidates, key=lambda i: rank[row, i], default=otherwise[row])


# Which box.


@given(seeds, st.floats(0, 0.2), st.integers(1, 12), st.integers(1, 12))
def test_a_bounding_box_holds_all_members_and_touches_them(seed, share, height, width):
    member = torch.rand(3, height, width, generator=fold_in(seed)) < share
    for one, box in zip(member, bounding_boxes(member), strict=True):
        places = one.nonzero()
        if not len(places):
            assert not box.any()
            continue
        (top, left), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
        assert rectangle(box) == (top, left, bottom - top + 1, right - left + 1)


@pytest.mark.parametrize(("beta", "mean", "variance"), [((4, 4), 1 / 2, 1 / 36), ((8, 2), 0.8, 4 / 275)])
def test_the_uncovered_area_of_beta_boxes_is_beta_distributed(beta, mean, variance):
    """Mean a / (a + b), variance a b / ((a + b)^2 (a + b + 1))."""
    places = [rectangle(box) for box in sample_beta_boxes(3000, 100, 200, fold_in(2), beta)]
    uncovered = torch.tensor([1 - tall * wide / 20_000 for _, _, tall, wide in places])
    assert uncovered.mean().item() == pytest.approx(mean, abs=0.01)
    assert uncovered.var().item() == pytest.approx(variance, abs=0.0015)
    assert all(abs(wide - 2 * tall) <= 1.5 for _, _, tall, wide in places)  # proportions of the image
    assert min(place[0] for place in places) == 0
    assert max(top + tall for top, _, tall, _ in places) == 100
    assert len({place[:2] for place in places}) > 1000  # each has a place of its own


@samplers
@given(seed=seeds, batch_size=st.integers(1, 5), height=st.integers(1, 40), width=st.integers(1, 40))
def test_boxes_are_rectangles_no_larger_than_the_largest_side(sample, seed, batch_size, height, width):
    boxes = sample(batch_size, height, width, fold_in(seed))
    assert boxes.shape == (batch_size, height, width)
    assert boxes.dtype == torch.bool
    for box in boxes:
        _, _, tall, wide = rectangle(box)
        assert tall <= max(1, 0.9 * height + 0.5)
        assert wide <= max(1, 0.9 * width + 0.5)


@given(seed=seeds, height=st.integers(1, 40), width=st.integers(1, 40))
def test_boxes_have_sides_in_the_range(seed, height, width):
    for box in sample_boxes(4, height, width, fold_in(seed), (0.25, 0.5)):
        _, _, tall, wide = rectangle(box)
        for length, side in ((tall, height), (wide, width)):
            assert max(1, math.floor(0.25 * side)) <= length <= max(1, math.ceil(0.5 * side))


@pytest.mark.parametrize(("side", "extent"), [(0.5, (5, 10)), (0.1, (1, 2)), (1.0, (10, 20))])
def test_boxes_of_an_exact_extent(side, extent):
    places = [rectangle(box) for box in sample_boxes(300, 10, 20, fold_in(0), (side, side))]
    assert {place[2:] for place in places} == {extent}
    assert {place[0] for place in places} == set(range(10 - extent[0] + 1))  # everywhere inside
    assert {place[1] for place in places} == set(range(20 - extent[1] + 1))


def test_boxes_differ_within_a_batch_in_both_sides():
    places = [rectangle(box) for box in sample_boxes(400, 50, 50, fold_in(1))]
    sides = torch.tensor([place[2:] for place in places]) / 50
    assert sides.min() < 0.12
    assert sides.max() > 0.88
    assert sides.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)
    assert abs(torch.corrcoef(sides.T)[0, 1]) < 0.15  # height and width are drawn apart
    centers = torch.tensor([[place[0] + place[2] / 2, place[1] + place[3] / 2] for place in places]) / 50
    assert centers.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)


@given(seed=seeds, height=st.integers(1, 40), width=st.integers(1, 40))
def test_official_boxes_equal_a_slow_reference(seed, height, width):
    """D10: one side fraction for all, centers in [1/16, 1) of the image, clipped."""
    generator = fold_in(seed)
    fraction = torch.rand((), generator=generator) * 0.8 + 0.1
    position = torch.rand(2, 3, generator=generator) * (1 - 1 / 16) + 1 / 16
    boxes = sample_boxes_official(3, height, width, fold_in(seed))
    for i in range(3):
        cut_h, cut_w = int(fraction * height), int(fraction * width)
        cy, cx = int(position[0, i] * height), int(position[1, i] * width)
        expected = torch.zeros(height, width, dtype=torch.bool)
        for y in range(max(cy - cut_h // 2, 0), min(cy + cut_h // 2, height)):
            for x in range(max(cx - cut_w // 2, 0), min(cx + cut_w // 2, width)):
                expected[y, x] = True
        assert torch.equal(boxes[i], expected)


def test_official_boxes_share_their_side_and_are_clipped_at_every_border():
    places = [rectangle(box) for box in sample_boxes_official(400, 64, 32, fold_in(2), (0.5, 0.5))]
    for top, left, tall, wide in places:
        assert tall == 32 or (tall < 32 and (top == 0 or top + tall == 64))
        assert wide == 16 or (wide < 16 and (left == 0 or left + wide == 32))
    assert {tall for _, _, tall, _ in places} == set(range(17, 33))  # a center at the border leaves half a box
    assert min(left + wide / 2 for _, left, _, wide in places) >= 5  # center at 2, 6 of 10 columns cut off
    uncut = [
        (tall, wide)
        for top, left, tall, wide in map(rectangle, sample_boxes_official(300, 64, 32, fold_in(3)))
        if 0 < top < 64 - tall and 0 < left < 32 - wide
    ]
    assert len(uncut) > 3
    assert len(set(uncut)) == 1


def test_some_boxes_have_an_area_and_a_ratio_in_the_range():
    places = [rectangle(box) for box in sample_some_boxes(3000, 100, 200, fold_in(0))]
    some = [place for place in places if place[2]]
    assert len(some) / len(places) == pytest.approx(0.5, abs=0.03)
    tall, wide = torch.tensor([(place[2] / 100, place[3] / 200) for place in some]).unbind(1)
    area, ratio = tall * wide, tall / wide
    half = 0.5 / 100 * (tall + wide)  # sides are rounded
    assert (area > 0.02 - half).all()
    assert (area < 0.4 + half).all()
    assert area.mean().item() == pytest.approx(0.21, abs=0.01)  # uniform in area, not in the sides
    assert 0.26 < ratio.min() < 0.4
    assert 2.9 < ratio.max() < 3.7
    small = area < 0.15  # these fit with every ratio
    assert ratio[small].mean().item() == pytest.approx((0.3 + 1 / 0.3) / 2, abs=0.1)
    assert {place[0] for place in some} >= set(range(40))  # everywhere inside
    assert all(place[0] + place[2] <= 100 and place[1] + place[3] <= 200 for place in some)


@pytest.mark.parametrize("area", [0.25, 1.0])
def test_some_boxes_of_an_exact_area(area):
    boxes = sample_some_boxes(50, 40, 20, fold_in(1), probability=1.0, area=(area, area), ratio=(1.0, 1.0))
    assert {rectangle(box)[2:] for box in boxes} == {(40 * area**0.5, 20 * area**0.5)}
    assert not sample_some_boxes(50, 40, 20, fold_in(1), probability=0.0).any()
    largest = sample_some_boxes(300, 100, 100, fold_in(1), probability=1.0, area=(0.4, 0.4))  # not with every ratio
    assert largest.float().mean((1, 2)).sub(0.4).abs().max() < 0.01
    tall = sample_some_boxes(50, 40, 20, fold_in(1), probability=1.0, area=(0.25, 0.25), ratio=(4.0, 4.0))
    assert {rectangle(box)[2:] for box in tall} == {(40, 5)}  # fits exactly


@pytest.mark.parametrize("sample", [sample_boxes, sample_boxes_official, sample_some_boxes])
def test_boxes_depend_on_the_generator_alone(sample):
    assert torch.equal(sample(3, 20, 30, fold_in(7)), sample(3, 20, 30, fold_in(7)))
    assert not torch.equal(sample(3, 20, 30, fold_in(7)), sample(3, 20, 30, fold_in(8)))
    assert len({rectangle(box) for box in sample(8, 20, 30, fold_in(7))}) > 1


# The paste.


def test_paste_by_hand():
    """Every image takes from what its partner was before (Eq. 9 happens at once, not one after the other)."""
    base = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]])
    box = torch.tensor([[[True, False], [False, False]], [[True, True], [False, True]], [[False, True], [True, True]]])
    pasted = paste(base, base[[1, 0, 2]], box)
    assert pasted.tolist() == [[[5, 2], [3, 4]], [[1, 2], [7, 4]], [[9, 10], [11, 12]]]


@given(seeds)
def test_images_targets_and_masks_stay_aligned(seed):
    generator = fold_in(seed, "paste")
    label = torch.randint(7, (4, 9, 8), generator=generator)
    confidence, valid = label / 7, label > 2
    image = torch.stack([label.float(), confidence, valid.float()], 1)  # every channel tells what belongs to it
    partner, box = random_partners(4, generator), sample_boxes(4, 9, 8, generator)
    mixed = paste(image, image[partner], box)
    assert mixed.shape == image.shape
    assert not torch.equal(mixed, image)
    for channel, own in enumerate((label, confidence, valid)):
        assert paste(own, own[partner], box).dtype == own.dtype
        assert torch.equal(mixed[:, channel], paste(own, own[partner], box).float())
    for i in range(4):
        assert torch.equal(mixed[i][:, box[i]], image[partner[i]][:, box[i]])
        assert torch.equal(mixed[i][:, ~box[i]], image[i][:, ~box[i]])


def test_paste_of_oneself_or_of_nothing_changes_nothing():
    image = torch.randn(3, 3, 6, 6, generator=fold_in(0))
    boxes = sample_boxes(3, 6, 6, fold_in(1))
    assert torch.equal(paste(image, image, boxes), image)
    assert torch.equal(paste(image, image[[1, 2, 0]], torch.zeros_like(boxes)), image)
    assert torch.equal(paste(image, image[[1, 2, 0]], torch.ones_like(boxes)), image[[1, 2, 0]])


# When.


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_it_fires_as_often_as_it_should(probability):
    generator = fold_in(3, "often")
    fired = sum(int(triggered(probability, generator)) for _ in range(2000))
    assert fired / 2000 == pytest.approx(probability, abs=0.03)


def test_easy_batches_always_fire_and_hard_ones_never():
    for seed in range(200):
        assert triggered(torch.ones(5).mean(), fold_in(seed))
        assert not triggered(torch.zeros(5).mean(), fold_in(seed))


@given(seeds, st.floats(0, 1, width=32))
def test_it_fires_when_a_uniform_draw_exceeds_the_mean_hardness(seed, easiness):
    """The sentence after Eq. 10: U > mean hardness; U' = 1 - U is as uniform as U."""
    draw = torch.rand((), generator=fold_in(seed)).item()
    fired = triggered(torch.tensor(easiness), fold_in(seed))
    assert fired.shape == ()
    assert fired.dtype == torch.bool
    assert bool(fired) == (draw < easiness) == bool(triggered(easiness, fold_in(seed)))


def test_the_host_never_waits(no_host_sync):
    easiness, image = torch.rand(4, generator=fold_in(0)), torch.zeros(4, 3, 8, 8)
    partner = no_host_sync(hard_easy_partners, easiness)
    box = sample_boxes(4, 8, 8, fold_in(0))
    assert partner.is_meta
    assert no_host_sync(paste, image, image[partner], box).is_meta
    assert no_host_sync(paste, image[:, 0], image[partner, 0], box).is_meta
    assert no_host_sync(triggered, easiness.mean(), fold_in(0)).is_meta


# Several boxes of a given area.


@given(seeds, st.integers(1, 4), st.integers(20, 50), st.integers(20, 50))
def test_one_box_has_the_area_that_was_asked_for(seed, batch_size, height, width):
    for box in sample_boxes_of_area(batch_size, height, width, fold_in(seed), area=(0.5, 0.5), num_boxes=1):
        _, _, tall, wide = rectangle(box)
        # each side is rounded: at most half a pixel
        assert (tall - 0.5) * (wide - 0.5) <= 0.5 * height * width <= (tall + 0.5) * (wide + 0.5)


def test_several_boxes_share_the_area_and_cancel_where_two_overlap():
    """The boxes are found again: of 3 boxes in 100 images, some overlap."""
    generator, again = fold_in(0, "boxes"), fold_in(0, "boxes")
    mask = sample_boxes_of_area(100, 60, 80, generator)
    fraction = 0.25 + 0.25 * torch.rand(300, generator=again)
    aspect, position = torch.rand(300, generator=again), torch.rand(2, 300, generator=again)
    expected, areas = torch.zeros(100, 60, 80, dtype=torch.int), torch.zeros(100)
    for number in range(300):
        height = fraction[number] ** aspect[number]
        tall = int((height / 3**0.5 * 60).round())
        wide = int((fraction[number] / height / 3**0.5 * 80).round())
        top, left = int(position[0, number] * (61 - tall)), int(position[1, number] * (81 - wide))
        expected[number % 100, top : top + tall, left : left + wide] += 1
        areas[number % 100] += tall * wide / (60 * 80)
    assert torch.equal(mask, expected % 2 == 1)
    assert (expected == 2).any()
    assert ((areas > 0.24) & (areas < 0.51)).all()
    assert (mask.float().mean((1, 2)) <= areas + 1e-6).all()


def test_cutouts_have_their_centers_in_the_image():
    box = sample_cutouts(2000, 20, 30, fold_in(0, "cutout"), side=0.4)
    rows, columns = box.any(2).sum(1), box.any(1).sum(1)
    assert torch.equal(box.sum((1, 2)), rows * columns)  # rectangles
    assert rows.max() == columns.max() == 8  # 0.4 of the shorter side
    assert rows.min() == columns.min() == 4  # half of it at the border
    assert (box.float().mean(0) > 0).all()
    middle = box[:, 4:16, 4:26].float().mean()
    assert middle == pytest.approx(64 / 600, rel=0.1)
    assert not sample_cutouts(5, 20, 30, fold_in(0, "cutout"), side=0.0).any()
