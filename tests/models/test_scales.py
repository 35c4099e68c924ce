import pytest
import torch
from torch import nn

from semiseg.models.build import Features, Network, Undivided
from semiseg.models.scales import ScaleAttention, fuse, rescale_features
from semiseg.types import Normalization


def network(stride: int) -> Network:
    return Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), stride)


def test_the_values_of_a_rescaled_map():
    """Of a map of 4: at half size centers are at 0.5 and 2.5, at 1.25 times the size at -0.1, 0.7, 1.5, 2.3 and 3.1."""
    features = Features((torch.arange(4.0).expand(1, 1, 4, 4),), None, (4, 4))
    small, large = (rescale_features(network(1), features, scale) for scale in (0.5, 1.25))
    assert small.maps[0][0, 0, 0].tolist() == pytest.approx([0.5, 2.5])
    assert large.maps[0][0, 0, 0].tolist() == pytest.approx([0, 0.7, 1.5, 2.3, 3])
    assert (small.size, large.size) == ((2, 2), (5, 5))


def test_maps_of_all_scales_fit_together_and_the_network_takes_their_size():
    """An image of 22 x 30 px, padded to 24 x 32: at 3/4 it would be 18 x 24, which is padded to 20 x 24."""
    maps = tuple(torch.rand(2, 3, 24 // stride, 32 // stride) for stride in (1, 2, 4))
    rescaled = rescale_features(network(4), Features(maps, None, (22, 30)), 0.75)
    assert rescaled.size == (20, 24)
    assert [tuple(value.shape[-2:]) for value in rescaled.maps] == [(20, 24), (10, 12), (5, 6)]


def test_what_is_no_map_stays():
    rest = [torch.rand(2, 5)]
    features = Features((torch.rand(2, 3, 4, 4),), rest, (4, 4))
    assert rescale_features(network(1), features, 0.5).rest is rest


def test_scores_of_two_scales_are_weights():
    logits, other = torch.tensor([0.0, 4.0]).view(1, 2, 1, 1), torch.tensor([8.0, 0.0]).view(1, 2, 1, 1)
    one = torch.zeros(1, 1, 1, 1)
    for difference, wanted in ((0.0, [4, 2]), (1.0986123, [6, 1]), (-1.0986123, [2, 3])):  # log 3
        assert fuse(logits, other, one + 5, one + 5 + difference).flatten().tolist() == pytest.approx(wanted)


def test_a_score_is_that_of_its_pixel(tiny):
    attention = ScaleAttention(tiny(0), 4)
    decoded = torch.randn(1, 8, 3, 3)
    changed = decoded.clone()
    changed[..., 1, 1] += 1
    differs = (attention(changed) != attention(decoded))[0, 0]
    assert differs.sum() == 1
    assert differs[1, 1]
