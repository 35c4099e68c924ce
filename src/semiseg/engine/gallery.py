"""Keeps pictures of the newest evaluation in the run directory, for reports, which read no images and no networks.

The same validation images each time, spread evenly over the list, and those with the lowest mIoU: the image, its mask
and what each network predicts, at a reduced size. At the end of a run also the hardest and easiest unlabeled images.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from semiseg.data.dataset import Dataset
from semiseg.data.loader import EvalItem
from semiseg.data.read import fit, read_image, resize_image, resize_mask
from semiseg.engine.pictures import background, beside_mask
from semiseg.engine.runtime import Runtime
from semiseg.errors import UnreadableError
from semiseg.files import replacing, save_image
from semiseg.metrics import Scores, mean_iou
from semiseg.runs import Run, mean_hardness, write_atomically
from semiseg.types import IGNORE, ClassTable, voc_color

SIDE = 320  # px, the longer side of a picture
_QUALITY = 85  # of JPEG


@dataclass(frozen=True)
class _Drawn:
    """A validation image with its predictions, at the size of a picture, on the CPU."""

    index: int
    miou: dict[str, float]
    image: UInt8[Tensor, "3 h w"]
    truth: UInt8[Tensor, "h w"]
    predictions: dict[str, UInt8[Tensor, "h w"]]


@dataclass(frozen=True)
class _Unread:
    """A validation image whose scores the host has not read yet."""

    item: EvalItem
    predictions: dict[str, UInt8[Tensor, "h w"]]
    miou: Float[Tensor, " n"]


class Gallery:
    """Collects the pictures of one evaluation and writes them.

    The host reads the scores of an image after the next one was started, so that it does not wait for a GPU.

    Args:
        dataset: names of the images, and the classes.
        number: number of images that every evaluation shows, and of those with the lowest mIoU; 0: no picture.
        runtime: the processes; each collects from its own images.
    """

    def __init__(self, dataset: Dataset, number: int, runtime: Runtime) -> None:
        self.dataset, self.number, self.runtime = dataset, number, runtime
        count = min(number, len(dataset.val))
        self.always = {index * len(dataset.val) // count for index in range(count)}
        self.chosen: list[_Drawn] = []
        self.worst: list[_Drawn] = []  # of the others
        self.unread: _Unread | None = None

    def add(
        self, item: EvalItem, predictions: Mapping[str, Int[Tensor, "h w"]], matrices: Mapping[str, Int[Tensor, "c c"]]
    ) -> None:
        """Takes an image with what the networks predict for it, and its confusion matrices."""
        if not self.number:
            return
        miou = torch.stack([mean_iou(matrix) for matrix in matrices.values()])
        small = {name: label.to(torch.uint8) for name, label in predictions.items()}
        before, self.unread = self.unread, _Unread(item, small, miou)
        self._read(before)

    def write(self, run: Run, done: int, scores: Mapping[str, Scores], last: bool) -> None:
        """Writes the pictures and the confusion matrices into the run directory, in place of those before.

        Args:
            run: the run directory. Only the first process writes to it.
            done: number of completed steps.
            scores: the scores of the networks.
            last: whether this is the last evaluation of the run.

        Raises:
            UserError: a file cannot be written.
        """
        self._read(self.unread)
        everyone = self.runtime.gather_lists([*self.chosen, *self.worst])
        if not self.runtime.is_main:
            return
        worst = {one.index for one in sorted(everyone, key=_rank)[: self.number]}
        shown = sorted((one for one in everyone if one.index in self.always | worst), key=lambda one: one.index)
        aside = run.pictures.with_name(f".{run.pictures.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        unlabeled = _unlabeled(run, self.dataset, self.number, aside) if last and self.number else []
        index = {
            "step": done,
            "networks": {name: {"confusion": each.confusion} for name, each in scores.items()},
            "images": [self._save(one, one.index in worst, aside) for one in shown],
            "unlabeled": unlabeled,
        }
        write_atomically(aside / "index.json", json.dumps(index) + "\n")
        shutil.rmtree(run.pictures, ignore_errors=True)
        with replacing(run.pictures) as place:
            aside.replace(place)

    def overlays(self, most: int) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draws what the first network predicts, and beside it the mask, of a few images that every evaluation shows.

        They are images of this process. To be called after `write`.
        """
        shown = sorted(self.chosen, key=lambda one: one.index)[:most]
        return {
            self.dataset.val[one.index].name: beside_mask(
                one.image, next(iter(one.predictions.values())), one.truth, self.dataset.classes
            )
            for one in shown
        }

    def _read(self, unread: _Unread | None) -> None:
        """Draws an image if it is always shown, or is one of the worst so far."""
        if unread is None:
            return
        index, values = unread.item.index, unread.miou.tolist()
        mious = {name: value if value == value else 1.0 for name, value in zip(unread.predictions, values, strict=True)}
        if index in self.always:
            self.chosen.append(_drawn(unread, mious))
        elif len(self.worst) < self.number or mious[next(iter(mious))] < _rank(self.worst[-1])[0]:
            self.worst = sorted([*self.worst, _drawn(unread, mious)], key=_rank)[: self.number]

    def _save(self, one: _Drawn, worst: bool, folder: Path) -> dict[str, Any]:
        """Writes the files of a validation image. Returns what the index says about it."""
        masks = {"truth": one.truth, **one.predictions}
        files = {name: f"{one.index:05}-{number}.png" for number, name in enumerate(masks)}
        for name, mask in masks.items():
            save_image(_colored(mask, self.dataset.classes), folder / files[name], fast=True)
        photo = f"{one.index:05}.jpg"
        _save_photo(one.image, folder / photo)
        return {
            "name": self.dataset.val[one.index].name,
            "worst": worst,
            "image": photo,
            "truth": files.pop("truth"),
            "predictions": files,
            "miou": {name: round(value, 4) for name, value in one.miou.items()},
        }


def _rank(one: _Drawn) -> tuple[float, int]:
    """Orders images by the mIoU of the first network; of equal ones the earlier in the list comes first."""
    return next(iter(one.miou.values())), one.index


def _drawn(unread: _Unread, miou: dict[str, float]) -> _Drawn:
    item = unread.item
    size = _size(*item.mask.shape)
    return _Drawn(
        index=item.index,
        miou=miou,
        image=resize_image(item.image, size),
        truth=resize_mask(item.mask, size),
        predictions={name: resize_mask(label, size).cpu() for name, label in unread.predictions.items()},
    )


def _size(height: int, width: int) -> tuple[int, int]:
    """Returns the size of a picture: small images keep theirs."""
    return fit(height, width, min(SIDE, max(height, width)))


def _colored(mask: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Makes a palette image of class indices. Ignored pixels have the light color of VOC's outlines.

    Pixels of the background are transparent: over the photograph a mask leaves them as they are.
    """
    palette = [*classes.colors, *[(0, 0, 0)] * (IGNORE - len(classes)), voc_color(IGNORE)]
    image = Image.fromarray(mask.numpy())
    image.putpalette([value for color in palette for value in color])
    if unseen := background(classes):
        image.info["transparency"] = unseen[0]
    return image


def _save_photo(image: UInt8[Tensor, "3 h w"], path: Path) -> None:
    with replacing(path) as aside:
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(aside, "JPEG", quality=_QUALITY)


def _unlabeled(run: Run, dataset: Dataset, number: int, folder: Path) -> list[dict[str, Any]]:
    """Writes the hardest and the easiest unlabeled images, by their mean hardness in the second half of the run."""
    means = mean_hardness(run.hardness_table())
    order = sorted(means, key=lambda index: (means[index], index))
    told = []
    for index in dict.fromkeys([*order[:number], *order[-number:]]):  # a small pool has fewer
        try:
            image = read_image(dataset.unlabeled[index].image, SIDE)
        except UnreadableError:  # training has skipped it or will say so
            continue
        photo = f"unlabeled-{index:05}.jpg"
        _save_photo(resize_image(image, _size(image.shape[1], image.shape[2])), folder / photo)
        told.append({"name": dataset.unlabeled[index].name, "image": photo, "hardness": round(means[index], 4)})
    return told
