"""Pseudo-labels from an earlier run: masks that `semiseg predict` wrote become labels of unlabeled images."""

from dataclasses import replace
from pathlib import Path

from semiseg.data.dataset import Dataset
from semiseg.data.scan import scan
from semiseg.errors import UserError


def with_pseudo_labels(dataset: Dataset, folder: Path) -> Dataset:
    """Moves unlabeled images that have a mask in `folder` to the labeled ones. Their masks hold class indices.

    Such images never count as labels: neither in the number of labeled images nor in the hash of a partition.

    Args:
        dataset: the data.
        folder: masks with the names of the images, as `semiseg predict RUN IMAGES --out FOLDER` writes them, where
            IMAGES is the image folder of the dataset. Overlays are left out.

    Raises:
        UserError: there is no such folder, or no mask in it has the name of an unlabeled image.
    """
    if not folder.is_dir():
        raise UserError(f"data.pseudo: there is no folder {folder}; name the one that semiseg predict wrote with --out")
    masks = scan(folder).images
    found = tuple(
        replace(sample, mask=masks[sample.name], pseudo=True) for sample in dataset.unlabeled if sample.name in masks
    )
    if not found:
        of_them = f", e.g. {dataset.unlabeled[0].name}" if dataset.unlabeled else ""
        raise UserError(f"data.pseudo: no mask in {folder} has the name of an unlabeled image{of_them}")
    names = {sample.name for sample in found}
    rest = tuple(sample for sample in dataset.unlabeled if sample.name not in names)
    return replace(dataset, labeled=dataset.labeled + found, unlabeled=rest)
