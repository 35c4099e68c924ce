"""Masks as people and programs write them."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from semiseg.data.dataset import MaskCoding, Sample
from semiseg.data.masks import Content, read_as, read_mask, read_pair, read_stored
from semiseg.data.read import read_size
from semiseg.errors import UserError
from semiseg.types import IGNORE, voc_color


def assert_one_line(error: Exception, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def test_mask_keeps_indices_not_colors(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2, IGNORE]], dtype=np.uint8)).convert("P")
    picture.putpalette([9, 9, 9] * 256)
    picture.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", MaskCoding(3)).tolist() == [[0, 1, 2, IGNORE]]


def test_mask_values_are_mapped_and_others_keep_their_meaning(write):
    stored = np.array([[0, 1, 2, 128, 255]], dtype=np.uint8)
    assert read_mask(write("a.png", stored), MaskCoding(3, {128: 2, 2: IGNORE, 255: 1})).tolist() == [
        [0, 1, IGNORE, 2, 1]
    ]


def test_16_bit_mask_is_mapped(write):
    stored = np.array([[0, 1000, 255, 65535]], dtype=np.uint16)
    assert read_mask(write("a.png", stored), MaskCoding(2, {1000: 1, 65535: IGNORE})).tolist() == [
        [0, 1, IGNORE, IGNORE]
    ]


def test_one_bit_mask(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", MaskCoding(2)).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "pixels", "says"),
    [
        ("rgb.png", np.full((2, 2, 3), (0, 0, 9), np.uint8), "color image and holds #000009 (100.0 %)"),
        ("rgba.png", np.zeros((2, 2, 4), np.uint8), "transparency (mode RGBA)"),
        ("la.png", np.zeros((2, 2, 2), np.uint8), "transparency (mode LA)"),
        (
            "gray.png",
            np.array([[0, 1, 7, 9]], np.uint8),
            "holds 7 (25.0 %), 9 (25.0 %), neither a class (0 to 1)",
        ),
        ("wide.png", np.array([[0, 65535]], np.uint16), "holds 65535 (50.0 %), neither"),
        ("many.png", np.arange(64, dtype=np.uint8)[None], "13 (1.6 %) and 50 more"),
        ("negative.tif", np.array([[0, -1]], np.int32), "holds -1 (50.0 %), neither"),
        ("wider.tif", np.array([[0, 65536]], np.int32), "holds 65536 (50.0 %), neither"),
        ("float.tif", np.zeros((2, 2), np.float32), "floating-point values"),
        ("lossy.jpg", np.zeros((2, 2), np.uint8), "is a JPEG that blurs"),
        ("photo.png", np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8), "more than 4096 colors"),
    ],
)
def test_masks_without_meaning_are_refused(write, name, pixels, says):
    path = write(name, pixels)
    with pytest.raises(UserError) as caught:
        read_mask(path, MaskCoding(2))
    assert_one_line(caught.value, str(path), says)


@pytest.mark.parametrize("exif", [b"", Image.Exif().tobytes()])  # with it the file has another structure
def test_webp_may_be_lossy_or_not(tmp_path, exif):
    image = Image.fromarray(np.full((8, 8, 3), 1, np.uint8))
    image.save(tmp_path / "a.webp", lossless=True, exif=exif)
    assert (read_mask(tmp_path / "a.webp", MaskCoding(2)) == 1).all()
    image.save(tmp_path / "b.webp", lossless=False, exif=exif)
    with pytest.raises(UserError, match="is a WEBP that blurs"):
        read_mask(tmp_path / "b.webp", MaskCoding(2))


def test_a_mask_has_one_page(tmp_path):
    pages = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (0, 1)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="holds 2 pages"):
        read_mask(tmp_path / "a.tif", MaskCoding(2))


def test_negative_values_can_be_named(write):
    path = write("a.tif", np.array([[0, -1]], np.int32))
    assert read_mask(path, MaskCoding(2, {-1: IGNORE})).tolist() == [[0, IGNORE]]


@pytest.mark.parametrize(("bits", "largest"), [(1, 1), (2, 3), (4, 15)])
def test_small_gray_levels_are_not_stretched(write, bits, largest):
    values = np.arange(largest + 1, dtype=np.uint8)[None].repeat(3, 0)
    path = write("a.png", small_png(values, bits))
    assert read_mask(path, MaskCoding(16)).tolist() == values.tolist()


def small_png(values: np.ndarray, bits: int) -> bytes:
    """A gray PNG of 1, 2 or 4 bits a pixel, as optimizers write them."""
    rows = [
        bytes([0]) + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in values
    ]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("most", [3, 20, 255, 1000, 65535])
def test_a_pgm_states_its_largest_value(write, most):
    values = np.array([[0, 1, 2, min(most, 300)]], np.uint16)
    body = values.astype(">u2").tobytes() if most > 255 else values.astype(np.uint8).tobytes()
    path = write("a.pgm", f"P5 4 1 {most}\n".encode() + body)
    assert read_mask(path, MaskCoding(3, {int(values[0, 3]): 2, 255: 2})).tolist() == [[0, 1, 2, 2]]


RED, BLUE, BLACK, WHITE = (200, 30, 30), (30, 60, 200), (0, 0, 0), (255, 255, 255)
COLORS = {BLACK: 0, RED: 1, BLUE: 2}


def palette_image(values: list[int], *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(np.array([values], dtype=np.uint8)).convert("L")
    image.putpalette([channel for color in colors for channel in color])
    return image


def test_a_color_mask_is_read_by_the_colors_of_classes(write):
    path = write("a.png", np.array([[BLACK, RED, BLUE, RED]], np.uint8))
    assert read_mask(path, MaskCoding(3, colors=COLORS)).tolist() == [[0, 1, 2, 1]]
    opaque = write("b.png", np.array([[(*BLACK, 255), (*RED, 255), (*BLUE, 255)]], np.uint8))
    assert read_mask(opaque, MaskCoding(3, colors=COLORS | {RED: IGNORE})).tolist() == [[0, IGNORE, 2]]
    with pytest.raises(UserError, match=r"holds #1e3cc8 \(25.0 %\), which no class has.*data.colors"):
        read_mask(path, MaskCoding(3, colors={BLACK: 0, RED: 1}))


def test_gray_colors_of_classes_are_colors(write):
    path = write("a.png", np.array([[BLACK, (1, 1, 1), BLACK]], np.uint8))
    assert read_mask(path, MaskCoding(2, colors={BLACK: 1, (1, 1, 1): 0})).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("bits", [2, 4])
def test_a_small_tiff_whose_0_is_white_is_no_index_mask(write, bits):
    """Pillow returns its negative, stretched to 255. By color it can be read."""
    path = write("a.tif", white_zero_tiff([0, 1, 1, 0], bits))
    with pytest.raises(UserError, match="TIFF's order of gray levels contradicts its values"):
        read_mask(path, MaskCoding(3))
    almost_white = 255 - 255 // (2**bits - 1)
    colors = {WHITE: 0, (almost_white,) * 3: 2}
    assert read_mask(path, MaskCoding(3, colors=colors)).tolist() == [[0, 2, 2, 0]]


def white_zero_tiff(values: list[int], bits: int) -> bytes:
    """A TIFF of one row, as fax programs and ImageJ write them."""
    packed = np.packbits(np.unpackbits(np.array(values, np.uint8)[:, None], axis=1)[:, -bits:].ravel()).tobytes()
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_three_equal_channels_are_values(write):
    path = write("a.png", np.array([[(value,) * 3 for value in (0, 1, 2, 255)]], np.uint8))
    for colors in (None, COLORS):
        assert read_mask(path, MaskCoding(3, colors=colors)).tolist() == [[0, 1, 2, IGNORE]]
    assert read_mask(path, MaskCoding(3, {255: 2})).tolist() == [[0, 1, 2, 2]]


@pytest.mark.parametrize(
    ("values", "colors", "coding", "classes"),
    [
        ([0, 1, 2], (BLACK, RED, BLUE), MaskCoding(3), [0, 1, 2]),
        ([0, 1, 2], (BLACK, RED, BLUE), MaskCoding(3, colors=COLORS), [0, 1, 2]),
        ([0, 1, 2], (RED, BLUE, BLACK), MaskCoding(3, colors=COLORS), [1, 2, 0]),  # reordered by a program
        ([0, 1, 1], (BLUE, BLACK), MaskCoding(3, colors=COLORS), [2, 0, 0]),
        ([0, 1, 2], (BLACK, (1, 2, 3), (4, 5, 6)), MaskCoding(3, colors=COLORS), [0, 1, 2]),  # colors for display only
        ([0, 1, 2], (BLACK, BLACK, BLACK), MaskCoding(3, colors=COLORS), [0, 1, 2]),  # no palette to speak of
        ([0, 1, 1], (BLACK, (2, 2, 2)), MaskCoding(3), [0, 2, 2]),  # gray 0 and 2, numbered anew
        ([0, 1, 1], (BLACK, (9, 9, 9)), MaskCoding(3, {9: 2}), [0, 2, 2]),
        ([0, 1, 2], (BLACK, (127,) * 3, WHITE), MaskCoding(3), [0, 1, 2]),  # gray levels for display
        ([0, 1, 1], (BLACK, (9,) * 3, (18,) * 3), MaskCoding(20), [0, 1, 1]),  # the same; one class does not occur
        ([0, 1, 1], (BLACK, WHITE), MaskCoding(2), [0, 1, 1]),
        ([0, 1, 1], (BLACK, WHITE), MaskCoding(2, colors={BLACK: 1, WHITE: 0}), [1, 0, 0]),
    ],
)
def test_palettes(tmp_path, values, colors, coding, classes):
    palette_image(values, *colors).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", coding).tolist() == [classes]


def test_grays_of_a_known_palette_are_values_in_any_order(tmp_path):
    """Of VOC's colors, 7 and 56 are gray, and the latter is darker."""
    palette_image([0, 7, 56], *(voc_color(index) for index in range(256))).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", MaskCoding(60)).tolist() == [[0, 7, 56]]
    light, dark = (200, 200, 200), (100, 100, 100)
    palette_image([0, 1], light, dark).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png", MaskCoding(2, colors={light: 0, dark: 1})).tolist() == [[0, 1]]
    assert read_as(read_stored(tmp_path / "b.png").content, MaskCoding(2, colors={light: 0, dark: 1})).by == "value"
    with pytest.raises(UserError, match="from dark to light"):
        read_mask(tmp_path / "b.png", MaskCoding(2))


@pytest.mark.parametrize(
    ("values", "colors", "coding", "says"),
    [
        ([0, 1, 2], (RED, BLACK, (1, 2, 3)), MaskCoding(3, colors=COLORS), "value 0 has the color #c81e1e of class 1"),
        ([0, 1, 1], (WHITE, BLACK), MaskCoding(2), "0 is #ffffff, 1 is #000000: not from dark to light"),
        ([0, 0, 0], (WHITE,), MaskCoding(2), "0 is #ffffff"),
    ],
)
def test_palettes_that_contradict_their_values(tmp_path, values, colors, coding, says):
    palette_image(values, *colors).save(tmp_path / "a.png")
    with pytest.raises(UserError) as caught:
        read_mask(tmp_path / "a.png", coding)
    assert_one_line(caught.value, str(tmp_path / "a.png"), says, "data.colors")


@pytest.mark.parametrize("values", [[0, 2, 2], [0, 1, 2]])
def test_gif_writers_drop_values_that_do_not_occur(tmp_path, values):
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "a.gif")
    assert read_mask(tmp_path / "a.gif", MaskCoding(3)).tolist() == [values]


@pytest.mark.parametrize(("bits", "rest"), [(1, 254), (8, 0)])
def test_a_tiff_whose_zero_is_white_is_read_by_its_gray_levels_or_refused(tmp_path, bits, rest):
    shown = Image.fromarray(np.uint8([[255, 0, 255, 255]])).convert("1" if bits == 1 else "L")
    shown.save(tmp_path / "a.tif", tiffinfo={262: 1})
    data = (tmp_path / "a.tif").read_bytes()
    mark = data.index(bytes([6, 1, 3, 0, 1, 0, 0, 0])) + 8  # tag 262, PhotometricInterpretation
    (tmp_path / "a.tif").write_bytes(data[:mark] + b"\0" + data[mark + 1 :])
    stored = read_stored(tmp_path / "a.tif")
    one = 255 - rest
    assert stored.pixels.tolist() == [[one, 0, one, one]]  # as the file stores them
    assert stored.content.palette == {0: (255,) * 3, one: (0,) * 3}
    with pytest.raises(UserError, match="its TIFF's order of gray levels contradicts its values"):
        read_mask(tmp_path / "a.tif", MaskCoding(2))
    coding = MaskCoding(2, colors={(255, 255, 255): 0, (0, 0, 0): 1})
    assert read_mask(tmp_path / "a.tif", coding).tolist() == [[1, 0, 1, 1]]


def test_colors_of_16_bits_are_refused(tmp_path):
    header, rows = b"\0\0\0\2\0\0\0\1\x10\4\0\0\0", zlib.compress(b"\0" + b"\0\1\xff\xff" * 2)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    parts = [len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))  # 16 bits of gray and of alpha
    with pytest.raises(UserError, match="several channels of 16 bits"):
        read_mask(tmp_path / "a.png", MaskCoding(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_values_between_their_neighbors_are_counted(write, channels):
    drawn = np.repeat([0, 2, 0, 1, 2], 4)[None].repeat(40, 0).astype(np.uint8)
    resized = np.array(Image.fromarray(drawn).resize((13, 40), Image.Resampling.BILINEAR))
    for pixels, blended in ((drawn, False), (resized, True)):
        path = write("a.png", pixels if channels == 1 else np.stack([pixels] * 3, -1))
        assert (read_stored(path).content.blended > 0.05) == blended


def test_a_mask_is_described(write, tmp_path):
    content = read_stored(write("a.png", np.array([[0, 1, 1]], np.uint8))).content
    assert (content.size, content.kind, content.counts) == ((1, 3), "8-bit gray PNG", {0: 1, 1: 2})
    palette_image([0, 2, 2], BLACK, RED, BLUE).save(tmp_path / "b.png")
    content = read_stored(tmp_path / "b.png").content
    assert (content.kind, content.palette, content.reduced) == ("palette PNG", {0: BLACK, 2: BLUE}, False)
    for path in (tmp_path / "a.png", tmp_path / "b.png", write("c.png", np.array([[RED, BLUE]], np.uint8))):
        content = read_stored(path).content
        assert Content.from_plain(json.loads(json.dumps(content.plain()))) == content


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_on_stored_pixels_are_turned_like_their_images(write, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    photo = write("a.png", np.stack([values] * 3, -1), exif=exif)
    sample = Sample("a", photo, write("m.png", values))
    image, mask = read_pair(sample, MaskCoding(6, orientation="stored"))
    assert torch.equal(image[0], mask)
    if orientation in (5, 6, 7, 8):
        with pytest.raises(UserError, match=rf"EXIF orientation \({orientation}\).*data.mask_orientation=stored"):
            read_pair(sample, MaskCoding(6))
    else:
        assert read_pair(sample, MaskCoding(6))[1].tolist() == values.tolist()


def test_image_and_mask_of_different_size_are_refused(write):
    sample = Sample("a", write("a.png", np.zeros((4, 6), np.uint8)), write("m.png", np.zeros((6, 4), np.uint8)))
    with pytest.raises(UserError) as caught:
        read_pair(sample, MaskCoding(2))
    assert_one_line(caught.value, str(sample.mask), str(sample.image), "4x6 px", "6x4")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("enough", [None, 50, 1000])
def test_turned_files_are_compared_with_their_masks_the_right_way_up(write, ramp, suffix, enough):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = write(f"a.{suffix}", np.zeros((60, 100, 3), np.uint8), exif=exif)
    sample = Sample("a", path, write("mask.png", np.zeros((100, 60), np.uint8)))
    image, mask = read_pair(sample, MaskCoding(24), enough)
    assert image.shape[1:] == read_size(path, enough)
    assert mask.shape == (100, 60) == read_size(path)
    with pytest.raises(UserError, match=r"100x60 px, but .* has 60x100 when .*EXIF orientation \(6\)"):
        read_pair(replace(sample, mask=write("b.png", np.zeros((60, 100), np.uint8))), MaskCoding(24), enough)


def test_a_pair_is_compared_at_the_sizes_on_disk(write, ramp):
    pixels = np.array(Image.fromarray(ramp(20, 24)[0]).resize((240, 200), Image.Resampling.BILINEAR))
    sample = Sample("a", write("a.jpg", pixels), write("a.png", np.zeros((200, 240), np.uint8)))
    image, mask = read_pair(sample, MaskCoding(24), 60)
    assert (image.shape[1:], mask.shape) == ((50, 60), (200, 240))
    with pytest.raises(UserError, match=r"60x50 px, but .*a.jpg has 240x200"):
        read_pair(replace(sample, mask=write("b.png", np.zeros((50, 60), np.uint8))), MaskCoding(24), 60)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((25, 31), "export the mask again at the size of the photograph, or resize it with nearest neighbor"),
        ((61, 50), "turn the mask as the photograph is, or export it again"),
        ((40, 40), "is it the mask of this photograph, as it is now"),
    ],
)
def test_masks_of_another_size_have_a_remedy(write, size, says):
    sample = Sample("a", write("a.png", np.zeros((50, 61, 3), np.uint8)), write("b.png", np.zeros(size, np.uint8)))
    with pytest.raises(UserError, match=f"they must be of one size: {says}"):
        read_pair(sample, MaskCoding(24))
