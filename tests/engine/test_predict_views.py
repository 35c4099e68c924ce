"""Flips and scales: the mean of the probabilities."""

import pytest
import torch
from torch import Tensor

from semiseg.engine.predict_files.views import mean_of_views


@pytest.fixture
def places(color_model):
    """places() -> class 1 has the probability red / 200, or with of_place=True one that rises to the right."""

    class Places(color_model):
        def __init__(self, of_place: bool = False) -> None:
            super().__init__()
            self.of_place = of_place

        def probabilities(self, image: Tensor) -> Tensor:
            self.seen.append(tuple(image.shape))
            one = image[:, :1].float() / 200
            if self.of_place:
                one = torch.linspace(0, 0.5, image.shape[-1]).expand_as(one)
            return torch.cat([1 - one, one], 1)

    return Places


IMAGE = torch.tensor([0, 50, 100], dtype=torch.uint8).expand(3, 2, 3)


def test_one_view_is_the_model_alone(places):
    model = places()
    assert mean_of_views(model, IMAGE)[0, 1].tolist() == [[0, 0.25, 0.5]] * 2
    assert model.seen == [(1, 3, 2, 3)]


def test_mirrored(places):
    """What depends on the pixel is the same in both views; what depends on the place is the mean of both sides."""
    assert mean_of_views(places(), IMAGE, flip=True)[0, 1].tolist() == [[0, 0.25, 0.5]] * 2
    assert mean_of_views(places(of_place=True), IMAGE, flip=True)[0, 1].tolist() == [[0.25, 0.25, 0.25]] * 2


def test_scales(places):
    """At twice the size 6 values from 0 to 0.5 in steps of 0.1: back at 3 pixels they are 0.05, 0.25, 0.45."""
    model = places(of_place=True)
    found = mean_of_views(model, IMAGE, scales=(1.0, 2.0))[0, 1, 0]
    assert model.seen == [(1, 3, 2, 3), (1, 3, 4, 6)]
    torch.testing.assert_close(found, torch.tensor([0.025, 0.25, 0.475]))
    model.seen.clear()
    mean_of_views(model, IMAGE, True, (0.1, 1.5))
    assert model.seen == [(1, 3, 1, 1)] * 2 + [(1, 3, 3, 4)] * 2
