"""Pseudo-labels from an earlier run: predicted masks become labels of unlabeled images."""

import csv
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from semiseg.data.dataset import Dataset
from semiseg.data.lists import read_lines
from semiseg.data.scan import scan
from semiseg.errors import UserError
from semiseg.files import save_bytes

RELIABILITY = "reliability.csv"  # beside the masks: which images have reliable pseudo-labels
_HEAD = ("image", "reliability")


def with_pseudo_labels(dataset: Dataset, folder: Path, share: float | None = None) -> Dataset:
    """Moves unlabeled images that have a mask in `folder` to the labeled ones. Their masks hold class indices.

    Such images never count as labels: neither in the number of labeled images nor in the hash of a partition.

    Args:
        dataset: the data.
        folder: masks with the names of the images, as `semiseg pseudo-label` writes them, or `semiseg predict RUN
            IMAGES --out FOLDER`, where IMAGES is the image folder of the dataset. Overlays are left out.
        share: of the images in the folder's reliability.csv, the most reliable ones: only these are moved. None: all.

    Raises:
        UserError: there is no such folder, or no mask in it has the name of an unlabeled image; or with a share there
            is no list of reliability, or an image of it has no mask.
    """
    if not folder.is_dir():
        raise UserError(
            f"data.pseudo: there is no folder {folder}; name the one that semiseg pseudo-label or predict wrote with "
            "--out"
        )
    masks = scan(folder).images
    if share is not None:
        order = [name for name, _ in read_reliability(folder / RELIABILITY)]
        kept = order[: int(share * len(order))]
        if missing := [name for name in kept if name not in masks]:
            raise UserError(f"data.pseudo: {folder} has no mask of {missing[0]!r}, which its {RELIABILITY} names")
        masks = {name: masks[name] for name in kept}
    found = tuple(
        replace(sample, mask=masks[sample.name], pseudo=True) for sample in dataset.unlabeled if sample.name in masks
    )
    if not found:
        of_them = f", e.g. {dataset.unlabeled[0].name}" if dataset.unlabeled else ""
        among = f" among the most reliable {share:g}" if share is not None else ""
        raise UserError(f"data.pseudo: no mask in {folder}{among} has the name of an unlabeled image{of_them}")
    names = {sample.name for sample in found}
    rest = tuple(sample for sample in dataset.unlabeled if sample.name not in names)
    return replace(dataset, labeled=dataset.labeled + found, unlabeled=rest)


def as_unlabeled(dataset: Dataset) -> Dataset:
    """Returns the data as methods need them that learn stored pseudo-labels: images with one are the unlabeled pool.

    Raises:
        UserError: no image has a pseudo-label.
    """
    if not any(sample.pseudo for sample in dataset.labeled):
        raise UserError(
            "data.pseudo: the method learns pseudo-labels of an earlier run, and there are none; semiseg self-train "
            "makes them, or name a folder that semiseg pseudo-label wrote"
        )
    return replace(
        dataset,
        labeled=tuple(sample for sample in dataset.labeled if not sample.pseudo),
        unlabeled=tuple(sample for sample in dataset.labeled if sample.pseudo),
        class_counts=counts_of_labels(dataset),
    )


def counts_of_labels(dataset: Dataset) -> tuple[dict[int, int], ...] | None:
    """Returns the number of pixels of each class in each labeled image without those that have a pseudo-label."""
    if dataset.class_counts is None:
        return None
    pairs = zip(dataset.labeled, dataset.class_counts, strict=True)
    return tuple(own for sample, own in pairs if not sample.pseudo)


def write_reliability(path: Path, reliability: Iterable[tuple[str, float]]) -> None:
    """Writes images with their reliability, the most reliable first; of equal ones the first name.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_HEAD)
    table.writerows(
        (name, f"{value:.6f}") for name, value in sorted(reliability, key=lambda pair: (-round(pair[1], 6), pair[0]))
    )
    save_bytes(text.getvalue().encode(), path)


def read_reliability(path: Path) -> list[tuple[str, float]]:
    """Reads what `write_reliability` wrote.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    if not path.is_file():
        raise UserError(
            f"data.pseudo_share: there is no {path}; semiseg pseudo-label writes it for runs with engine.keep_every"
        )
    rows = list(csv.reader(line for _, line in read_lines(path, "data.pseudo_share")))
    try:
        if tuple(rows[0]) != _HEAD:
            raise ValueError(rows[0])
        return [(name, float(value)) for name, value in rows[1:]]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: is no list of reliability; semiseg pseudo-label writes one") from error
