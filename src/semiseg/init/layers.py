"""Makes one index mask of several files that show one class each."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from semiseg.data.masks import read_stored
from semiseg.errors import UserError
from semiseg.files import save_image
from semiseg.init.colors import colors


def merge(
    layers: Mapping[str, Mapping[str, Sequence[Path]]],
    out: Path,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[str], int]:
    """Writes `<out>/<image name>.png` for each image: 0 where no file shows its class, and the class indices from 1 on.

    Where two files show their classes in one pixel, the class with fewer pixels in all files counts.

    Args:
        layers: image name -> class name -> files; 0 in a file is "not this class", any one other value is "this class".
            Several files of a class show its objects.
        out: the folder of the masks.
        on_image: called with the number of images that are done and the number of all images.

    Returns:
        The names of the classes from index 1 on, and the number of pixels that several files show.

    Raises:
        UserError: a file holds more than two values, it may be inverted, or the files of an image differ in size.
    """
    pixels: Counter[str] = Counter()
    with ThreadPoolExecutor() as threads:
        files = [(name, path) for each in layers.values() for name, paths in each.items() for path in paths]
        for (name, _), count in zip(files, threads.map(lambda file: _shown(file[1])[1], files), strict=True):
            pixels[name] += count
    names = sorted(pixels)
    largest_first = sorted(names, key=lambda name: (-pixels[name], name))
    overlaps = 0
    for number, (image, each) in enumerate(layers.items(), 1):
        index, times = _index(each, names, largest_first)
        overlaps += int((times > 1).sum())
        picture = Image.fromarray(index)
        picture.putpalette([value for color in colors(len(names) + 1, background=True) for value in color])
        path = out / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(picture, path)
        on_image(number, len(layers))
    return names, overlaps


def _index(
    files: Mapping[str, Sequence[Path]], names: Sequence[str], order: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index mask of an image, and in how many classes the files show each pixel."""
    index = times = np.zeros(0, dtype=np.uint8)
    for name in order:
        value = names.index(name) + 1
        for path in files.get(name, ()):
            shown, _ = _shown(path)
            if not times.size:
                index, times = np.zeros(shown.shape, dtype=np.uint8), np.zeros(shown.shape, dtype=np.uint8)
            if shown.shape != times.shape:
                raise UserError(f"{path}: has another size than the other masks of the same image")
            times += shown & (index != value)
            index[shown] = value
    return index, times


def _shown(path: Path) -> tuple[np.ndarray, int]:
    """Returns where a file shows its class, and in how many pixels."""
    stored = read_stored(path)
    values = [key if isinstance(key, int) else max(key) for key in stored.content.counts]
    if len([value for value in values if value]) > 1:
        raise UserError(
            f"{path}: holds {len(values)} values; a mask of one class has two, 0 and another: save it without soft "
            "edges"
        )
    palette = stored.content.palette
    black = (0, 0, 0)
    if palette.get(0) != black and black in palette.values():
        raise UserError(
            f"{path}: stores black as another value than 0, so its class may be black or the other color; save it as "
            "gray PNG, black where the class is not"
        )
    pixels = stored.pixels if stored.pixels.ndim == 2 else stored.pixels.max(2)
    shown = pixels > 0
    return shown, int(shown.sum())
