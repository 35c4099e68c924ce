"""Sorts images into training and validation: by the folders that people made for them, or by their names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.data.dataset import Sample, Unused
from semiseg.data.lists import Lists, rest
from semiseg.rng import folded_seed

# Words in names of folders that people use for the parts of a dataset: train2017, 01_train, val_images, TestDataset ...
_PARTS = {"train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "dev": "val",
          "validation": "val", "eval": "val", "test": "test", "testing": "test", "tests": "test", "trainset": "train",
          "valset": "val", "testset": "test"}  # fmt: skip
_FOR_TRAINING = re.compile("(un)?label+ed")  # in British English, too; if no other folder says a part


@dataclass(frozen=True)
class Parts:
    """Images sorted by their folders.

    Attributes:
        train: images that may be trained on.
        val: images with masks in the folder for validation.
        tests: images in the folder for tests.
        unused: what is used for neither training nor validation, in words for users.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...] = ()
    tests: tuple[Sample, ...] = ()
    unused: tuple[Unused, ...] = ()


def by_folder(samples: tuple[Sample, ...], given: Lists, chosen: bool) -> Parts:
    """Sorts images by their folder, if people made folders for training and for validation or test.

    Without such folders all are for training. Images in a folder for tests are not, unless a list names them.

    Args:
        samples: all images.
        given: the lists that the config names.
        chosen: whether a setting says which images are for validation. Then those in the folder for validation are as
            all others.
    """
    parts: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in samples:
        parts[_part(sample)].append(sample)
    if not parts["train"] or not (parts["val"] or parts["test"]):
        return Parts(samples)
    listed = (given.labeled, given.unlabeled, given.val)
    tests = rest(parts["test"], *listed)
    val = () if chosen else tuple(sample for sample in parts["val"] if sample.mask)
    without_mask = () if chosen else rest(parts["val"], val, *listed)
    train = ("train", "val", None) if chosen else ("train", None)
    left = (
        Unused("images without a mask in the folder for validation, not used", _images(without_mask)),
        Unused(
            "images in the folder for tests, not used",
            _images(tests),
            "a list of data.labeled, data.unlabeled or data.val may name them",
        ),
    )
    return Parts(
        tuple(sample for sample in samples if _part(sample) in train),
        val,
        tests,
        tuple(one for one in left if one.files),
    )


def _images(samples: Iterable[Sample]) -> tuple[Path, ...]:
    return tuple(sample.image for sample in samples)


def _part(sample: Sample) -> str | None:
    folders = sample.name.split("/")[:-1]
    if said := [part for folder in folders if (part := part_named(folder))]:
        return said[0]
    words = (word for folder in folders for word in _words(folder)[1])
    return "train" if any(map(_FOR_TRAINING.fullmatch, words)) else None


def part_named(folder: str) -> str | None:
    """Returns the part that the name of a folder says. A name that says two says none."""
    for words in _words(folder):
        if said := {_PARTS[word] for word in words if word in _PARTS}:
            return said.pop() if len(said) == 1 else None
    return None


def _words(folder: str) -> tuple[list[str], list[str]]:
    """Returns the words in a name, and those that capital letters separate, too: TestDataset."""
    apart = re.sub("(?<=[a-z])(?=[A-Z])", " ", folder)
    return re.split("[^a-z]+", folder.lower()), re.split("[^a-z]+", apart.lower())


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
