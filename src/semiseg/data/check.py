"""Checks every file before the first step, so that a run does not fail after hours."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from semiseg.data.dataset import DataConfig, Dataset, Sample
from semiseg.data.read import fit, read_image, read_pair, read_size
from semiseg.errors import UnreadableError, UserError
from semiseg.types import IGNORE

T = TypeVar("T")
Size = tuple[int, int]  # px, (height, width)


def check(
    dataset: Dataset,
    config: DataConfig,
    full: bool = True,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Reads and checks every file that a run will read.

    Args:
        dataset: the data of the run.
        config: its long_side, crop, scale and on_unreadable.
        full: True decodes every unlabeled image, False reads only their headers. Labeled images are always decoded.
        on_image: called with the number of images that are done and the number of all images.

    Returns:
        Warnings, one sentence each. With `on_unreadable: skip` images that cannot be read are among them.

    Raises:
        UserError: a file cannot be read, an image and its mask differ in size, a mask holds a value that is no class,
            the masks of two classes hold only 0 and 255, or no image can fill a crop. The message names the first such
            file and says how many more there are.
    """
    labeled_pair = partial(_size_and_values, num_classes=len(dataset.classes), values=dataset.values)
    total, numbers = len(dataset.labeled) + len(dataset.val) + len(dataset.unlabeled), itertools.count(1)

    def count() -> None:
        on_image(next(numbers), total)

    labeled, broken = _inspect(labeled_pair, dataset.labeled, count)
    val, broken_val = _inspect(labeled_pair, dataset.val, count)
    unlabeled, broken_unlabeled = _inspect(_decoded_size if full else _size, dataset.unlabeled, count)
    skipped = [error for error in broken + broken_unlabeled if _is_skipped(error, config)]
    if errors := [error for error in broken + broken_val + broken_unlabeled if error not in skipped]:
        raise UserError(f"{errors[0]} (and {len(errors) - 1} more)" if errors[1:] else str(errors[0]))
    if not labeled or (dataset.unlabeled and not unlabeled):
        raise UserError(f"{skipped[0]}; no other image of its list can be read either")
    if all(values == {IGNORE} for _, values in val.values()):
        raise UserError(
            f"data.val: every validation mask, e.g. {dataset.val[0].mask}, is {IGNORE} (ignored) everywhere: "
            "there is nothing to measure; name images whose masks show classes"
        )
    _check_crop([size for size, _ in labeled.values()] + list(unlabeled.values()), config)
    present = frozenset[int]().union(*(values for _, values in labeled.values()))
    if len(dataset.classes) == 2 and present == {0, IGNORE}:
        raise UserError(
            f"data.values: the labeled masks, e.g. {dataset.labeled[0].mask}, hold only 0 and {IGNORE}, which means "
            f"'ignored'; if {IGNORE} is class 1 ({dataset.classes.names[1]}), set data.values: {{{IGNORE}: 1}}"
        )
    masks = [sample.mask for sample, (_, values) in labeled.items() if values == {IGNORE}]
    return _warnings(dataset, present, masks, skipped)


def _is_skipped(error: UserError, config: DataConfig) -> bool:
    return config.on_unreadable == "skip" and isinstance(error, UnreadableError)


def _warnings(
    dataset: Dataset, present: frozenset[int], ignored_masks: list[Path | None], skipped: list[UserError]
) -> list[str]:
    absent = [name for index, name in enumerate(dataset.classes.names) if index not in present]
    found = []
    if absent:
        found.append(f"No labeled mask shows {', '.join(absent)}: training cannot learn what no mask shows.")
    if ignored_masks:
        found.append(f"{len(ignored_masks)} labeled masks are ignored ({IGNORE}) everywhere, e.g. {ignored_masks[0]}.")
    if skipped:
        found.append(f"{len(skipped)} images cannot be read and are skipped, e.g. {skipped[0]}.")
    if not dataset.unlabeled:
        found.append("There are no unlabeled images: only supervised training is possible.")
    return found


def _inspect(
    read: Callable[[Sample], T], samples: Sequence[Sample], count: Callable[[], None]
) -> tuple[dict[Sample, T], list[UserError]]:
    """Calls `read` on each sample, in threads (decoding releases the GIL), and `count` after each.

    Returns the results and the errors.
    """

    def attempt(sample: Sample) -> T | UserError:
        try:
            return read(sample)
        except UserError as error:
            return error

    found: dict[Sample, T] = {}
    errors: list[UserError] = []
    with ThreadPoolExecutor() as threads:
        for sample, result in zip(samples, threads.map(attempt, samples), strict=True):
            if isinstance(result, UserError):
                errors.append(result)
            else:
                found[sample] = result
            count()
    return found, errors


def _size_and_values(sample: Sample, num_classes: int, values: dict[int, int] | None) -> tuple[Size, frozenset[int]]:
    _, mask = read_pair(sample, num_classes, values)
    counts = torch.bincount(mask.flatten(), minlength=256)
    return (mask.shape[0], mask.shape[1]), frozenset(counts.nonzero().flatten().tolist())


def _decoded_size(sample: Sample) -> Size:
    _, height, width = read_image(sample.image).shape
    return height, width


def _size(sample: Sample) -> Size:
    return read_size(sample.image)


def _check_crop(sizes: list[Size], config: DataConfig) -> None:
    """Raises a UserError if no image fills a crop even at the largest scale: every crop would be padded."""
    crop = config.crop_size
    at_most = [tuple(round(side * config.scale[1]) for side in fit(*size, config.long_side)) for size in sizes]
    height, width = max(at_most, key=lambda size: min(size[0] / crop[0], size[1] / crop[1]))
    if height < crop[0] or width < crop[1]:
        fits = [min(crop[0], height), min(crop[1], width)]
        remedy = f"use {min(fits)} or less" if isinstance(config.crop, int) else f"use {fits} or less"
        raise UserError(
            f"data.crop: {config.crop} is larger than every image at the largest scale, {config.scale[1]}; {remedy}"
        )
