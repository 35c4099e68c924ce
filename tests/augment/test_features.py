import pytest
import torch

from semiseg.augment.features import sample_channel_dropout, sample_complementary_dropout, scale_channels
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
