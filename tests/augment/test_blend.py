import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semiseg.augment.blend import blend
from semiseg.rng import fold_in

WEAK = torch.randn(4, 3, 5, 6, generator=fold_in(0, "weak"))
STRONG = torch.randn(4, 3, 5, 6, generator=fold_in(0, "strong"))


def test_the_easiest_image_is_strong_and_the_hardest_is_weak():
    blended = blend(WEAK, STRONG, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert torch.equal(blended[::2], WEAK[::2])
    assert torch.equal(blended[1::2], STRONG[1::2])


def test_by_hand():
    weak, strong = torch.zeros(3, 1, 1, 2), torch.tensor([8.0, -4.0]).expand(3, 1, 1, 2)
    blended = blend(weak, strong, torch.tensor([0.25, 0.5, 0.75]))
    assert blended[:, 0, 0].tolist() == [[2.0, -1.0], [4.0, -2.0], [6.0, -3.0]]


@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_hard_images_are_perturbed_less(easiness):
    """The distance from the weak view is the easiness times that of the strong one (Eq. 8, as its prose has it)."""
    blended = blend(WEAK, STRONG, torch.tensor(easiness))
    moved = (blended - WEAK).flatten(1).norm(dim=1) / (STRONG - WEAK).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.tensor(easiness), atol=1e-6, rtol=1e-5)
    left = (blended - STRONG).flatten(1).norm(dim=1) / (STRONG - WEAK).flatten(1).norm(dim=1)
    torch.testing.assert_close(left, 1 - torch.tensor(easiness), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_precision_is_that_of_the_images(dtype):
    easiness = torch.tensor([0.0, 0.25, 0.5, 1.0])
    blended = blend(WEAK.to(dtype), STRONG.to(dtype), easiness)
    assert blended.dtype == dtype
    torch.testing.assert_close(blended.float(), blend(WEAK, STRONG, easiness), atol=0.05, rtol=0.02)


def test_the_host_never_waits(no_host_sync):
    assert no_host_sync(blend, WEAK, STRONG, torch.rand(4, generator=fold_in(0))).is_meta
