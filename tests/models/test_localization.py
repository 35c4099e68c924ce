import pytest
import torch
import torch.nn.functional as F

from semiseg.models.localization import is_right, localization_loss, seen_by_localizer
from semiseg.rng import fold_in
from semiseg.types import IGNORE

LOGITS = 2 * torch.randn(2, 3, 4, 5, generator=fold_in(0, "logits"))
LABEL = torch.randint(3, (2, 4, 5), generator=fold_in(0, "label"))


def test_a_localizer_sees_image_entropy_and_logits():
    image, logits = torch.rand(2, 3, 4, 5, generator=fold_in(1)), LOGITS.clone().requires_grad_()
    seen = seen_by_localizer(image, logits)
    assert torch.equal(seen[:, :3], image)
    assert torch.equal(seen[:, 4:], LOGITS)
    entropy = torch.distributions.Categorical(logits=LOGITS.movedim(1, -1)).entropy()
    torch.testing.assert_close(seen[:, 3], entropy)
    assert not seen.requires_grad


def test_wrong_pixels_weigh_as_much_as_right_ones():
    label = LABEL.clone()
    label[0, 0] = IGNORE
    label[1] = LOGITS[1].argmax(0)  # all are right
    found, right = torch.randn(2, 4, 5, generator=fold_in(2)), is_right(LOGITS, label)
    loss = localization_loss(found, right, label)
    counted = label[0] != IGNORE
    each = F.binary_cross_entropy_with_logits(found[0], (LOGITS[0].argmax(0) == label[0]).float(), reduction="none")
    of_right, of_wrong = (each[counted & mask] for mask in (right[0], ~right[0]))
    assert len(of_right) > 1
    assert len(of_wrong) > len(of_right)
    assert loss[0].item() == pytest.approx((len(of_right) * (of_right.mean() + of_wrong.mean())).item(), rel=1e-5)
    whole = F.binary_cross_entropy_with_logits(found[1], torch.ones(4, 5), reduction="sum")
    assert loss[1].item() == pytest.approx(whole.item(), rel=1e-5)
    nothing = localization_loss(found, right, torch.full_like(label, IGNORE))
    assert torch.equal(nothing, torch.zeros(2))
