"""Measures of an image, by hand."""

import math

import pytest
import torch

from semiseg.rank.measures import alike, centered, closeness, entropy, presence


def test_entropy_of_two_pixels():
    """Three classes. The first pixel is uniform (entropy log 3), the second is sure (0): the mean is a half."""
    probability = torch.tensor([[1 / 3, 1.0], [1 / 3, 0.0], [1 / 3, 0.0]]).view(1, 3, 1, 2)
    assert entropy(probability).tolist() == pytest.approx([0.5])
    half = torch.tensor([0.5, 0.5, 0.0]).view(1, 3, 1, 1)
    assert entropy(half).tolist() == pytest.approx([math.log(2) / math.log(3)])


def test_closeness_of_two_images():
    """Margins 0.5 and 0.1 in the first image, mean 0.3; 0.8 in the second."""
    first = torch.tensor([[0.6, 0.1, 0.3], [0.45, 0.35, 0.2]]).T.reshape(1, 3, 1, 2)
    first[0, :, 0, 0] = torch.tensor([0.7, 0.2, 0.1])
    second = torch.tensor([0.1, 0.9, 0.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    assert closeness(torch.cat([first, second])).tolist() == pytest.approx([1 - 0.3, 1 - 0.8])


def test_presence_is_the_mean_over_the_likeliest_pixels():
    """400 pixels: 0.5 % are two. Class 1 is at 0.9 and 0.7 there; a single pixel of class 2 counts by half."""
    probability = torch.zeros(1, 3, 20, 20)
    probability[0, 1, 0, 0], probability[0, 1, 5, 5], probability[0, 1, 9, 9] = 0.9, 0.7, 0.6
    probability[0, 2, 3, 3] = 1.0
    assert presence(probability)[0].tolist() == pytest.approx([0.0, 0.8, 0.5])
    assert presence(probability[:, :, :2, :2])[0, 1].item() == pytest.approx(0.9)  # one pixel at least


def test_alike_compares_directions_after_the_mean_was_taken_off():
    features = centered(torch.tensor([[12.0, 0.0], [14.0, 0.2], [8.0, 1.0], [6.0, -1.2]]))  # mean (10, 0)
    assert features[0].tolist() == [2.0, 0.0]
    assert alike(features, 0, 0.97).tolist() == [True, True, False, False]
    assert alike(features, 2, 0.97).tolist() == [False, False, True, False]  # cosine of (-2, 1) and (-4, -1.2): 0.73
