"""Decoding, resizing and cropping an image: the libraries side by side.

All libraries use one thread and the same files. "semiseg" is what this package does; a ratio is another library's time
over semiseg's time. If a library may give other pixels, the differences are in the results, too.
opencv-python-headless, simplejpeg and torchcodec are measured if they are installed:
python benchmarks/inputs.py [--data VOC]
"""

import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import common
import numpy as np
import torch
from photographs import IMAGES, MASKS, Photographs, photographs
from PIL import Image, ImageEnhance, ImageFilter, ImageOps, features
from torch import Tensor
from torchvision import io
from torchvision.transforms.v2 import functional as tv

from semiseg.augment.ops import OPERATIONS
from semiseg.data import weak
from semiseg.data.dataset import MaskCoding
from semiseg.data.masks import read_mask
from semiseg.data.read import read_image, resize_image
from semiseg.types import voc_color

OPTIONAL = {"opencv": "cv2", "simplejpeg": "simplejpeg", "torchcodec": "torchcodec.decoders"}
BILINEAR = Image.Resampling.BILINEAR

Libraries = dict[str, ModuleType]
Decode = Callable[[Path], Tensor]
Make = Callable[[int], Tensor]  # takes the number of an image


def measure(run: common.Settings, results: common.Results) -> None:
    """Times all libraries on the same images."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    number, crop = (4, 65) if run.tiny else (32, 321)
    with photographs(run.data, number) as photos, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torchvision's decoders
        libraries = installed(results)
        turbo = features.version("libjpeg_turbo") or "none"
        results.settings |= {"images": photos.describe(), "crop, px": crop, "threads": 1, "Pillow's libjpeg": turbo}
        paths = [photos.root / IMAGES / f"{name}.jpg" for name in photos.unlabeled]
        images = [read_image(path) for path in paths]
        decode_images(results, paths, libraries)
        decode_masks(results, palette_masks(photos, 256), palette_masks(photos, 16), libraries)
        for words, scale in (("twice", 2.0), ("half", 0.5)):
            resize(results, f"resize to {words} the size", images, scale, libraries)
        cut(results, images, crop)
        photometric(results, [resize_image(image, (crop, crop)).contiguous() for image in images])
        growth(results, images[0], photos.root)
    torch.set_num_threads(usual)
    results.note(
        "Differences are in gray levels: of a decoded image from semiseg's, of a resized one from Pillow's, of a crop "
        "from one of the whole resized image. At half the size Pillow decodes a quarter of the pixels. torchvision's "
        "decoders are deprecated since 0.29 in favor of torchcodec's."
    )


def installed(results: common.Results) -> Libraries:
    """Imports the optional libraries that are installed."""
    found = {}
    for name, module in OPTIONAL.items():
        try:
            found[name] = import_module(module)
        except (ImportError, OSError, RuntimeError):  # the last two: a library that it needs is missing
            results.note(f"{name} is left out: it cannot be imported here.")
    if "opencv" in found:
        found["opencv"].setNumThreads(1)
    return found


def decode_images(results: common.Results, paths: list[Path], libraries: Libraries) -> None:
    """Times decoding a JPEG file to RGB."""
    ways: dict[str, Decode] = {
        "semiseg": read_image,  # Pillow, and the cases that are no upright RGB image
        "Pillow alone": lambda path: channels_first(pillow(path, "RGB")),
        "torchvision decode_image": lambda path: io.decode_image(str(path), "RGB", apply_exif_orientation=True),
        "torchvision decode_jpeg": lambda path: io.decode_jpeg(io.read_file(str(path)), "RGB"),
    }
    if cv2 := libraries.get("opencv"):
        ways["opencv"] = lambda path: channels_first(
            cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        )
    if simplejpeg := libraries.get("simplejpeg"):
        ways["simplejpeg"] = lambda path: channels_first(simplejpeg.decode_jpeg(path.read_bytes()))
    if torchcodec := libraries.get("torchcodec"):
        ways["torchcodec"] = lambda path: torchcodec.decode_image(path, mode="RGB")
    differences(results, "JPEG", ways, paths, "semiseg")
    beside(results, "JPEG", {name: each(way, paths) for name, way in (ways | {"Pillow, half the size": half}).items()},
           len(paths))  # fmt: skip


def decode_masks(results: common.Results, paths: list[Path], narrow: list[Path], libraries: Libraries) -> None:
    """Times decoding a palette PNG to class indices, not to colors. `narrow` are masks of four bits a pixel."""
    ways: dict[str, Decode] = {
        "semiseg": lambda path: read_mask(path, MaskCoding(21)),  # Pillow, and a check of every value
        "Pillow alone": lambda path: torch.from_numpy(pillow(path, "P")),
        "torchvision": lambda path: io.decode_image(str(path), "UNCHANGED")[0],
    }
    if cv2 := libraries.get("opencv"):
        ways["opencv"] = lambda path: torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    if torchcodec := libraries.get("torchcodec"):
        ways["torchcodec"] = lambda path: torchcodec.decode_image(path, mode="UNCHANGED")
    for name, way in list(ways.items()):
        wide_right, narrow_right = (
            all(torch.equal(way(path), ways["semiseg"](path)) for path in some) for some in (paths, narrow)
        )
        if not wide_right:
            del ways[name]
            results.note(f"{name} gives the colors of a palette mask, not its class indices: it is not timed.")
        elif not narrow_right:
            results.note(f"{name} garbles, without a word, palette masks of up to 16 colors (four bits a pixel).")
    beside(results, "palette mask", {name: each(way, paths) for name, way in ways.items()}, len(paths))


def resize(results: common.Results, what: str, images: list[Tensor], scale: float, libraries: Libraries) -> None:
    """Times bilinear resizing with antialiasing, or what is most similar to it."""
    sizes = [(round(image.shape[1] * scale), round(image.shape[2] * scale)) for image in images]
    dense, pictures = [image.contiguous() for image in images], [picture(image) for image in images]
    ways: dict[str, Make] = {
        "semiseg": lambda i: resize_image(images[i], sizes[i]),  # torchvision, channels last as decoded
        "torchvision, contiguous": lambda i: resize_image(dense[i], sizes[i]),
        "Pillow": lambda i: channels_first(np.array(pictures[i].resize(sizes[i][::-1], BILINEAR))),
    }
    if cv2 := libraries.get("opencv"):
        pixels = [np.array(shown) for shown in pictures]
        kind = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
        ways["opencv"] = lambda i: channels_first(cv2.resize(pixels[i], sizes[i][::-1], interpolation=kind))
    differences(results, what, ways, range(len(images)), "Pillow")
    beside(results, what, {name: each(way, range(len(images))) for name, way in ways.items()}, len(images))


def cut(results: common.Results, images: list[Tensor], crop: int) -> None:
    """Times a crop of an image at twice its size: resizing the whole image, or only the part that the crop shows."""
    generator = torch.Generator().manual_seed(0)
    part = crop // 2
    crop = 2 * part
    places = [
        [int(torch.randint(side - part + 1, (), generator=generator)) for side in image.shape[1:]] for image in images
    ]
    params = [
        weak.WeakParams((top, top + part), (left, left + part), (crop, crop), (crop, crop), flip=False, color=(0, 0, 0))
        for top, left in places
    ]
    pictures = [picture(image) for image in images]

    def whole(i: int) -> Tensor:
        (top, left), size = places[i], (2 * images[i].shape[1], 2 * images[i].shape[2])
        return resize_image(images[i], size)[:, 2 * top : 2 * top + crop, 2 * left : 2 * left + crop].contiguous()

    def box(i: int) -> Tensor:
        top, left = places[i]
        shown = (left, top, left + crop / 2, top + crop / 2)
        return channels_first(np.array(pictures[i].resize((crop, crop), BILINEAR, shown))).contiguous()

    ways: dict[str, Make] = {
        "semiseg": lambda i: weak.apply_image(images[i], params[i]),
        "whole, then cut": whole,
        "Pillow, part": box,
    }
    differences(results, "crop at scale 2", ways, range(len(images)), "whole, then cut")
    beside(results, "crop at scale 2", {name: each(way, range(len(images))) for name, way in ways.items()}, len(images))


def photometric(results: common.Results, images: list[Tensor]) -> None:
    """Times the operations that torchvision and Pillow have, too, each library on images of its own kind."""
    factor, shift, sigma, kernel = 0.5, 0.25, 1.0, [7, 7]
    operations: dict[str, tuple[float, Callable[[Tensor], Tensor], Callable[[Image.Image], Image.Image]]] = {
        "autocontrast": (0.0, tv.autocontrast, ImageOps.autocontrast),
        "equalize": (0.0, tv.equalize, ImageOps.equalize),
        "sharpness": (factor, lambda image: tv.adjust_sharpness(image, factor),
                      lambda image: ImageEnhance.Sharpness(image).enhance(factor)),
        "contrast": (factor, lambda image: tv.adjust_contrast(image, factor),
                     lambda image: ImageEnhance.Contrast(image).enhance(factor)),
        "hue": (shift, lambda image: tv.adjust_hue(image, shift), lambda image: tv.adjust_hue(image, shift)),
        "gaussian_blur": (sigma, lambda image: tv.gaussian_blur(image, kernel, [sigma]),
                          lambda image: image.filter(ImageFilter.GaussianBlur(sigma))),
    }  # fmt: skip
    batches, pictures = [image[None] for image in images], [picture(image) for image in images]
    for name, (magnitude, of_tensor, of_picture) in operations.items():
        ours, drew = OPERATIONS[name], torch.tensor([magnitude])
        ways = {
            "semiseg": each(lambda image, ours=ours, drew=drew: ours(image, drew), batches),
            "torchvision": each(of_tensor, images),
            "Pillow": each(of_picture, pictures),
        }
        beside(results, name, ways, len(images))
    there_and_back = each(lambda image: channels_first(np.array(picture(image))).contiguous(), images)
    results.time({"from tensor to Pillow and back": there_and_back}, usual=9, per=len(images))


def growth(results: common.Results, image: Tensor, folder: Path) -> None:
    """Measures how the time of decoding grows with the size of the image."""
    runs = {}
    for height, width in ((188, 250), (375, 500), (750, 1000)):
        path = folder / f"{width}.jpg"
        picture(resize_image(image, (height, width))).save(path, quality=92)
        runs[float(height * width)] = lambda path=path: read_image(path)
    results.grow("JPEG, semiseg", "px an image", runs, 15)


def beside(results: common.Results, what: str, ways: dict[str, Callable[[], None]], images: int) -> None:
    """Times all ways in turn, for each image, and adds the ratio of each to semiseg's."""
    results.time({f"{what}, {name}": way for name, way in ways.items()}, usual=9, per=images)
    for name in ways:
        if name != "semiseg":
            results.ratio(f"{name} / semiseg, {what}", f"{what}, {name}", f"{what}, semiseg")


def differences(
    results: common.Results, what: str, ways: dict[str, Callable[[Any], Tensor]], images: Iterable[Any], to: str
) -> None:
    """Adds the differences between the pixels of each way and those of the way `to`."""
    wanted = [ways[to](image).short() for image in images]
    for name in ways:
        if name != to:
            off = [
                (ways[name](image).short() - there).abs().flatten() for image, there in zip(images, wanted, strict=True)
            ]
            values = torch.cat(off).double()
            results.figure(f"{what}, {name}, largest difference", "1", values.max().item())
            results.figure(f"{what}, {name}, mean difference", "1", values.mean().item())


def each(run: Callable[[Any], object], images: Iterable[Any]) -> Callable[[], None]:
    """Makes one call that runs over all images."""

    def runs() -> None:
        for image in images:
            run(image)

    return runs


def pillow(path: Path, mode: str) -> np.ndarray:
    """Decodes a file with Pillow, and does nothing else."""
    with Image.open(path) as image:
        return np.array(image if image.mode == mode else image.convert(mode))


def half(path: Path) -> Tensor:
    """Decodes at half the size: the decoder uses half of the frequencies."""
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return channels_first(np.array(image.convert("RGB")))


def palette_masks(photos: Photographs, colors: int) -> list[Path]:
    """Writes the masks as palette PNG. VOC's masks have 256 colors."""
    palette = [value for index in range(colors) for value in voc_color(index)]
    paths = []
    for name in photos.unlabeled:
        with Image.open(photos.root / MASKS / f"{name}.png") as mask:
            indices = Image.fromarray(np.minimum(np.array(mask), colors - 1))
        indices.putpalette(palette)
        paths.append(photos.root / f"{name}-{colors}.png")
        indices.save(paths[-1])
    return paths


def picture(image: Tensor) -> Image.Image:
    """Makes an image for Pillow."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def channels_first(pixels: np.ndarray) -> Tensor:
    """Makes a tensor with the memory layout of the pixels (channels last)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


if __name__ == "__main__":
    common.main("inputs", __doc__, measure)
