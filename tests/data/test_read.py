import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from semiseg.data.dataset import MaskCoding
from semiseg.data.masks import read_mask
from semiseg.data.read import fit, read_image, read_size, resize_image, resize_mask
from semiseg.errors import UserError

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_rgb_file_is_read_as_it_is(write):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = read_image(write("a.png", pixels))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("gray.png", Image.fromarray(GRAY)),
        ("palette.png", Image.fromarray(GRAY).convert("RGB").quantize(256)),
        ("rgba.png", Image.merge("RGBA", [Image.fromarray(GRAY)] * 3 + [Image.new("L", (4, 3), 7)])),
        ("la.png", Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (4, 3), 7)])),
        ("16bit.png", Image.fromarray(GRAY.astype(np.uint16) * 256 + 99)),
        ("32bit.tif", Image.fromarray(GRAY.astype(np.int32) * 256 + 99)),
    ],
)
def test_every_kind_of_file_becomes_rgb(tmp_path, name, picture):
    picture.save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert torch.equal(image, torch.from_numpy(GRAY).expand(3, -1, -1))


def test_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path):
    picture = Image.fromarray(GRAY).convert("P")
    picture.save(tmp_path / "a.png", transparency=bytes([0] * 5 + [255] * 251))
    assert read_image(tmp_path / "a.png").shape == (3, 3, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_image_and_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRAY).convert("RGB").save(tmp_path / "a.png", exif=exif)
    upright = {
        1: GRAY, 2: GRAY[:, ::-1], 3: GRAY[::-1, ::-1], 4: GRAY[::-1],
        5: GRAY.T, 6: np.rot90(GRAY, -1), 7: GRAY[::-1, ::-1].T, 8: np.rot90(GRAY),
    }[orientation]  # fmt: skip
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image[0].numpy(), upright)
    assert read_size(tmp_path / "a.png") == upright.shape


def test_an_orientation_that_is_no_number_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(GRAY).save(path, exif=exif)
    number = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"  # tag, type, count, value
    content = path.read_bytes()
    assert number in content
    path.write_bytes(content.replace(number, b"\x01\x12\x00\x02\x00\x00\x00\x04six\x00"))
    assert read_size(path) == read_image(path).shape[1:] == GRAY.shape


@pytest.mark.parametrize("kind", ["ICO", "EPS", "TGA"])  # Pillow reads them, EPS by running a program
def test_kinds_of_images_that_are_not_for_photographs_are_refused(tmp_path, kind):
    Image.fromarray(GRAY).convert("RGB").save(tmp_path / "a.png", kind)
    for read in (read_image, read_size):
        with pytest.raises(UserError, match="not a readable image"):
            read(tmp_path / "a.png")


def broken_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:-2000]


def broken_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:-900]


@pytest.mark.parametrize("read", [read_image, lambda path: read_mask(path, MaskCoding(2))])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.png", broken_png(), "not a readable image"),
        ("cut.jpg", broken_jpeg(), "not a readable image"),
        ("text.png", b"hello", "not a readable image"),
        ("empty.png", b"", "not a readable image"),
        ("missing.png", None, "no such file"),
    ],
)
def test_broken_files_are_named(tmp_path, write, read, name, content, says):
    if content is not None:
        write(name, content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert_one_line(caught.value, str(tmp_path / name), says)


@pytest.mark.parametrize(
    "limit", [GRAY.size - 1, GRAY.size // 2 - 1]
)  # Pillow warns at the first, raises at the second
@pytest.mark.parametrize("read", [read_image, read_size, lambda path: read_mask(path, MaskCoding(12))])
def test_decompression_bombs_are_refused(write, monkeypatch, limit, read):
    path = write("a.png", GRAY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError) as caught:
        read(path)
    assert_one_line(caught.value, str(path), "tiles")


def test_a_bomb_is_refused_where_warnings_are_not_errors(write, monkeypatch):
    path = write("a.png", GRAY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRAY.size - 1)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UserError, match="tiles"):
        read_image(path)


def test_float_images_are_refused(write):
    path = write("a.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match="floating-point"):
        read_image(path)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 3000))
def test_fit_makes_the_longer_side_what_it_should_be(height, width, long_side):
    fitted = fit(height, width, long_side)
    assert max(fitted) == long_side
    assert min(fitted) == max(1, round(min(height, width) * long_side / max(height, width)))
    assert fit(height, width, None) == (height, width)


@pytest.mark.parametrize("size", [(9, 14), (20, 24), (40, 48), (31, 57)])
def test_resizing_keeps_image_and_mask_aligned(write, ramp, size):
    pixels, columns = ramp(20, 24)
    image = resize_image(torch.from_numpy(pixels).permute(2, 0, 1), size)
    mask = resize_mask(torch.from_numpy(columns), size)
    assert image.shape[1:] == mask.shape == size
    inner = slice(2, -2)
    # red is 8 times the column: a mask that is off by one column would be off by 8
    assert ((image[0].int() - 8 * mask.int()).abs()[:, inner] <= 5).all()


@pytest.mark.parametrize(
    ("enough", "size"), [(None, (200, 240)), (239, (200, 240)), (121, (200, 240)), (120, (100, 120)), (31, (50, 60))]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_is_decoded_no_larger_than_enough(write, ramp, enough, size, turned):
    pixels = np.array(Image.fromarray(ramp(20, 24)[0]).resize((240, 200), Image.Resampling.BILINEAR))
    exif = Image.Exif()
    if turned:
        exif[ExifTags.Base.Orientation] = 6
    path = write("a.jpg", pixels, quality=95, exif=exif)
    image, full = read_image(path, enough), read_image(path)
    assert image.shape[1:] == (size[::-1] if turned else size) == read_size(path, enough)
    assert (resize_image(full, (25, 30)).int() - resize_image(image, (25, 30)).int()).abs().float().mean() < 1


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("size", "enough", "sides"),
    [
        ((1365, 2048), 1024, (683, 1024)),  # the shorter side need not divide
        ((1365, 2048), 512, (342, 512)),
        ((1365, 2048), 1025, (1365, 2048)),
        ((2048, 1365), 256, (256, 171)),
        ((667, 1000), 500, (334, 500)),
        ((1, 64), 8, (1, 64)),  # no pixel would be left
    ],
)
def test_what_does_not_divide_is_decoded_small_too(write, size, enough, sides, turned):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if turned else 1
    path = write("a.jpg", np.zeros((*size, 3), np.uint8), exif=exif)
    assert tuple(read_image(path, enough).shape[1:]) == (sides[::-1] if turned else sides) == read_size(path, enough)


def test_other_files_are_decoded_whole(write, ramp):
    assert read_image(write("a.png", ramp(20, 24)[0]), 5).shape == (3, 20, 24)


def assert_one_line(error: Exception, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def test_paths_are_plain(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_size(tmp_path / "nothing.png")
