import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semiseg.models import flaws as flaws_module
from semiseg.models.flaws import FlawDetector, IBNorm, clear_flaws, true_flaws
from semiseg.rng import fold_in, seeded
from semiseg.types import IGNORE

seeds = st.integers(0, 1000)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=fold_in(seed, "noise", *size))


def slow_blur(image: Tensor, counted: Tensor, size: int) -> Tensor:
    """A mean of the counted pixels around each pixel, in double precision, with a mirror at the border."""
    size = size if size % 2 else size + 1
    radius, sigma = size // 2, 0.3 * ((size - 1) / 2 - 1) + 0.8
    height, width = image.shape
    image, counted = image.tolist(), counted.tolist()
    result = torch.zeros(height, width, dtype=torch.float64)
    near = [(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)]
    weight = {(y, x): math.exp(-(y * y + x * x) / (2 * sigma**2)) for y, x in near}
    for row in range(height):
        for column in range(width):
            total = 0.0
            for y, x in near:
                r, c = abs(row + y), abs(column + x)
                r, c = min(r, 2 * (height - 1) - r), min(c, 2 * (width - 1) - c)
                if counted[r][c]:
                    result[row, column] += weight[y, x] * image[r][c]
                    total += weight[y, x]
            result[row, column] /= total or 1
    return result


def slow_true_flaws(probability: Tensor, label: Tensor, mu: float, dilations: int) -> Tensor:
    """The authors' way: the sum over classes of |one-hot - probability|, times mu."""
    counted = label != IGNORE
    one_hot = torch.stack([label == c for c in range(len(probability))]).double()
    flaws = (one_hot - probability.double()).abs().sum(0) * mu
    height, width = label.shape
    flaws = slow_blur(flaws, counted, min(height, width) // 8)
    for _ in range(dilations):
        wide = [
            [flaws[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() for x in range(width)] for y in range(height)
        ]
        flaws = slow_blur(torch.tensor(wide), counted, min(height, width) // 4)
    low, high = flaws[counted].min(), flaws[counted].max()
    return (flaws - low) / (high - low)


@pytest.mark.parametrize("dilations", [0, 1, 2])
def test_true_flaws_equal_a_slow_reference(dilations):
    """Whatever mu is: flaws are stretched to [0, 1]."""
    probability = (2 * noise(2, 3, 16, 18)).softmax(1)
    label = torch.randint(3, (2, 16, 18), generator=fold_in(0, "label"))
    label[0, :, 12:] = IGNORE
    found = true_flaws(probability, label, dilations)
    for image in range(2):
        for mu in (0.5, 0.1):
            expected = slow_true_flaws(probability[image], label[image], mu, dilations)
            torch.testing.assert_close(found[image].double(), expected, rtol=1e-4, atol=1e-5)
    assert found[label != IGNORE].aminmax() == (0, pytest.approx(1))


def test_flaws_are_where_the_prediction_is_wrong():
    label = torch.zeros(1, 32, 32, dtype=torch.long)
    probability = torch.tensor([0.9, 0.1])[None, :, None, None].repeat(1, 1, 32, 32)
    probability[:, :, 8:14, 20:26] = torch.tensor([0.1, 0.9])[None, :, None, None]
    flaws = true_flaws(probability, label)
    peak = divmod(flaws.argmax().item(), 32)
    assert 8 <= peak[0] < 14
    assert 20 <= peak[1] < 26
    assert flaws[0, 24:, :12].max() == 0


def test_clear_flaws_by_hand():
    """32 px: the blur has three pixels, with a sigma of 0.8."""
    flaws, counted = torch.full((3, 32, 32), -5.0), torch.ones(3, 32, 32, dtype=torch.bool)
    flaws[0, 10, 10] = 3.0
    flaws[1, 10, 10] = 0.3  # after the blur less than 0.1
    flaws[2, 10, 10], flaws[2, 20, 20], counted[2, 20, 20] = 3.0, 100.0, False
    found = clear_flaws(flaws, counted)
    beside = math.exp(-1 / (2 * 0.8**2))
    assert found[0, 10, 9:12].tolist() == pytest.approx([beside, 1, beside], rel=1e-5)
    assert found[0, 11, 11].item() == pytest.approx(beside**2, rel=1e-5)
    assert found[0, 0, 0] == 0
    assert (found[1] == 0).all()
    assert torch.equal(found[2], found[0])


@given(seeds)
def test_clear_flaws_are_comparable(seed):
    flaws = noise(2, 16, 16, seed=seed)
    counted = torch.rand(2, 16, 16, generator=fold_in(seed, "counted")) < 0.7
    found = clear_flaws(flaws, counted)
    assert found[counted].aminmax() == (0, pytest.approx(1))
    changed = clear_flaws(torch.where(counted, flaws, 9.0), counted)
    torch.testing.assert_close(found, changed)
    torch.testing.assert_close(clear_flaws(10 * flaws, counted), found)  # their scale does not matter


def test_images_without_any_counted_pixel_have_finite_flaws():
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert clear_flaws(noise(1, 16, 16), nothing).isfinite().all()
    label = torch.full((1, 16, 16), IGNORE)
    assert true_flaws(noise(1, 3, 16, 16).softmax(1), label).isfinite().all()


def test_flaws_are_exact_in_low_precision():
    flaws, counted = noise(1, 40, 40), torch.ones(1, 40, 40, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = clear_flaws(flaws, counted)
    assert torch.equal(found, clear_flaws(flaws, counted))


def test_half_of_the_channels_has_batch_norm_and_half_instance_norm():
    value = 3 + 2 * noise(4, 5, 6, 6)
    found = IBNorm(5)(value)
    batch, instance = found[:, :3], found[:, 3:]
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(instance.mean((2, 3)), torch.zeros(4, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(instance.var((2, 3), correction=0), torch.ones(4, 2), atol=1e-3, rtol=0)
    assert batch.mean((2, 3)).abs().max() > 0.05
    assert len(list(IBNorm(5).parameters())) == 2  # those of batch norm
    assert not IBNorm(5).state_dict().keys() - {"batch.weight", "batch.bias"}


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (33, 70), (64, 48)])
def test_a_detector_takes_images_of_any_size(size):
    with seeded(0):
        detector = FlawDetector(3, channels=2)
    assert detector(noise(2, 3, *size), noise(2, 3, *size).softmax(1)).shape == (2, *size)


def test_the_layers_of_the_authors():
    with seeded(0):
        layers = [layer for layer in FlawDetector(21, channels=64).layers if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.in_channels for layer in layers] == [24, 64, 128, 128, 256, 256, 512, 512]
    assert [layer.out_channels for layer in layers] == [64, 128, 128, 256, 256, 512, 512, 1]
    assert [layer.stride[0] for layer in layers] == [2, 2, 1, 2, 1, 2, 1, 2]
    assert {layer.kernel_size for layer in layers} == {(4, 4)}


def test_the_host_never_waits(no_host_sync):
    probability, label = noise(2, 3, 16, 16).softmax(1), torch.zeros(2, 16, 16, dtype=torch.long)
    assert no_host_sync(true_flaws, probability, label).is_meta
    assert no_host_sync(clear_flaws, noise(2, 16, 16), label == 0).is_meta


def test_a_detector_learns_where_a_prediction_is_wrong():
    """Of two classes, the prediction is wrong where it disagrees with the color of the image."""
    with seeded(0):
        detector = FlawDetector(2, channels=4)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0)
    errors = []
    for step in range(30):
        generator = fold_in(step, "learn")
        label = (torch.rand(4, 1, 2, 2, generator=generator) < 0.5).float()
        label = torch.nn.functional.interpolate(label, (32, 32))[:, 0].long()
        wrong = torch.nn.functional.interpolate((torch.rand(4, 1, 2, 2, generator=generator) < 0.4).float(), (32, 32))
        predicted = torch.where(wrong[:, 0] > 0, 1 - label, label)
        probability = torch.nn.functional.one_hot(predicted, 2).permute(0, 3, 1, 2).float()
        image = (2.0 * label - 1)[:, None].repeat(1, 3, 1, 1)
        error = (detector(image, probability) - true_flaws(probability, label)).pow(2).mean()
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.item())
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5])


def test_a_blur_in_two_passes_equals_one_in_two_dimensions():
    image, counted = noise(1, 24, 20).abs(), torch.ones(1, 24, 20, dtype=torch.bool)
    counted[0, 4:15, 3:] = False
    found = flaws_module._blurred(image, counted, 7)[0].double()
    torch.testing.assert_close(found, slow_blur(image[0], counted[0], 7), rtol=1e-4, atol=1e-5)


def test_a_map_that_is_the_same_everywhere_shows_no_flaw():
    """Rounding is not stretched, and ignored pixels make no border."""
    counted = torch.ones(2, 40, 48, dtype=torch.bool)
    counted[1, :, 30:] = False
    assert (clear_flaws(torch.full((2, 40, 48), 0.7), counted) == 0).all()
