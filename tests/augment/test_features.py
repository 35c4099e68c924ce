import pytest
import torch

from semiseg.augment.features import (
    cuts,
    drop_most_active,
    sample_channel_dropout,
    sample_complementary_dropout,
    sample_noise,
    sample_positions,
    scale_channels,
)
from semiseg.rng import fold_in


def test_channels_are_dropped_whole_and_the_mean_stays():
    factor = sample_channel_dropout(fold_in(0), 40, 100, probability=0.2)
    assert set(factor.flatten().tolist()) == {0.0, 1.25}
    assert abs(factor.mean() - 1) < 0.03
    assert len({tuple(row) for row in factor.tolist()}) == 40  # other channels in each image
    value = torch.rand(40, 100, 2, 3, generator=fold_in(1)).to(torch.bfloat16)
    scaled = scale_channels(value, factor)
    assert scaled.dtype == torch.bfloat16
    for image, channel in ((0, 0), (0, 1), (7, 99)):
        assert torch.equal(scaled[image, channel], value[image, channel] * factor[image, channel].item())


@pytest.mark.parametrize(("whole", "number"), [(0.0, 0), (0.5, 20), (0.99, 40)])
def test_a_channel_that_one_view_loses_is_doubled_in_the_other(whole, number):
    first, second = sample_complementary_dropout(fold_in(0), 41, 100, whole)  # half of 41 is rounded down
    assert torch.equal(first + second, torch.full((41, 100), 2.0))
    keeps = (first == 1).all(1)
    assert keeps.sum() == number
    dropped = first[~keeps]
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean() - 1) < (0.3 if number == 40 else 0.1)
    assert len({tuple(row) for row in dropped.tolist()}) == 41 - number  # other channels in each image
    again = sample_complementary_dropout(fold_in(1), 41, 100, whole)[0]
    assert whole != 0.5 or not torch.equal((again == 1).all(1), keeps)  # other images in each step


def test_the_host_never_waits(no_host_sync):
    factor = sample_channel_dropout(fold_in(0), 2, 3)
    assert no_host_sync(lambda value: scale_channels(value, factor), torch.ones(2, 3, 4, 4)).is_meta


def test_noise_multiplies_each_value_by_a_factor_near_one():
    factor = sample_noise(fold_in(0), (50, 8, 8), amplitude=0.25)
    assert factor.shape == (50, 8, 8)
    assert factor.min() >= 0.75
    assert factor.max() < 1.25
    assert abs(factor.mean() - 1) < 0.01
    assert factor.std() == pytest.approx(0.5 / 12**0.5, rel=0.05)


def test_the_most_active_places_are_dropped():
    """Activities 1, 4, 8 and 10 of the first image, 5, 2, 3 and 9 of the second; the last place does not count."""
    first, second = torch.tensor([[1.0, 4, 8, 10], [5, 2, 3, 9]])
    value = torch.stack([torch.stack([2 * row - 3, torch.full((4,), 3.0)]) for row in (first, second)])[:, :, None]
    counted = torch.tensor([[[True, True, True, False]]] * 2)
    dropped = drop_most_active(value, counted, torch.tensor([0.75, 0.4]))  # thresholds 6 and 2
    assert dropped[0, 1, 0].tolist() == [3, 3, 0, 0]
    assert dropped[0, 0, 0].tolist() == [-1, 5, 0, 0]
    assert dropped[1, 1, 0].tolist() == [0, 0, 0, 0]
    assert drop_most_active(value, counted, torch.tensor([0.75, 0.61]))[1, 1, 0].tolist() == [0, 3, 3, 0]
    whole = drop_most_active(value, torch.ones_like(counted), torch.tensor([0.75, 0.4]))  # thresholds 7.5 and 3.6
    assert whole[:, 1, 0].tolist() == [[3, 3, 0, 0], [0, 3, 3, 0]]


def slow_cut(member: list[list[bool]], position: list[float], side: float) -> list[list[bool]]:
    height, width = len(member), len(member[0])
    inside = [[True] * width for _ in range(height)]
    places = [(y, x) for y in range(height) for x in range(width) if member[y][x]]
    if not places:
        return [[False] * width for _ in range(height)]
    for axis in (0, 1):
        first, last = min(place[axis] for place in places), max(place[axis] for place in places) + 1
        extent = last - first
        start = first + position[axis] * (extent - side * extent)
        for y in range(height):
            for x in range(width):
                inside[y][x] &= start <= (y, x)[axis] + 0.5 < start + side * extent
    return inside


def test_a_part_of_the_box_of_each_class_is_cut():
    generator = fold_in(0, "members")
    member = torch.rand(6, 3, 9, 12, generator=generator) < torch.tensor([0.0, 0.02, 0.3])[:, None, None]
    position = sample_positions(generator, 6, 3)
    assert 0 <= position.min() < 0.2
    assert 0.8 < position.max() < 1
    for side in (0.4, 0.75):
        found = cuts(member, position, side)
        for image in range(6):
            each = [slow_cut(member[image, c].tolist(), position[image, c].tolist(), side) for c in range(3)]
            assert torch.equal(found[image], torch.tensor(each).any(0))
        assert 0 < found.float().mean() < side**2 + 0.1
    every = cuts(torch.ones(1, 1, 10, 20, dtype=torch.bool), torch.tensor([[[0.5, 1.0]]]), side=0.4)
    assert every.nonzero()[:, 1].unique().tolist() == [3, 4, 5, 6]
    assert every.nonzero()[:, 2].unique().tolist() == list(range(12, 20))
