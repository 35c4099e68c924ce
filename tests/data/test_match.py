from pathlib import Path

import pytest

from semiseg.data.match import match, remedy


def files(*names: str, suffix: str = ".png") -> dict[str, Path]:
    return {name: Path(f"{name}{suffix}") for name in names}


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "found", "left"),
    [
        ("a b", "a c", None, "a", "c"),
        ("IMG_1 IMG_2", "img_1 IMG_2", None, "IMG_1 IMG_2", ""),
        ("a A", "a", None, "a", ""),
        ("x/a x/A", "X/a", None, "", "X/a"),  # both differ in case only
        ("a", "a A", None, "a", "A"),
        ("a b", "a_mask b", "_mask", "a b", ""),
        ("a b", "a_mask a b_MASK", "_mask", "a b", "a_mask"),
        ("\u00e9t\u00e9 b", "e\u0301te\u0301 b", None, "b \u00e9t\u00e9", ""),  # macOS splits accents off
        ("a", "a.jpg", ".jpg", "a", ""),
        ("d/a", "a", None, "", "a"),
    ],
)
def test_match(images, masks, suffix, found, left):
    pairs, unused = match(files(*images.split()), files(*masks.split()), suffix)
    assert " ".join(sorted(pairs)) == found
    assert sorted(
        path.stem if "/" not in str(path) else str(path)[:-4] for one in unused for path in one.files
    ) == sorted(left.split())


def test_unused_masks_are_counted():
    _, (unused,) = match(files("a", "b", "c"), files("a", "b_label", "c_label"), None)
    assert str(unused) == (
        "masks that belong to no image (of 3): 2, e.g. b_label.png; their names have '_label' more at the end; set "
        "data.mask_suffix=_label"
    )


@pytest.mark.parametrize(
    ("images", "masks", "says"),
    [
        ("im1 im10", "im1_mask im10_mask", "data.mask_suffix=_mask"),
        ("im1 im2", "im1.jpg im2.jpg", "data.mask_suffix=.jpg"),
        ("im1 im2", "im1-disc im1-box im2-disc im2-box", "several for one image"),
        ("0 1", "000 001", "rename them"),
        ("a b", "a(1) b(1)", "data.mask_suffix=\"'(1)'\""),
        ("camA/a1 camB/b1", "a1 b1", "move a1.png to camA/a1.png"),
        ("a b", "x y", "rename them, or name the pairs in lists"),
    ],
)
def test_remedies(images, masks, says):
    assert says in remedy(files(*images.split()), files(*masks.split()))
