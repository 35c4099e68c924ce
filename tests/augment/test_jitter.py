from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2 import functional as tv

from semiseg.augment.jitter import Config
from semiseg.augment.ops import OPS, Drawn, apply
from semiseg.rng import fold_in

MANY = 4000
REFERENCE = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "color": tv.adjust_saturation,
    "hue": tv.adjust_hue,
    "gaussian_blur": lambda image, sigma: tv.gaussian_blur(image, [21, 21], [sigma, sigma]),
    "identity": lambda image, _: image,
}


def photos(number: int, height: int = 37, width: int = 29) -> torch.Tensor:
    """Noise of different brightness and contrast, with a smooth ramp: histograms that are not flat."""
    noise = torch.randint(0, 256, (number, 3, height, width), generator=fold_in(0, "noise"))
    gain = torch.linspace(0.2, 0.6, number)[:, None, None, None]
    return (noise * gain + torch.linspace(0, 90, width) + 10).to(torch.uint8)


def sample(number: int = MANY, seed: int = 0, **settings) -> Drawn:
    return Config(**settings).sample(fold_in(seed, "jitter"), number)


def names(ops: torch.Tensor) -> list[str]:
    return [OPS[index] for index in ops.tolist()]


def difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def test_each_operation_is_that_of_torchvision():
    """Within one gray level, because torchvision cuts off where we round."""
    drawn, seen = sample(32), set()
    for step in range(6):
        image = photos(32)
        out = apply(image, Drawn(drawn.op[:, step : step + 1], drawn.magnitude[:, step : step + 1]))
        for row, name in enumerate(names(drawn.op[:, step])):
            by = drawn.magnitude[row, step].item()
            assert difference(out[row], REFERENCE[name](image[row], by)) <= 1, (name, by)
            if name != "identity":
                seen.add((name, by > 1))
    factors = {(name, more) for name in ("brightness", "contrast", "color") for more in (False, True)}
    assert seen >= factors | {("hue", False), ("gaussian_blur", True)}


def test_gray_images_are_those_of_torchvision():
    image = photos(8)
    out = Config().apply(image, sample(8, jitter_probability=0, grayscale_probability=1, blur_probability=0))
    assert difference(out, tv.rgb_to_grayscale(image, 3)) <= 1
    assert torch.equal(out[:, 0], out[:, 1])


def test_operations_follow_one_another_in_the_order_drawn():
    image, drawn = photos(24), sample(24)
    out = Config().apply(image, drawn)
    assert len({tuple(order) for order in drawn.op.tolist()}) > 10
    for row in range(24):
        one = image[row : row + 1]
        for op, magnitude in zip(drawn.op[row], drawn.magnitude[row], strict=True):
            one = apply(one, Drawn(op.view(1, 1), magnitude.view(1, 1)))
        assert torch.equal(out[row], one[0])
    assert torch.equal(Config().apply(image[5:9], drawn[5:9]), out[5:9])


def test_values_are_drawn_as_torchvision_draws_them():
    drawn, reference = sample(jitter_probability=1), ColorJitter(0.5, 0.5, 0.5, 0.25)
    for name, span in zip(("brightness", "contrast", "color", "hue"),
                          (reference.brightness, reference.contrast, reference.saturation, reference.hue),
                          strict=True):  # fmt: skip
        magnitude = drawn.magnitude[:, :4][drawn.op[:, :4] == OPS.index(name)]
        assert len(magnitude) == MANY
        width = span[1] - span[0]
        assert span[0] <= magnitude.min() < span[0] + 0.01 * width
        assert span[1] >= magnitude.max() > span[1] - 0.01 * width
        assert abs(magnitude.mean() - sum(span) / 2) < 0.03 * width
    orders = {tuple(names(order)) for order in drawn.op[:, :4]}
    assert len(orders) == 24  # every order of the four
    counts = torch.bincount((drawn.op[:, :4] * torch.tensor([1000, 100, 10, 1])).sum(1)).double()
    expected = MANY / 24
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 49.7  # chi-square, 23 degrees, p = 0.001


def test_operations_are_drawn_with_their_probabilities():
    drawn, identity = sample(), OPS.index("identity")
    jittered, gray, blurred = (drawn.op[:, [0, 4, 5]] != identity).T
    assert ((drawn.op[:, :4] != identity) == jittered[:, None]).all()  # all four or none
    for got, probability in ((jittered, 0.8), (gray, 0.2), (blurred, 0.5)):
        assert abs(got.double().mean() - probability) < 0.03
    for one, other in pairwise((jittered, gray, blurred)):  # independent of one another
        both = (one & other).double().mean()
        assert abs(both - one.double().mean() * other.double().mean()) < 0.03
    assert set(names(drawn.op[gray, 4])) == {"color"}
    assert not drawn.magnitude[:, 4].any()
    sigma = drawn.magnitude[blurred, 5]
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2.0


def test_factors_are_never_negative():
    assert sample(brightness=3.0).magnitude.min() >= -0.25  # of hue
    drawn = sample(brightness=3.0, jitter_probability=1)
    factor = drawn.magnitude[drawn.op == OPS.index("brightness")]
    assert 0 <= factor.min() < 0.1
    assert 3.9 < factor.max() <= 4


def test_draws_depend_on_the_generator_alone():
    first, again, other = sample(16), sample(16), sample(16, seed=1)
    assert torch.equal(first.op, again.op)
    assert torch.equal(first.magnitude, again.magnitude)
    assert not torch.equal(first.magnitude, other.magnitude)
    assert first.op.device.type == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hue": 0.6}, "less than or equal to 0.5"),
        ({"brightness": float("nan")}, "finite"),
        ({"blur_probability": 1.2}, "less than or equal to 1"),
        ({"sigma": (2.0, 1.0)}, r"low <= high <= 100, got \[2.0, 1.0\]"),
        ({"blur_probability": 0, "sigma": (1.0, 2.0)}, "sigma does nothing with blur_probability 0"),
        ({"jitter_probability": 0, "hue": 0.1}, "hue does nothing with jitter_probability 0"),
        ({"pool": "intensity"}, "'jitter'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)
