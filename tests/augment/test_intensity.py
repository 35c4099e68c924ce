import colorsys
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from semiseg.augment.intensity import _MAGNITUDES, Config
from semiseg.augment.ops import OPS, Drawn, apply
from semiseg.rng import fold_in


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=fold_in(seed, "noise"))


def photos(batch: int = 5, height: int = 37, width: int = 29) -> torch.Tensor:
    """Noise of different brightness and contrast, with a smooth ramp: histograms that are not flat."""
    ramp = torch.linspace(0, 90, width).expand(batch, 3, height, width)
    gain = torch.linspace(0.2, 0.6, batch)[:, None, None, None]
    return (noise(batch, 3, height, width) * gain + ramp + 10).to(torch.uint8)


def draws(op: str, *magnitudes: float) -> Drawn:
    magnitude = torch.tensor(magnitudes)[:, None]
    return Drawn(torch.full(magnitude.shape, OPS.index(op)), magnitude)


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def unpil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


FACTORS = (0.05, 0.3, 0.5, 0.77, 0.95)
ZEROS = (0.0,) * 5


# Every operation against a slow one on single images. 0 gray levels of tolerance where both are exact. 1 for the four
# factors and hue, because PIL and torchvision cut off where we round, and for the blur, because it is done in
# two passes (and PIL has no Gaussian blur: its own is a sum of box filters).
@pytest.mark.parametrize(
    ("op", "reference", "magnitudes", "tolerance"),
    [
        ("identity", lambda x, _: x, ZEROS, 0),
        ("invert", lambda x, _: unpil(ImageOps.invert(pil(x))), ZEROS, 0),
        # PIL computes the look-up table in double precision, torchvision in single: the last digit decides the cut.
        ("autocontrast", lambda x, _: unpil(ImageOps.autocontrast(pil(x))), ZEROS, 1),
        ("equalize", lambda x, _: unpil(ImageOps.equalize(pil(x))), ZEROS, 0),
        ("gaussian_blur", lambda x, s: tv.gaussian_blur(x, [21, 21], [s, s]), (0.1, 0.4, 1.0, 1.7, 2.0), 1),
        ("contrast", lambda x, f: tv.adjust_contrast(x, f), FACTORS, 1),
        ("contrast", lambda x, f: unpil(ImageEnhance.Contrast(pil(x)).enhance(f)), FACTORS, 1),
        ("sharpness", lambda x, f: tv.adjust_sharpness(x, f), FACTORS, 1),
        ("sharpness", lambda x, f: unpil(ImageEnhance.Sharpness(pil(x)).enhance(f)), FACTORS, 1),
        ("color", lambda x, f: tv.adjust_saturation(x, f), FACTORS, 1),
        ("color", lambda x, f: unpil(ImageEnhance.Color(pil(x)).enhance(f)), FACTORS, 1),
        ("brightness", lambda x, f: tv.adjust_brightness(x, f), FACTORS, 1),
        ("brightness", lambda x, f: unpil(ImageEnhance.Brightness(pil(x)).enhance(f)), FACTORS, 1),
        ("hue", lambda x, s: tv.adjust_hue(x, s), (-0.5, -0.2, 0.0, 0.1, 0.5), 1),
        ("posterize", lambda x, b: unpil(ImageOps.posterize(pil(x), int(b))), (4.0, 5.0, 6.0, 7.0, 8.0), 0),
        ("solarize", lambda x, t: unpil(ImageOps.solarize(pil(x), int(t))), (1.0, 2.0, 100.0, 255.0, 256.0), 0),
    ],
)
def test_like_the_reference_on_single_images(op, reference, magnitudes, tolerance):
    image = photos()
    out = apply(image, draws(op, *magnitudes))
    for before, after, magnitude in zip(image, out, magnitudes, strict=True):
        assert difference(after, reference(before, magnitude)) <= tolerance


def test_by_hand():
    image = torch.tensor([0, 1, 100, 200, 255, 127], dtype=torch.uint8).expand(1, 3, 2, 6).contiguous()
    row = lambda op, magnitude: apply(image, draws(op, magnitude))[0, 0, 0].tolist()  # noqa: E731
    assert row("invert", 0.0) == [255, 254, 155, 55, 0, 128]
    assert row("brightness", 0.5) == [0, 0, 50, 100, 128, 64]  # 0.5 rounds to even
    assert row("posterize", 4.0) == [0, 0, 96, 192, 240, 112]
    assert row("solarize", 200.0) == [0, 1, 100, 55, 0, 127]
    assert row("solarize", 1.0) == [0, 254, 155, 55, 0, 128]


@pytest.mark.parametrize(
    ("op", "magnitude"),
    [
        ("contrast", 1.0),
        ("sharpness", 1.0),
        ("color", 1.0),
        ("brightness", 1.0),
        ("hue", 0.0),
        ("posterize", 8.0),
        ("solarize", 256.0),
        ("gaussian_blur", 0.1),
    ],
)
def test_magnitude_that_leaves_the_image(op, magnitude):
    image = photos(1)
    assert torch.equal(apply(image, draws(op, magnitude)), image)


def test_factor_zero_is_degenerate():
    image = photos(1)
    assert len(apply(image, draws("contrast", 0.0)).unique()) == 1
    assert len(apply(image, draws("brightness", 0.0)).unique()) == 1
    gray = apply(image, draws("color", 0.0))
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_operations_follow_one_another_in_the_order_drawn():
    image = photos(1)
    params = Drawn(torch.tensor([[OPS.index("solarize"), OPS.index("posterize")]]), torch.tensor([[90.0, 4.0]]))
    expected = apply(apply(image, draws("solarize", 90.0)), draws("posterize", 4.0))
    assert torch.equal(apply(image, params), expected)
    assert not torch.equal(expected, apply(apply(image, draws("posterize", 4.0)), draws("solarize", 90.0)))


sizes = st.tuples(st.integers(0, 6), st.sampled_from([8, 9, 16]), st.sampled_from([8, 13]))
configs = st.fixed_dictionaries({"num_ops": st.integers(1, 4), "with_replacement": st.booleans()})


@settings(deadline=None, max_examples=40)
@given(size=sizes, config=configs, seed=st.integers(0, 2**32), order=st.randoms(use_true_random=False))
def test_properties(size, config, seed, order):
    batch, height, width = size
    image = noise(batch, 3, height, width, seed=seed)
    untouched = image.clone()
    params = Config(**config).sample(fold_in(seed), batch)
    out = apply(image, params)
    assert out.dtype == torch.uint8
    assert out.shape == image.shape
    assert out.data_ptr() != image.data_ptr() or batch == 0
    assert torch.equal(image, untouched)
    assert torch.equal(out, apply(image, params))

    permutation = torch.tensor(order.sample(range(batch), batch), dtype=torch.long)
    permuted = Drawn(params.op[permutation], params.magnitude[permutation])
    assert torch.equal(apply(image[permutation], permuted), out[permutation])


@settings(deadline=None, max_examples=20)
@given(op=st.sampled_from(OPS[1:]), rows=st.lists(st.booleans(), min_size=1, max_size=5))
def test_only_rows_that_drew_an_operation_change(op, rows):
    image = photos(len(rows), 17, 19)  # equalize leaves images of fewer than 256 pixels, as in PIL
    magnitude = {"gaussian_blur": 1.5, "hue": 0.3, "posterize": 4.0, "solarize": 64.0}.get(op, 0.4)
    index = torch.tensor([[OPS.index(op) if drew else 0] for drew in rows])
    out = apply(image, Drawn(index, torch.full(index.shape, magnitude)))
    assert [not torch.equal(a, b) for a, b in zip(image, out, strict=True)] == rows


@pytest.mark.parametrize("side", [(1, 1), (2, 5), (8, 8)])
@pytest.mark.parametrize("op", OPS)
def test_tiny_images(op, side):
    image = noise(2, 3, *side)
    magnitude = {"gaussian_blur": 2.0, "posterize": 4.0, "solarize": 64.0}.get(op, 0.4)
    assert apply(image, draws(op, magnitude, magnitude)).shape == image.shape


@pytest.mark.parametrize("op", OPS)
def test_constant_images(op):
    image = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    magnitude = {"gaussian_blur": 2.0, "posterize": 4.0, "solarize": 64.0}.get(op, 0.4)
    assert len(apply(image, draws(op, magnitude)).unique()) == 1


def test_never_reads_a_pixel_on_the_host():
    """Tensors on the meta device have no values, so whatever had to wait for a GPU's cannot run."""
    params = Config().sample(fold_in(0), 64)
    assert set(params.op.unique().tolist()) == set(range(len(OPS)))
    assert apply(torch.empty(64, 3, 16, 16, dtype=torch.uint8, device="meta"), params).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree():
    image, params = noise(64, 3, 33, 47), Config().sample(fold_in(0), 64)
    on_gpu = image.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = apply(on_gpu, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    away = (out.cpu().int() - apply(image, params).int()).abs()
    # One level in the first operation can become more in the second (solarize, equalize), in few places.
    assert (away > 1).float().mean() < 0.01


class Fixed:
    """Draws of `many` images, magnitudes by operation."""

    def __init__(self, config: Config, many: int = 6000) -> None:
        self.params = config.sample(fold_in(0, "fixed"), many)

    def __getitem__(self, op: str) -> torch.Tensor:
        return self.params.magnitude[self.params.op == OPS.index(op)]


def test_ranges_are_hit_at_their_ends_and_not_left():
    drawn = Fixed(Config())
    for op, low, high in [
        ("contrast", 0.05, 0.95),
        ("sharpness", 0.05, 0.95),
        ("color", 0.05, 0.95),
        ("brightness", 0.05, 0.95),
        ("gaussian_blur", 0.1, 2.0),
        ("hue", -0.5, 0.5),
    ]:
        assert low <= drawn[op].min() < low + 0.01 * (high - low), op
        assert high >= drawn[op].max() > high - 0.01 * (high - low), op
    assert drawn["posterize"].unique().tolist() == [4, 5, 6, 7, 8]
    thresholds = drawn["solarize"]
    assert (thresholds.min(), thresholds.max()) == (1, 256)
    assert torch.equal(thresholds, thresholds.round())
    for op in ("identity", "invert", "autocontrast", "equalize"):
        assert not drawn[op].any()


def test_hue_has_both_directions_and_a_least_shift():
    shift = Fixed(Config(hue=(0.1, 0.2)))["hue"]
    assert 0.1 <= shift.abs().min() <= shift.abs().max() <= 0.2 + 1e-6
    assert 0.4 < (shift < 0).float().mean() < 0.6


@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.01, 0.0, 1 / 6, 0.2, 0.5])
def test_hue_is_rounded_to_the_nearest_color(shift):
    levels = (0, 1, 77, 128, 254, 255)
    colors = list(itertools.product(levels, levels, levels))  # grays, ties and every order of the channels among them
    image = torch.tensor(colors, dtype=torch.uint8).T[None, :, None]
    found = apply(image, draws("hue", shift))[0, :, 0].T.tolist()
    for before, after in zip(colors, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in before))
        wanted = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
        assert after == pytest.approx([255 * level for level in wanted], abs=0.501)


def test_ranges_of_one_value():
    config = Config(factor=(0.5, 0.5), hue=(0.25, 0.25), bits=(5, 5), solarize=(128, 128), sigma=(1.0, 1.0))
    drawn = Fixed(config)
    assert {
        op: drawn[op].abs().unique().tolist() for op in ("color", "hue", "posterize", "solarize", "gaussian_blur")
    } == {
        "color": [0.5],
        "hue": [0.25],
        "posterize": [5],
        "solarize": [128],
        "gaussian_blur": [1.0],
    }


@pytest.mark.parametrize("with_replacement", [False, True])
def test_operations_are_drawn_equally_often(with_replacement):
    op = Fixed(Config(with_replacement=with_replacement)).params.op
    for position in op.unbind(1):
        counts = torch.bincount(position, minlength=len(OPS)).double()
        expected = len(op) / len(OPS)
        assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_replacement():
    assert (Fixed(Config()).params.op.sort(dim=1).values.diff(dim=1) != 0).all()
    same = Fixed(Config(with_replacement=True)).params.op
    assert abs((same[:, 0] == same[:, 1]).double().mean() - 1 / 12) < 0.02
    everything = Fixed(Config(num_ops=12), 50).params.op
    assert torch.equal(everything.sort(dim=1).values, torch.arange(12).expand(50, 12))


@pytest.mark.parametrize("with_replacement", [False, True])
def test_a_pool_of_some_operations(with_replacement):
    pool = ("hue", "identity", "gaussian_blur")
    config = Config(ops=pool, with_replacement=with_replacement, hue=(0.1, 0.2), sigma=(1.0, 2.0))
    drawn = Fixed(config)
    assert set(drawn.params.op.unique().tolist()) == {OPS.index(name) for name in pool}
    for position in drawn.params.op.unbind(1):
        share = torch.bincount(position, minlength=12)[[OPS.index(name) for name in pool]] / len(position)
        assert (share - 1 / 3).abs().max() < 0.03
    assert 0.1 <= drawn["hue"].abs().min() <= drawn["hue"].abs().max() <= 0.2 + 1e-6
    assert 1.0 <= drawn["gaussian_blur"].min() <= drawn["gaussian_blur"].max() <= 2.0
    twice = (drawn.params.op[:, 0] == drawn.params.op[:, 1]).double().mean()
    assert twice == 0 if not with_replacement else abs(twice - 1 / 3) < 0.03


@pytest.mark.parametrize("min_ops", [0, 1, 3])
def test_a_number_of_operations_that_is_drawn(min_ops):
    """Each number from min_ops to num_ops equally often; the first operations are those of a fixed number."""
    names = ("invert", "hue", "contrast", "posterize")
    fixed = Fixed(Config(ops=names, num_ops=3, hue=(0.1, 0.2))).params
    drawn = Fixed(Config(ops=names, num_ops=3, min_ops=min_ops, hue=(0.1, 0.2))).params
    kept = drawn.op != OPS.index("identity")
    number = kept.sum(1)
    assert torch.equal(kept, torch.arange(3) < number[:, None])
    counts = torch.bincount(number, minlength=4) / len(number)
    share = 1 / (4 - min_ops)
    assert counts.tolist() == pytest.approx([share if count >= min_ops else 0 for count in range(4)], abs=0.03)
    assert torch.equal(drawn.op[kept], fixed.op[kept])
    assert torch.equal(drawn.magnitude[kept], fixed.magnitude[kept])
    assert not drawn.magnitude[~kept].any()


def test_naming_all_operations_is_naming_none():
    all_, none = (Config(ops=ops).sample(fold_in(0), 32) for ops in (OPS, None))
    assert torch.equal(all_.op, none.op)
    assert torch.equal(all_.magnitude, none.magnitude)


def test_draws_depend_on_the_generator_alone():
    first, again, other = (Config().sample(fold_in(seed, "strong"), 32) for seed in (1, 1, 2))
    assert torch.equal(first.op, again.op)
    assert torch.equal(first.magnitude, again.magnitude)
    assert not torch.equal(first.op, other.op)
    assert not torch.equal(first.magnitude, other.magnitude)


def test_params_are_on_the_cpu_and_frozen():
    params = Config().sample(fold_in(0), 3)
    assert params.op.device.type == params.magnitude.device.type == "cpu"
    with pytest.raises(AttributeError):
        params.op = params.op
    assert replace(params).op is params.op


def test_params_of_another_batch():
    with pytest.raises(AssertionError, match="3 draws for 2 images"):
        apply(noise(2, 3, 8, 8), Config().sample(fold_in(0), 3))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"factor": (0.9, 0.1)}, r"low <= high, got \[0.9, 0.1\]"),
        ({"factor": (-0.1, 0.5)}, "factor needs to lie within"),
        ({"factor": (0.1, float("inf"))}, "factor needs to lie within"),
        ({"factor": (float("nan"), 1.0)}, "low <= high"),
        ({"hue": (0.0, 0.6)}, r"hue needs to lie within \[0, 0.5\], got \[0.0, 0.6\]"),
        ({"bits": (0, 8)}, "bits needs to lie within"),
        ({"bits": (4, 9)}, "bits needs to lie within"),
        ({"solarize": (1, 257)}, "solarize needs to lie within"),
        ({"sigma": (0.0, 2.0)}, "sigma needs to lie within"),
        ({"num_ops": 0}, "greater than or equal to 1"),
        ({"num_ops": 13}, "num_ops 13 needs with_replacement"),
        ({"ops": ("hue",)}, "num_ops 2 needs with_replacement: the pool has 1 operations"),
        ({"ops": ("hue", "blur")}, "there is no operation 'blur'; known are identity, invert, .*, solarize"),
        ({"ops": ("hue", "hue")}, r"each once, got \['hue', 'hue'\]"),
        ({"ops": ()}, r"at least one operation, and each once, got \[\]"),
        ({"ops": ("hue", "invert"), "sigma": (0.5, 1.0)}, "sigma belongs to gaussian_blur, which ops leaves out"),
        ({"ops": ("hue", "invert"), "factor": (0.5, 1.0)}, "factor belongs to contrast and sharpness and color and"),
        ({"min_ops": 3}, "min_ops 3 is more than num_ops 2; lower it or raise num_ops"),
        ({"min_ops": -1}, "greater than or equal to 0"),
        ({"num_opps": 2}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings(settings_, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings_)


def test_settings_are_the_papers():
    assert OPS == (
        "identity",
        "invert",
        "autocontrast",
        "equalize",
        "gaussian_blur",
        "contrast",
        "sharpness",
        "color",
        "brightness",
        "hue",
        "posterize",
        "solarize",
    )
    assert tuple(_MAGNITUDES) == OPS
    assert Config().num_ops == 2
    assert Config(num_ops=20, with_replacement=True).num_ops == 20
