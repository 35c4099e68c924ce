import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.models.attended_cams import AttendedCams, Seen
from semiseg.models.build import Features
from semiseg.models.heads import has_batch_norm
from semiseg.rng import fold_in, seeded


@pytest.fixture
def cams(tiny) -> AttendedCams:
    with seeded(0, "cams"):
        return AttendedCams(tiny(norm=False), num_present=2, num_classes=3, channels=4)


def grad_cam(cams: AttendedCams, last: Tensor, counted: Tensor) -> Tensor:
    """Grad-CAM by its definition: channels weighted with the mean gradient of a class's logit, not below 0."""
    last = last.clone().requires_grad_()
    mean = (last * counted[:, None]).sum((2, 3)) / counted.sum((1, 2))[:, None]
    logits = cams.classifier(mean)
    maps = []
    for index in range(2):
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), last, retain_graph=True)
        places = counted.sum((1, 2))[:, None]
        weight = gradient.sum((2, 3)) / places
        maps.append(((weight[:, :, None, None] * last).sum(1) * counted).relu() * places[:, :, None])
    return torch.stack(maps, 1).detach()


def test_the_maps_are_those_of_grad_cam(cams):
    generator = fold_in(0, "maps")
    last = torch.randn(2, 8, 3, 5, generator=generator).relu()
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    valid[0, :, 4:] = False
    seen = cams.see(Features((last,), None, (3, 5)), valid, (3, 5))
    torch.testing.assert_close(seen.maps, grad_cam(cams, last, valid))
    assert (seen.maps > 0).any()
    mean = last[0, :, :, :4].mean((1, 2))
    torch.testing.assert_close(seen.presence[0], cams.classifier(mean))
    assert torch.equal(seen.valid, valid)


def test_attention_by_hand(cams):
    """Two places that are alike share what is seen in one of them; a third place is padding."""
    with torch.no_grad():
        for conv in (cams.key, cams.query):
            conv.weight.zero_()
            conv.weight[0, 0] = 2.0
        cams.score[0].weight.copy_(torch.eye(3)[:, :, None, None])
        cams.score[0].bias.zero_()
    similar = torch.zeros(1, 8, 1, 3)
    similar[0, 0] = torch.tensor([1.0, 0.0, 1.0])
    maps = torch.tensor([[[4.0, 1.0, 0.0]], [[3.0, 3.0, 3.0]]]).view(1, 2, 1, 3)
    seen = Seen(torch.zeros(1, 2), maps, similar, torch.tensor([[[True, True, False]]]))
    found = cams(seen, torch.tensor([[True, False]]))
    # the first class, over its largest value: 1, 0.25, 0; the second is not in the image
    # similarity of place 0 to 0: 2*2 / sqrt(4) = 2, to 1: 0; of place 1 to both: 0; no place looks at padding
    own = math.exp(2) / (math.exp(2) + 1)
    first = [own * 1 + (1 - own) * 0.25 + 1, (1 + 0.25) / 2 + 0.25]
    assert found[0, 1, 0, :2].tolist() == pytest.approx(first, rel=1e-5)
    assert found[0, 2, 0].tolist() == [0, 0, 0]
    assert found[0, 0, 0, :2].tolist() == pytest.approx([2 - value for value in first], rel=1e-5)
    # each class is over its own largest value: the second is 1 everywhere, so its score is 2, and the background's 0
    both = cams(seen, torch.tensor([[True, True]]))
    assert both[0, 1, 0, :2].tolist() == pytest.approx(first, rel=1e-5)
    assert both[0, 2, 0, :2].tolist() == pytest.approx([2, 2], rel=1e-5)
    assert both[0, 0, 0, :2].tolist() == pytest.approx([0, 0], abs=1e-5)


def test_the_attention_does_not_train_the_encoder_or_the_classifier(cams):
    cams.classifier.weight.data.abs_()  # each class is seen somewhere
    last = torch.rand(1, 8, 3, 3, requires_grad=True)
    seen = cams.see(Features((last,), None, (3, 3)), torch.ones(1, 3, 3, dtype=torch.bool), (3, 3))
    cams(seen, torch.tensor([[True, True]])).square().sum().backward()
    assert last.grad is None
    assert cams.classifier.weight.grad is None
    assert all(conv.weight.grad.abs().sum() > 0 for conv in (cams.key, cams.query, cams.score[0]))
    F.softplus(seen.presence).sum().backward()
    assert last.grad.abs().sum() > 0
    assert cams.classifier.weight.grad.abs().sum() > 0


def test_two_maps_of_the_encoder_are_compared(tiny):
    network = tiny(norm=True)
    encode = network.net.encoder.forward
    network.net.encoder.forward = lambda image: [F.max_pool2d(encode(image)[0], 2, 1, 1), *encode(image)]
    cams = AttendedCams(network, 1, 2, 4)
    assert has_batch_norm(cams)
    assert cams.key.weight.shape == (4, 16, 1, 1)
    assert not has_batch_norm(AttendedCams(tiny(norm=False), 1, 2, 4))


def test_an_image_without_valid_pixels_or_classes_gives_numbers(cams):
    last = torch.rand(1, 8, 2, 2)
    seen = cams.see(Features((last,), None, (2, 2)), torch.zeros(1, 2, 2, dtype=torch.bool), (2, 2))
    assert torch.isfinite(cams(seen, torch.tensor([[False, False]]))).all()
    assert torch.equal(seen.presence[0], cams.classifier.bias)
