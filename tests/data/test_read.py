import io
import logging
import runpy
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from semiseg.data import formats, read
from semiseg.data.dataset import MaskCoding
from semiseg.data.masks import read_mask
from semiseg.data.read import fit, largest_value, read_header, read_image, read_size, resize_image, resize_mask
from semiseg.errors import UnreadableError, UserError

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
    header = read_header(tmp_path / "a.png")
    assert (header.size, header.stored, header.orientation) == (upright.shape, GRAY.shape, orientation)


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
    for reading in (read_image, read_size):
        with pytest.raises(UserError, match="not a readable image"):
            reading(tmp_path / "a.png")


def broken_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:-2000]


def broken_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:-900]


def test_a_broken_jpeg_is_named(write):
    path = write("cut.jpg", broken_jpeg())
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert_one_line(caught.value, str(path), "not a readable image")


@pytest.mark.parametrize("read", [read_image, lambda path: read_mask(path, MaskCoding(2))])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.png", broken_png(), "not a readable image"),
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
    assert_one_line(caught.value, str(path), "tiles", "data.on_unreadable=skip")
    assert isinstance(caught.value, UnreadableError)  # so that it can be skipped


def test_a_bomb_is_refused_where_warnings_are_not_errors(write, monkeypatch):
    path = write("a.png", GRAY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRAY.size - 1)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UnreadableError, match="tiles"):
        read_image(path)


def test_float_images_are_refused(write):
    path = write("a.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match="floating-point"):
        read_image(path)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 3000))
def test_fit_makes_the_longer_side_what_it_should_be(height, width, long_side):
    fitted = fit(height, width, long_side)
    assert max(fitted) == long_side
    exact = min(height, width) * long_side / max(height, width)
    assert abs(min(fitted) - max(1, exact)) <= 0.5 + 1e-9  # a half may be rounded either way
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


# Photographs of more than 8 bits a channel, and of more than three channels.

DEEP = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, whose rows are differences of neighbors (filter 1)."""
    height, width, count = pixels.shape
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, width, 2 * count)
    rows = np.diff(rows, axis=1, prepend=np.zeros((height, 1, 2 * count), np.uint8)).reshape(height, -1)
    content = np.concatenate([np.ones((height, 1), np.uint8), rows], axis=1).tobytes()
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[count], 0, 0, 0),
        b"IDAT": zlib.compress(content),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(
    pixels: np.ndarray, order: str = "<", photometric: int = 2, packed: bool = False, planes: bool = False
) -> bytes:
    """A TIFF of any number of channels, one pixel after the other or one channel after the other."""
    height, width, count = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    content = pixels.astype(pixels.dtype.newbyteorder(order))
    strips = [content[..., k].tobytes() for k in range(count)] if planes else [content.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {
        256: [width], 257: [height], 258: [bits] * count, 259: [8 if packed else 1], 262: [photometric],
        273: starts[:-1], 277: [count], 278: [height], 279: [len(strip) for strip in strips], 284: [2 if planes else 1],
        338: [0] * (count - (3 if photometric == 2 else 1)), 339: [kind] * count,
    }  # fmt: skip
    tags = {tag: values for tag, values in tags.items() if values}
    table, behind = b"", b""
    first = starts[-1] + 2 + 12 * len(tags) + 4
    for tag, values in tags.items():
        value = struct.pack(f"{order}{len(values)}I", *values)
        table += struct.pack(f"{order}HHI", tag, 4, len(values))
        table += value if len(value) == 4 else struct.pack(f"{order}I", first + len(behind))
        behind += value if len(value) > 4 else b""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", starts[-1])
    return start + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + table + bytes(4) + behind


FOUR, FIVE, EIGHT = (np.concatenate([DEEP] * 3, axis=-1)[..., :count] for count in (4, 5, 8))


@pytest.mark.parametrize(
    ("name", "content", "channels"),
    [
        ("gray.png", None, 1),
        ("gray.tif", None, 1),
        ("rgb.png", deep_png(DEEP), 3),
        ("rgba.png", deep_png(FOUR), 4),
        ("little.tif", tiff(DEEP), 3),
        ("big.tif", tiff(DEEP, ">"), 3),
        ("packed.tif", tiff(DEEP, packed=True), 3),
        ("packed_big.tif", tiff(DEEP, ">", packed=True), 3),
        ("infrared.tif", tiff(FOUR), 4),
        ("planes.tif", tiff(DEEP, planes=True), 3),
        ("planes_big.tif", tiff(FOUR, ">", planes=True), 4),
        ("bands.tif", tiff(DEEP, photometric=1), 3),
        ("bands_of_four.tif", tiff(FOUR, ">", photometric=1, packed=True), 4),
        ("bands_and_planes.tif", tiff(FOUR, photometric=1, planes=True), 4),
    ],
)
def test_16_bits_are_read_in_full(write, name, content, channels):
    stored = DEEP[..., 0] if content is None else DEEP
    path = write(name, stored if content is None else content)
    levels = np.broadcast_to(np.atleast_3d(stored).astype(int), (6, 5, 3)).transpose(2, 0, 1)
    header = read_header(path)
    assert (header.channels, header.bits, header.largest, header.size) == (channels, 16, 65535, (6, 5))
    assert largest_value(path) == stored.max()
    for white in (None, 65535):
        assert np.array_equal(read_image(path, white=white), levels >> 8)
    for white in (2, 1000, 4095, 40000):
        image = read_image(path, white=white).numpy()
        assert np.abs(image - 255 * np.minimum(levels, white) / white).max() <= 1
        assert (image[levels >= white] == 255).all()
    assert np.array_equal(read_image(path, white=4095), np.minimum(levels >> 4, 255))


@pytest.mark.parametrize("white", [None, 2, 4095])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_white_changes_no_image_of_8_bits(write, suffix, white):
    path = write(f"a.{suffix}", np.array(Image.fromarray(GRAY * 20).convert("RGB")))
    assert torch.equal(read_image(path, white=white), read_image(path))
    assert (read_header(path).bits, largest_value(path)) == (8, 255)


@pytest.mark.parametrize(("magic", "shape"), [("P5", (6, 5)), ("P6", (6, 5, 3))])
def test_a_format_that_states_its_largest_value(write, magic, shape):
    """Pillow stretches the values; `white` counts in the stored ones."""
    stored = DEEP[..., 0] >> 4 if magic == "P5" else DEEP >> 4
    path = write("a.ppm", f"{magic} 5 6 4095\n".encode() + stored.astype(">u2").tobytes())
    assert read_header(path).largest == 4095
    assert largest_value(path) == pytest.approx(int(stored.max()), abs=16)  # Pillow keeps 8 bits of colors
    expected = np.minimum(stored.astype(int) * 255 / 2000, 255).reshape(6, 5, -1).transpose(2, 0, 1)
    assert np.abs(read_image(path, white=2000).numpy() - expected).max() <= (1 if magic == "P5" else 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(EIGHT), "has 8 channels; save the three that show red, green and blue as an RGB image"),
        (tiff(EIGHT.astype(np.uint8)), "has 8 channels"),
        (tiff(EIGHT[..., :6].astype(np.uint8)), "has 6 channels"),  # Pillow would read these
        (tiff(FIVE), "has 5 channels"),
        (tiff(FIVE, photometric=1), "has 5 channels"),
        (tiff(FOUR, photometric=0), "has 4 channels"),
        (tiff(DEEP.astype(np.float32)), "holds floating-point values; save it as an 8-bit image"),
        (tiff(DEEP.astype(np.uint32)), "holds values of 32 bits; save it as an 8-bit image"),
    ],
)
def test_channels_that_are_no_photograph_are_named(write, monkeypatch, capfd, content, says):
    monkeypatch.setattr(logging.root, "handlers", [])  # as outside of pytest: errors in logs go to stderr
    path = write("a.tif", content)
    for reading in (read_image, read_header):
        with pytest.raises(UserError) as caught:
            reading(path)
        assert_one_line(caught.value, str(path), says)
        assert not isinstance(caught.value, UnreadableError)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_a_damaged_tiff_prints_nothing(write, capfd, compression):
    path = write("a.tif", DEEP[..., 0].astype(np.uint8).repeat(20, axis=0), compression=compression)
    content = path.read_bytes()
    path.write_bytes(content[:12] + bytes([255] * 40) + content[52:])
    with pytest.raises(UnreadableError):
        read_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("photometric", [1, 2])
def test_five_channels_of_8_bits_are_read_as_rgb(write, photometric):
    stored = FIVE.astype(np.uint8)
    path = write("a.tif", tiff(stored, photometric=photometric))
    assert np.array_equal(read_image(path), stored[..., :3].transpose(2, 0, 1))


def test_packed_planes_without_colors_are_more_than_the_first_one(write):
    """Pillow alone would read the first band as gray."""
    path = write("a.tif", tiff(DEEP, photometric=1, planes=True, packed=True))
    assert np.array_equal(read_image(path), (DEEP >> 8).transpose(2, 0, 1))


# Kinds of files.


@pytest.mark.parametrize(
    ("suffix", "kind"), [("jfif", "JPEG"), ("jpe", "JPEG"), ("JP2", "JPEG2000"), ("j2k", "JPEG2000"), ("avif", "AVIF")]
)
def test_photographs_of_further_formats(tmp_path, ramp, suffix, kind):
    path = tmp_path / f"a.{suffix}"
    pixels = ramp(20, 24)[0]
    Image.fromarray(pixels).save(path, kind)
    assert path.suffix.lower() in formats.SUFFIXES
    assert read_size(path) == (20, 24)
    assert np.abs(read_image(path).numpy() - pixels.transpose(2, 0, 1).astype(int)).mean() < 8


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)


@pytest.fixture
def heic(monkeypatch) -> SimpleNamespace:
    """What the module `formats` holds if pillow-heif is installed: a module that reads every HEIC as GRAY, turned."""

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._mode, self._size, self.tile = "L", (3, 4), []
            self.info = {"exif": b"", "original_orientation": 6}  # pillow-heif turns, and says so here

        def draft(self, mode, size):
            self._size = (1, 1)  # its thumbnail

        def load(self):
            if self._im is None:
                self.im = Image.fromarray(np.rot90(GRAY, -1)).im.resize(self._size)
            return Image.Image.load(self)

    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    opener = SimpleNamespace(
        register_heif_opener=lambda: Image.register_open("HEIF", Heif, lambda start: start[4:12] == b"ftypheic")
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", opener)
    return SimpleNamespace(**runpy.run_path(formats.__file__))


def test_heic_is_a_photograph_if_pillow_heif_is_installed(write, monkeypatch, heic):
    assert {".heic", ".heif"} <= heic.SUFFIXES
    assert ".heic" not in heic.MISSING
    monkeypatch.setattr(read, "READABLE", heic.READABLE)
    path = write("a.heic", HEIC)
    for enough in (None, 1):
        assert np.array_equal(read_image(path, enough)[0], np.rot90(GRAY, -1))  # not turned twice, and no thumbnail
        assert read_size(path, enough) == (4, 3)
    assert read_header(path) == read.Header((4, 3), (4, 3), 1, "HEIF", 1, 255)


@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])  # messengers rename them
def test_heic_says_what_to_install(write, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # an import fails
    without = runpy.run_path(formats.__file__)
    assert not {".heic", ".heif"} & without["SUFFIXES"]
    assert without["MISSING"][".heic"] == without["MISSING"][".heif"] == 'pip install "semiseg[heic]"'
    monkeypatch.setattr(read, "READABLE", without["READABLE"])
    monkeypatch.setattr(read, "missing_for", without["missing_for"])
    path = write(name, HEIC)
    for reading in (read_image, read_header):
        with pytest.raises(UnreadableError) as caught:
            reading(path)
        assert_one_line(caught.value, str(path), 'HEIF image, which cannot be read here; pip install "semiseg[heic]"')
