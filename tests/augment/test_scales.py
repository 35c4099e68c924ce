import pytest
import torch

from semiseg.augment.scales import rescale, resize, sample_scale, seen_alone
from semiseg.rng import fold_in


def row(*values: float) -> torch.Tensor:
    """An image of one channel whose two rows are these values."""
    return torch.tensor(values, dtype=torch.float32).expand(1, 1, 2, len(values))


def test_a_smaller_image_is_a_weighted_mean():
    """At half size a new pixel weighs px at the distances 0.5, 0.5, 1.5, 1.5 with 3/4, 3/4, 1/4, 1/4."""
    first = (0 * 0.75 + 1 * 0.75 + 2 * 0.25) / 1.75  # nothing lies on the left of the image
    assert rescale(row(0, 1, 2, 3), 0.5)[0, 0].tolist() == [pytest.approx([first, 3 - first])]


def test_a_larger_image_is_interpolated():
    """At 1.5 times the size the centers of new pixels are at -1/6, 1/2, 7/6, 11/6 ... of the old ones."""
    assert rescale(row(0, 6), 1.5)[0, 0, 0].tolist() == pytest.approx([0, 3, 6])
    assert rescale(row(0, 6, 12, 18), 1.5)[0, 0, 0].tolist() == pytest.approx([0, 3, 7, 11, 15, 18])


def test_sizes_are_rounded_and_not_zero():
    assert rescale(torch.rand(1, 3, 10, 3), 0.25).shape == (1, 3, 2, 1)
    assert rescale(torch.rand(1, 3, 1, 1), 0.1).shape == (1, 3, 1, 1)


def test_a_map_is_resized_back():
    assert resize(row(0, 4), (2, 4))[0, 0, 0].tolist() == [0, 1, 3, 4]


def test_pixels_that_others_contribute_to():
    """At half size px 0 and 1 contribute to the first two of four pixels, and these to px 0 to 4."""
    member = torch.ones(1, 2, 8, dtype=torch.bool)
    member[..., :2] = False
    assert seen_alone(member, 0.5)[0, 0].tolist() == [False] * 5 + [True] * 3
    assert seen_alone(torch.ones_like(member), 0.5).all()


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5, 2.0])
def test_what_is_seen_alone_does_not_depend_on_others(scale):
    generator = fold_in(0, "members")
    member = torch.rand(1, 24, 24, generator=generator) > 0.01
    one, other = torch.rand(2, 1, 1, 24, 24, generator=generator)
    other = torch.where(member, one, other)
    one, other = (resize(rescale(image, scale), (24, 24))[0, 0] for image in (one, other))
    alone = seen_alone(member, scale)[0]
    assert alone.any()
    assert torch.equal(one[alone], other[alone])
    assert not torch.allclose(one[~alone], other[~alone])


def test_every_scale_is_drawn():
    drawn = [sample_scale(fold_in(0, "scale", step), (0.25, 0.5, 2.0)) for step in range(900)]
    assert set(drawn) == {0.25, 0.5, 2.0}
    assert all(abs(drawn.count(scale) / 900 - 1 / 3) < 0.06 for scale in set(drawn))
