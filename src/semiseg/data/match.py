"""Finds the mask of each image by its name."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from semiseg.data.catalog import folded
from semiseg.data.dataset import Unused


def match(
    images: Mapping[str, Path], masks: Mapping[str, Path], suffix: str | None
) -> tuple[dict[str, Path], tuple[Unused, ...]]:
    """Finds the mask of each image.

    A mask belongs to the image that has its name: the path below its folder without extension. If there is none, it
    belongs to the image whose name differs in upper and lower case only (or in how accents are written), unless several
    do.

    Args:
        images: name -> file.
        masks: name -> file.
        suffix: what the names of masks may have more than those of images at their end, e.g. `_mask`.

    Returns:
        Image name -> mask, and the masks that belong to no image.

    Example:
        >>> images = {"a/1": Path("a/1.jpg"), "a/2": Path("a/2.jpg")}
        >>> found, unused = match(images, {"a/1_mask": Path("m/1_mask.png"), "A/2": Path("A/2.png")}, "_mask")
        >>> {name: str(path) for name, path in found.items()}, unused
        ({'a/1': 'm/1_mask.png', 'a/2': 'A/2.png'}, ())
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in images:
        alike[folded(name)].append(name)
    found: dict[str, Path] = {}
    left: dict[str, Path] = {}
    for name, path in sorted(masks.items(), key=lambda item: item[0] not in images):  # exact names first
        wanted = name if name in images or not suffix else without_suffix(name, suffix)
        candidates = [wanted] if wanted in images else alike[folded(wanted)]
        if len(candidates) == 1 and candidates[0] not in found:
            found[candidates[0]] = path
        else:
            left[name] = path
    if not left:
        return found, ()
    what = f"masks that belong to no image (of {len(masks)})"
    return found, (Unused(what, tuple(left.values()), remedy(images, left, found)),)


def without_suffix(name: str, suffix: str) -> str:
    """Removes `suffix` from the end of a name, in upper or lower case."""
    return name[: -len(suffix)] if folded(name[-len(suffix) :]) == folded(suffix) else name


def remedy(images: Mapping[str, Path], masks: Mapping[str, Path], others: Collection[str] = ()) -> str:
    """Says why masks have no image of their name, and what to do.

    Args:
        images: name -> file.
        masks: name -> file, those without an image.
        others: the images that have another mask.
    """
    found = rests(images, masks)
    per_image = Counter(image for image, _ in found.values())
    common = Counter(rest for _, rest in found.values()).most_common(1)
    if any(number > 1 or image in others for image, number in per_image.items()):
        return (
            "they are several for one image, maybe one for each class or object; semiseg wants one mask for each "
            "image, whose values are class indices: merge them"
        )
    if common and 2 * common[0][1] > len(masks):
        rest = common[0][0]
        written = rest if re.fullmatch(r"[\w.-]+", rest) else f"\"'{rest}'\""  # quoted for the shell and for YAML
        return f"their names have {rest!r} more at the end; set data.mask_suffix={written}"
    by_file = defaultdict(list)
    for name in images:
        by_file[folded(name.rpartition("/")[2])].append(name)
    for name, path in masks.items():
        elsewhere = by_file[folded(name.rpartition("/")[2])]
        if elsewhere:
            wanted = f"{elsewhere[0]}{path.suffix}"
            return f"the image of the same name is in another folder: move {name}{path.suffix} to {wanted}"
    return (
        "a mask has the name of its image; rename them, or name the pairs in lists for data.labeled and data.val (on "
        "each line an image and its mask)"
    )


def rests(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Finds masks whose name begins with that of an image: mask name -> (image name, what follows).

    The longest such image counts: `im10_mask` belongs to `im10`, not to `im1`. Numbers are not cut: `001` does not
    begin with `0`.
    """
    names = {folded(name): name for name in images}
    found = {}
    for mask in masks:
        for end in range(len(mask) - 1, 0, -1):
            if mask[end - 1 : end + 1].isdecimal():
                continue
            if (image := names.get(folded(mask[:end]))) is not None:
                found[mask] = (image, mask[end:])
                break
    return found


def numbered(names: Collection[str], others: Iterable[str]) -> dict[str, str]:
    """Finds those of `others` that are one of `names` with a number at the end: the masks of further objects.

    Example:
        >>> numbered(["a_mask"], ["a_mask", "a_mask_1", "a_mask (2)", "a_mask_new"])
        {'a_mask_1': 'a_mask', 'a_mask (2)': 'a_mask'}
    """
    known = {folded(name): name for name in names}
    found = {}
    for other in others:
        base = known.get(folded(re.sub(r"[\s_.-]*\(?\d+\)?$", "", other)))
        if base is not None and folded(base) != folded(other):
            found[other] = base
    return found
