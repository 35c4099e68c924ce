"""Reads corrected annotations: masks, LabelMe files or COCO files of images of a dataset."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from semiseg.data.annotated import AnnotatedConfig, Annotation, draw
from semiseg.data.catalog import Catalog
from semiseg.data.dataset import Dataset, MaskCoding, Sample, Unused
from semiseg.data.layouts import coco, labelme
from semiseg.data.masks import Content, read_mask, read_pair, read_stored
from semiseg.data.rasterize import OnImage, mask_colors
from semiseg.data.scan import scan
from semiseg.engine.pictures import background
from semiseg.engine.predict_files import COCO, is_unchanged
from semiseg.errors import UserError
from semiseg.files import mark_of
from semiseg.types import IGNORE


@dataclass(frozen=True)
class Corrected:
    """The label of an image.

    Attributes:
        sample: the image, without a mask.
        file: the file that the label comes from.
        read: returns the class index of each pixel.
    """

    sample: Sample
    file: Path
    read: Callable[[], UInt8[Tensor, "h w"]]


def read_labels(
    dataset: Dataset, root: Path, kind: str, source: Path, accept: bool, on_image: OnImage
) -> tuple[list[Corrected], list[Unused]]:
    """Reads labels of images of the dataset, in the order of the images' names.

    Args:
        dataset: the data.
        root: the root folder of the data.
        kind: masks, labelme or coco.
        source: a folder, or a COCO file.
        accept: whether predictions that nobody has changed are labels, too.
        on_image: called with the numbers of masks that are drawn and that have to be drawn.

    Returns:
        The labels, and the files that are not used.

    Raises:
        UserError: an annotation is wrong, or none belongs to an image.
    """
    every = (*dataset.labeled, *dataset.unlabeled, *dataset.val, *dataset.tests)
    samples = [replace(one, mask=None) for one in every]
    catalog = Catalog(root, samples)
    read = {"masks": _of_masks, "labelme": _of_labelme, "coco": _of_coco}[kind]
    labels, unused = read(dataset, catalog, source, accept, on_image)
    return sorted(labels, key=lambda one: one.sample.name), [one for one in unused if one.files]


def _untouched(files: list[Path]) -> Unused:
    remedy = "correct and save them, or take them as they are with --accept"
    return Unused("predictions that nobody has changed, not taken", tuple(files), remedy)


def _of_masks(
    dataset: Dataset, catalog: Catalog, source: Path, accept: bool, on_image: OnImage
) -> tuple[list[Corrected], list[Unused]]:
    found: dict[str, Path] = {}
    labels, lost, untouched = [], [], []
    for name, path in scan(source).images.items():
        images = catalog.find(name)
        if len(images) > 1:
            raise UserError(f"{path}: can be the mask of {images[0].image} or {images[1].image}; rename it")
        if not images:
            lost.append(path)
            continue
        sample = images[0]
        if sample.name in found:
            raise UserError(f"{path}: is a mask of {sample.image}, as {found[sample.name]} is; remove one")
        found[sample.name] = path
        if not accept and is_unchanged(path):
            untouched.append(path)
            continue
        labels.append(Corrected(sample, path, lambda sample=sample, path=path: _mask(sample, path, dataset)))
    if not found:
        raise UserError(f"--masks {source}: no mask has the name of an image, e.g. {dataset.labeled[0].image}")
    return labels, [_untouched(untouched), Unused("files that are no masks of images, not used", tuple(lost))]


def _mask(sample: Sample, path: Path, dataset: Dataset) -> UInt8[Tensor, "h w"]:
    """Reads a mask of class indices, or of the colors of the classes.

    Raises:
        UserError: it does not fit its image, its values may mean what `data.values` says, or it is black and white.
    """
    plain = MaskCoding(len(dataset.classes), None, mask_colors(dataset.classes), "upright")
    label = read_pair(replace(sample, mask=path), plain)[1]
    if dataset.coding.values and mark_of(path) is None:
        try:
            other = read_mask(path, dataset.coding)
        except UserError:  # the values of the folder's masks do not explain this one
            other = label
        if not torch.equal(label, other):
            raise UserError(
                f"{path}: its values may be class indices, as semiseg writes them, or those of data.values "
                f"{dataset.coding.values}; put masks of such values into the folder of the masks (data.masks)"
            )
    if _is_black_and_white(read_stored(path).content) and mark_of(path) is None:
        raise UserError(
            f"{path}: holds 0 and {IGNORE} alone, and {IGNORE} does not count here; save the object as the index of "
            f"its class, e.g. 1 ({dataset.classes.names[1]})"
        )
    return label


def _is_black_and_white(content: Content) -> bool:
    """Returns whether a mask stores 0 and 255 alone, and no palette shows that 255 is no object."""
    values = {key[0] if isinstance(key, tuple) and len({*key}) == 1 else key for key in content.counts}
    return values == {0, IGNORE} and all(len({*color}) == 1 for color in content.palette.values())


def _of_labelme(
    dataset: Dataset, catalog: Catalog, source: Path, accept: bool, on_image: OnImage
) -> tuple[list[Corrected], list[Unused]]:
    paths = [path for path in labelme.json_files(source) if path.name != COCO or not is_unchanged(path)]
    untouched = [] if accept else [path for path in paths if is_unchanged(path)]
    left = [path for path in paths if path not in untouched]
    config = labelme.Config(root=catalog.root, annotations=source)
    if not left:
        return [], [_untouched(untouched)]
    annotations, others, _ = labelme.read(left, source, catalog, config)
    return _drawn(annotations, dataset, config, on_image), [_untouched(untouched), *others]


def _of_coco(
    dataset: Dataset, catalog: Catalog, source: Path, accept: bool, on_image: OnImage
) -> tuple[list[Corrected], list[Unused]]:
    if not accept and is_unchanged(source):
        return [], [_untouched([source])]
    annotations, missing = coco.read(source, catalog)
    if not annotations:
        raise UserError(f"--coco {source}: none of its {len(missing)} images is one of this folder")
    config = coco.Config(root=catalog.root, annotations=source)
    empty = [one.sample.image for one in annotations if not one.things]
    labels = _drawn([one for one in annotations if one.things], dataset, config, on_image)
    what = "images without any object in the COCO file, which count as not labeled"
    return labels, [
        Unused(what, tuple(empty)),
        Unused("images of the COCO file that are not here", tuple(map(Path, missing))),
    ]


def _drawn(
    annotations: list[Annotation], dataset: Dataset, config: AnnotatedConfig, on_image: OnImage
) -> list[Corrected]:
    """Draws annotations with the classes of the dataset. Pixels in no object are background, if there is one."""
    fill = next(iter(background(dataset.classes)), IGNORE)
    files = draw(annotations, dataset.classes, fill, config, on_image)
    coding = MaskCoding(len(dataset.classes))
    return [
        Corrected(one.sample, Path(one.where), lambda path=files[one.sample.name]: read_mask(path, coding))
        for one in annotations
    ]
