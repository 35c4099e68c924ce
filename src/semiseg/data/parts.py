"""Sorts images into training and validation: by the folders that people made for them, or by their names."""

import re
from collections import defaultdict
from collections.abc import Sequence

from semiseg.data.dataset import Sample, Unused
from semiseg.data.lists import rest
from semiseg.rng import folded_seed

# Words in names of folders that people use for the parts of a dataset: train2017, 01_train, val_images ...
_PARTS = {"train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "dev": "val",
          "validation": "val", "eval": "val", "test": "test", "testing": "test"}  # fmt: skip


def by_folder(samples: tuple[Sample, ...]) -> tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[Unused, ...]]:
    """Sorts images by their folder, if people made folders for training and for validation or test.

    Returns:
        Images for training, images with masks for validation, and those that are used for neither. Without such
        folders all are for training.
    """
    parts: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in samples:
        parts[_part(sample)].append(sample)
    if not parts["train"] or not (parts["val"] or parts["test"]):
        return samples, (), ()
    val = tuple(sample for sample in parts["val"] if sample.mask)
    left = {
        "images without a mask in the folder for validation, not used": (rest(parts["val"], val), ""),
        "images in the folder for tests, not used": (parts["test"], "data.val or data.val_fraction make them usable"),
    }
    unused = tuple(
        Unused(what, tuple(one.image for one in found), remedy) for what, (found, remedy) in left.items() if found
    )
    return tuple(sample for sample in samples if _part(sample) in ("train", None)), val, unused


def _part(sample: Sample) -> str | None:
    folders = sample.name.split("/")[:-1]
    return next((part for folder in folders if (part := part_named(folder))), None)


def part_named(folder: str) -> str | None:
    """Returns the part that the name of a folder says. A name that says two says none."""
    said = {_PARTS[word] for word in re.split("[^a-z]+", folder.lower()) if word in _PARTS}
    return said.pop() if len(said) == 1 else None


def held_out(samples: Sequence[Sample], fraction: float, *taken: Sequence[Sample] | None) -> tuple[Sample, ...]:
    """Chooses a share of `samples`, at least one, by their names alone: the first ones in an order that names give.

    So a new image changes the choice little, and lists of other images change nothing.

    Args:
        samples: all images with masks.
        fraction: the share of `samples`.
        taken: lists of images that cannot be chosen. The next ones in the order take their places.
    """
    ranked = sorted(samples, key=lambda sample: folded_seed(0, "held out", sample.name))
    chosen = rest(ranked, *taken)[: max(1, round(fraction * len(ranked)))]
    return tuple(sorted(chosen, key=lambda sample: sample.name))
