import pytest
import torch
from torch import nn

from semiseg.models.build import Network, Undivided
from semiseg.models.frames import cells, to_image, to_map
from semiseg.types import Normalization

NETWORK = Network(Undivided(nn.Conv2d(3, 3, 1)), Normalization(), stride=4)  # pads 6 px to 8 px
SIZE = (2, 6)


def test_a_map_shows_the_padded_image():
    """Two cells of 4 px: their centers are at 1.5 and 5.5 px, and between them the value rises by 1/4 a pixel."""
    value = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    shown = to_image(NETWORK, value, SIZE)
    assert shown.shape == (1, 1, 2, 6)
    assert shown[0, 0, 1].tolist() == pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875])
    assert to_image(NETWORK, value.bfloat16(), SIZE).dtype == torch.float32


def test_an_image_is_padded_before_it_is_resized():
    image = torch.arange(1.0, 7.0).expand(1, 1, 4, 6)  # two more columns of 0 follow
    assert to_map(NETWORK, image, (2, 4))[0, 0, 0].tolist() == [1.5, 3.5, 5.5, 0]


def test_a_cell_counts_if_one_of_its_pixels_does():
    member = torch.zeros(1, 4, 6, dtype=torch.bool)
    member[0, 3, 5] = True
    assert cells(NETWORK, member, (2, 4))[0].tolist() == [[False] * 4, [False, False, True, False]]
