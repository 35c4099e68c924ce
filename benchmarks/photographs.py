"""Image files for benchmarks and peers: real photographs, or drawn scenes of VOC's size, in the layout of VOC."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from semiseg.errors import UserError
from semiseg.scenes import scene

IMAGES, MASKS = "JPEGImages", "SegmentationClassAug"  # the authors' names


@dataclass(frozen=True)
class Photographs:
    """A folder with images, masks of class indices, and lists of ids.

    Attributes:
        root: the folder; it holds JPEGImages, SegmentationClassAug, labeled.txt, unlabeled.txt, val.txt.
        labeled: ids of labeled images.
        unlabeled: ids of unlabeled images.
        long_side: median of the images' longer sides, px.
        real: whether the images are photographs.
    """

    root: Path
    labeled: list[str]
    unlabeled: list[str]
    long_side: int
    real: bool

    def describe(self) -> str:
        """Describes the images, for the settings of a record."""
        kind = "photographs" if self.real else "drawn scenes"
        return f"{len(self.labeled) + len(self.unlabeled)} {kind}, JPEG, long side {self.long_side} px"

    def open(self, name: str) -> tuple[Image.Image, Image.Image]:
        """Reads image and mask."""
        with Image.open(self.root / IMAGES / f"{name}.jpg") as image:
            rgb = image.convert("RGB")
        with Image.open(self.root / MASKS / f"{name}.png") as mask:
            return rgb, mask.copy()


@contextmanager
def photographs(data: Path | None, number: int) -> Iterator[Photographs]:
    """Makes a temporary folder of images: a quarter is labeled, one is for validation, the others are unlabeled.

    Args:
        data: a folder with JPEGImages and SegmentationClass (palette or gray PNG); None: scenes of 375 x 500 are drawn.
        number: the number of images; fewer if the folder has fewer.

    Raises:
        UserError: the folder holds too few images with masks.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2012"
        (root / IMAGES).mkdir(parents=True)
        (root / MASKS).mkdir()
        names = _draw(root, number) if data is None else _link(data, root, number)
        cut = len(names) // 4
        labeled, unlabeled, val = names[:cut], names[cut:-1], names[-1:]
        for name, listed in (("labeled", labeled), ("unlabeled", unlabeled), ("val", val)):
            (root / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in listed), encoding="utf-8")
            lines = (f"{IMAGES}/{stem}.jpg {MASKS}/{stem}.png\n" for stem in listed)
            (root / f"{name}_pairs.txt").write_text("".join(lines), encoding="utf-8")
        sides = []
        for name in names:
            with Image.open(root / IMAGES / f"{name}.jpg") as image:
                sides.append(max(image.size))
        yield Photographs(root, labeled, unlabeled, int(np.median(sides)), data is not None)


def street(height: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image of `height` x 2 `height` px, and its mask."""
    left, right = scene(0, 0, height), scene(0, 1, height)
    return np.concatenate([left[0], right[0]], 1), np.concatenate([left[1], right[1]], 1)


def _draw(root: Path, number: int) -> list[str]:
    names = []
    for i in range(number):
        image, mask = (values[:375] for values in scene(0, i, 500))
        names.append(f"{i:04d}")
        Image.fromarray(image).save(root / IMAGES / f"{i:04d}.jpg", quality=92)
        Image.fromarray(mask).save(root / MASKS / f"{i:04d}.png")
    return names


def _link(data: Path, root: Path, number: int) -> list[str]:
    """Links the images, and writes the masks as gray PNG, because the peers read no others."""
    masks = data / "SegmentationClass"
    names = sorted(path.stem for path in (data / IMAGES).glob("*.jpg") if (masks / f"{path.stem}.png").is_file())
    if len(names) < 8:
        raise UserError(f"--data {data}: holds {len(names)} JPEG images with a mask; at least 8 are needed")
    for name in names[:number]:
        (root / IMAGES / f"{name}.jpg").symlink_to((data / IMAGES / f"{name}.jpg").resolve())
        with Image.open(masks / f"{name}.png") as mask:
            Image.fromarray(np.array(mask)).save(root / MASKS / f"{name}.png")
    return names[:number]
