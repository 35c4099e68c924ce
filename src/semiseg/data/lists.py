"""Reads split lists in the forms that published repositories use, and makes a dataset of three lists.

A line is an id (`2007_000032`), with or without extension, a path below the root or below the image folder
(`leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png`, `train/0001TP_006810`), or an image and its mask with
a space, a tab or a comma between them (`JPEGImages/x.jpg SegmentationClassAug/x.png`; a leading slash is allowed). A
path on this machine is understood too if it leads below the root. Blank lines are ignored.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semiseg.data.catalog import CONTROL, Catalog
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample, Unused
from semiseg.data.formats import SUFFIXES
from semiseg.errors import UserError
from semiseg.files import read_text
from semiseg.types import ClassTable

_MOST_BYTES, _LONGEST_LINE = 2**26, 8192  # a line has room for two paths of 4096 characters, the longest on Linux


@dataclass(frozen=True)
class Lists:
    """The lists that a config names. A list that it does not name is None."""

    labeled: tuple[Sample, ...] | None
    unlabeled: tuple[Sample, ...] | None
    val: tuple[Sample, ...] | None


def read_lists(config: DataConfig, catalog: Catalog, listed_masks: bool) -> Lists:
    """Reads the lists that `config` names.

    Args:
        config: paths of lists are relative to its root unless they are absolute.
        catalog: finds the images of ids.
        listed_masks: whether a mask that a list names beside an image replaces the layout's own mask. Those of the
            unlabeled list never do, and need not exist.

    Raises:
        UserError: as `read_list`.
    """
    paths = {key: getattr(config, key) for key in ("labeled", "unlabeled", "val")}
    masks = {"labeled": listed_masks, "unlabeled": False, "val": listed_masks}  # unlabeled: no mask is ever read
    return Lists(**{
        key: None if path is None else read_list(config.root / path, catalog, masks[key], setting=f"data.{key}")
        for key, path in paths.items()
    })  # fmt: skip


def read_list(path: Path, catalog: Catalog, listed_masks: bool, setting: str) -> tuple[Sample, ...]:
    """Reads the samples that the list at `path` names, in its order.

    Raises:
        UserError: the list is missing or empty, or a line names no image, several images, an image of an earlier line,
            or a path outside the root.
    """
    seen: dict[str, int] = {}
    samples = []
    for number, line in read_lines(path, setting):
        try:
            sample = _resolve(line, catalog, listed_masks)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if sample.name in seen:
            raise UserError(f"{path}:{number}: {sample.name!r} is on line {seen[sample.name]} already; remove one")
        seen[sample.name] = number
        samples.append(sample)
    if not samples:
        raise UserError(f"{path}: {setting} is empty; give one image id a line")
    return tuple(samples)


def read_lines(path: Path, setting: str, most: int = _MOST_BYTES) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file that are not blank, stripped, with their numbers (from 1).

    Raises:
        UserError: the file is missing, is no text, has more than `most` bytes, or has a line of more than 8192
            characters.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file ({setting}; relative paths start at data.root)")
    for number, line in enumerate(io.StringIO(read_text(path, setting, most), newline=None), start=1):
        if len(line) > _LONGEST_LINE:  # `_resolve` tries each gap, so a long line takes long
            raise UserError(f"{path}:{number}: has {len(line)} characters; {setting} has one entry a line")
        if line.strip():
            yield number, line.strip()


def rest(samples: Iterable[Sample], *taken: Sequence[Sample] | None) -> tuple[Sample, ...]:
    """Returns the samples that are in none of the lists `taken`."""
    names = {sample.name for samples in taken for sample in samples or ()}
    return tuple(sample for sample in samples if sample.name not in names)


def assemble(
    labeled: tuple[Sample, ...],
    unlabeled: tuple[Sample, ...],
    val: tuple[Sample, ...],
    classes: ClassTable,
    coding: MaskCoding,
    mask_remedy: str,
    unused: tuple[Unused, ...] = (),
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Makes a dataset of three lists, after checking that they share no image and have the masks that they need.

    Args:
        labeled: training samples with masks.
        unlabeled: the unlabeled pool; it may be empty.
        val: validation samples with masks.
        classes: the class table.
        coding: the meaning of the masks.
        mask_remedy: what a user can do about a missing mask, for the message.
        unused: files that are not used.
        notes: what is worth knowing, one sentence each.

    Raises:
        UserError: two lists share an image, a labeled or validation image has no mask, or one of these lists is empty.
    """
    lists = {"data.labeled": labeled, "data.unlabeled": unlabeled, "data.val": val}
    remedies = {
        ("data.labeled", "data.unlabeled"): "leave data.unlabeled out to take every other image",
        ("data.labeled", "data.val"): "a training image cannot be used for validation: take it off one list",
        ("data.unlabeled", "data.val"): "a training image cannot be used for validation: take it off one list",
    }
    for (one, other), remedy in remedies.items():
        names = {sample.name for sample in lists[one]}
        common = [sample.name for sample in lists[other] if sample.name in names]
        if common:
            raise UserError(f"{one} and {other} share {common[0]!r} ({len(common)} images in all); {remedy}")
    for key in ("data.labeled", "data.val"):
        if not lists[key]:
            raise UserError(f"{key}: no image with a mask is left for it; label more images or give a list")
        missing = [sample.name for sample in lists[key] if sample.mask is None]
        if missing:
            raise UserError(f"{key}: {missing[0]!r} has no mask ({len(missing)} images in all); {mask_remedy}")
    return Dataset(labeled, unlabeled, val, classes, coding, unused, notes)


def _resolve(line: str, catalog: Catalog, listed_masks: bool) -> Sample:
    """Finds the sample that a line names: the whole line is an id, or an id stands before a gap and a mask after it."""
    gaps = [(line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r"\s*,\s*|\s+", line)]
    if not listed_masks:  # nobody looks for the mask, so at least the image must look like a file
        gaps = [(image, mask) for image, mask in gaps if Path(image).suffix.lower() in SUFFIXES]
    for text, mask in [(line, None), *gaps]:
        found = catalog.find(text)
        if len(found) > 1:
            raise UserError(f"{text!r} can be {found[0].name!r} or {found[1].name!r}; write the longer path")
        if found and mask and listed_masks:
            return replace(found[0], mask=_listed_mask(mask, catalog), line=line, indexed=False)
        if found:
            return found[0]
    _refuse_leaving(line)
    close = catalog.closest(re.split(r"[\s,]", line)[0])
    hint = f"did you mean {close!r}?" if close else "ids are paths below the image folder, extension or not; no header"
    raise UserError(f"no image {line!r} below {catalog.root}; {hint}")


def _listed_mask(text: str, catalog: Catalog) -> Path:
    path = text.replace("\\", "/")
    places = () if CONTROL.search(text) else (catalog.root / path.lstrip("/"), Path(path))
    for mask in places:
        if catalog.is_below_root(mask) and os.path.isfile(mask):  # noqa: PTH113 - False for a name that is too long
            return mask
    _refuse_leaving(text)
    raise UserError(f"no mask {text!r} below {catalog.root}; remove the second column to use the layout's own masks")


def _refuse_leaving(text: str) -> None:
    if ".." in re.split(r"[\s,/\\]", text):
        raise UserError(f"{text!r} leaves data.root; remove the '..'")
