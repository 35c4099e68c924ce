import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.augment.adversarial import adversarial_noise, sample_direction
from semiseg.rng import fold_in, seeded


def decoder() -> nn.Sequential:
    """Mixes channels and neighbors, and is not linear."""
    with seeded(0, "decoder"):
        return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 1)).eval()


VALUE = torch.randn(2, 2, 4, 5, generator=fold_in(0, "value"))
START = sample_direction(fold_in(0, "start"), (2, 4, 5))
EVERYWHERE = torch.ones(2, 4, 5, dtype=torch.bool)


def divergence(decode: nn.Module, value: Tensor, noise: Tensor, counted: Tensor) -> Tensor:
    """KL of the prediction with noise from the one without, each image."""
    before, after = decode(value).log_softmax(1).detach(), decode(value + noise).log_softmax(1)
    return ((before.exp() * (before - after)).sum(1) * counted).sum((1, 2))


def test_the_noise_is_one_step_of_the_power_method():
    """The gradient of the divergence at a small distance has the same direction, where precision allows it."""
    decode, counted = decoder().double(), EVERYWHERE.clone()
    counted[0, 1:, :3] = False
    small = (1e-6 * START).double().expand(2, 2, 4, 5).clone().requires_grad_()
    divergence(decode, VALUE.double(), small, counted).sum().backward()
    length = small.grad.flatten(1).norm(dim=1)[:, None, None, None]
    noise = adversarial_noise(decoder(), VALUE, START, 2.5, counted)
    torch.testing.assert_close(noise, (2.5 * small.grad / length).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((2,), 2.5))


def test_the_noise_changes_predictions_more_than_other_noise():
    decode = decoder()
    noise = adversarial_noise(decode, VALUE, START, 0.1, EVERYWHERE)
    change = divergence(decode, VALUE, noise, EVERYWHERE)
    for number in range(20):
        other = torch.randn(VALUE.shape, generator=fold_in(0, "other", number))
        other = 0.1 * other / other.flatten(1).norm(dim=1)[:, None, None, None]
        assert (divergence(decode, VALUE, other, EVERYWHERE) < change).all()


def test_images_do_not_influence_each_other_and_places_that_do_not_count_nothing():
    decode = nn.Conv2d(2, 3, 1)
    counted = EVERYWHERE.clone()
    counted[1, :, 3:] = False
    both = adversarial_noise(decode, VALUE, START, 1.0, counted)
    torch.testing.assert_close(adversarial_noise(decode, VALUE[1:], START, 1.0, counted[1:]), both[1:])
    assert (both[1, :, :, 3:] == 0).all()
    none = adversarial_noise(decode, VALUE, START, 1.0, torch.zeros_like(EVERYWHERE))
    assert torch.equal(none, torch.zeros_like(VALUE))


def test_no_gradient_reaches_weights_or_features():
    decode, value = decoder(), VALUE.clone().requires_grad_()
    with torch.no_grad():
        quiet = adversarial_noise(decode, VALUE, START, 1.0, EVERYWHERE)
    noise = adversarial_noise(decode, value, START, 1.0, EVERYWHERE)
    assert torch.equal(noise, quiet)
    assert not noise.requires_grad
    assert value.grad is None
    assert all(parameter.grad is None for parameter in decode.parameters())
    frozen = decoder().requires_grad_(False)
    assert torch.equal(adversarial_noise(frozen, VALUE, START, 1.0, EVERYWHERE), quiet)


def test_low_precision():
    exact = adversarial_noise(decoder(), VALUE, START, 1.0, EVERYWHERE)
    with torch.autocast("cpu", torch.bfloat16):
        noise = adversarial_noise(decoder(), VALUE.bfloat16(), START, 1.0, EVERYWHERE)
    assert noise.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(noise.float().flatten(1), exact.flatten(1)).min() > 0.98


def test_the_start_is_balanced():
    start = sample_direction(fold_in(0), (30, 10, 10))
    assert start.shape == (30, 10, 10)
    assert abs(start.mean()) < 0.02
    assert -0.5 <= start.min() < -0.49


def test_depthwise_convolutions_give_the_same_noise_without_a_loop_over_their_groups():
    """With strides that leave a column over, dilations, a bias, and no padding."""
    with seeded(0, "depthwise"):
        decode = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Softplus(),
            nn.Conv2d(8, 8, 3, dilation=2, groups=8, bias=False), nn.Softplus(),
            nn.Conv2d(8, 16, (2, 3), stride=2, groups=4), nn.Softplus(),
            nn.Conv2d(16, 3, 1),
        ).double()  # fmt: skip
    value = torch.randn(2, 8, 9, 12, generator=fold_in(0, "value"), dtype=torch.float64)
    start, counted = torch.rand(8, 9, 12, dtype=torch.float64), torch.ones(2, 2, 3, dtype=torch.bool)
    calls = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Counting():
        noise = adversarial_noise(decode, value, start, 1.0, counted)
    assert sum("convolution" in name for name in calls) < 20
    shown = decode.requires_grad_(False)
    point = value.clone().requires_grad_()
    probability = shown(value).softmax(1)
    _, change = torch.autograd.functional.jvp(shown, value, start.expand_as(value).contiguous())
    pushed = probability * (change - (probability * change).sum(1, keepdim=True))
    (found,) = torch.autograd.grad(shown(point), point, pushed)
    torch.testing.assert_close(noise, found / found.flatten(1).norm(dim=1)[:, None, None, None])
