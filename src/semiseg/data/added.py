"""Labels that were added later: masks of class indices for images without another label (`semiseg init --update`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from semiseg.data.dataset import Sample, Unused
from semiseg.data.scan import scan
from semiseg.errors import UserError


def with_added(samples: Sequence[Sample], folder: Path) -> tuple[tuple[Sample, ...], tuple[Unused, ...]]:
    """Gives images without a mask their mask in `folder`, if there is one of their name.

    Args:
        samples: all images, with the masks of the layout.
        folder: masks that hold class indices, with the names of the images.

    Returns:
        The images in their order, and the masks that are not used.

    Raises:
        UserError: there is no such folder, or no mask in it belongs to an image.
    """
    if not folder.is_dir():
        raise UserError(f"data.added: there is no folder {folder}; name the one that semiseg init --update wrote")
    masks = scan(folder).images
    known = {sample.name: sample for sample in samples}
    lost = tuple(path for name, path in masks.items() if name not in known)
    second = tuple(path for name, path in masks.items() if name in known and known[name].mask is not None)
    if len(lost) == len(masks):
        raise UserError(f"data.added: no mask in {folder} has the name of an image, e.g. {next(iter(known), None)}")
    kinds = (
        ("added masks that belong to no image", lost, "put the images back, or remove the masks"),
        ("added masks of images that have another mask, not used", second, "remove one of the two"),
    )
    unused = tuple(Unused(what, files, remedy) for what, files, remedy in kinds if files)
    return tuple(
        replace(one, mask=masks[one.name], indexed=True) if one.mask is None and one.name in masks else one
        for one in samples
    ), unused


def of_layout(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Returns the images whose masks were not added: a choice that was made before stays the same."""
    return tuple(sample for sample in samples if not sample.indexed)
