"""Predicts masks of new images with a trained network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from semiseg.data.dataset import LongSide, Unused, White
from semiseg.data.read import fit, read_image, resize_image
from semiseg.data.scan import scan
from semiseg.engine import checkpoint
from semiseg.engine.evaluate import mean_probabilities
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.files import mark_of, save_image
from semiseg.models import build
from semiseg.models.build import Network
from semiseg.models.predict import most_likely_at
from semiseg.recipe.engine import Device, EvaluateConfig, PrecisionSetting
from semiseg.rng import seeded
from semiseg.types import ClassTable

_SHOWN = 5  # broken images in a message
_ROWS = 64  # of an overlay that are mixed at once


@dataclass(frozen=True)
class Predictor:
    """A trained network with everything that is needed to use it.

    Attributes:
        networks: the networks, on their device and in eval mode; of several the mean probability counts.
        classes: the meaning of its outputs.
        long_side: images are first resized to this long side (px), as for evaluation; None: they are not resized.
        evaluate: whole image or sliding window.
        runtime: its device and precision.
        step: number of training steps before its checkpoint.
        white: the value that is shown as white in images of more than 8 bits, as in training; None: 65535.
    """

    networks: tuple[Network, ...]
    classes: ClassTable
    long_side: int | None
    evaluate: EvaluateConfig
    runtime: Runtime
    step: int
    white: int | None = None

    def predict(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "h w"]:
        """Predicts the class index of each pixel, at the size of the image."""
        height, width = image.shape[-2:]
        batch = resize_image(image, fit(height, width, self.long_side))[None].to(self.runtime.device)
        with self.runtime.autocast():
            probability = mean_probabilities(self.networks, batch, self.evaluate)
        return most_likely_at(probability, height, width)[0].to(torch.uint8).cpu()

    def write(self, file: Path, index: Path, overlaid: Path | None = None, mark: str | None = None) -> None:
        """Predicts an image file. Writes its index mask, and its overlay if `overlaid` is given. Makes the folder.

        Raises:
            CannotReadError: the image cannot be read.
            UserError: a file cannot be written.
        """
        try:
            image = read_image(file, white=self.white)
        except UserError as error:
            raise CannotReadError(str(error)) from error
        label = self.predict(image)
        index.parent.mkdir(parents=True, exist_ok=True)
        save_image(index_image(label, self.classes), index, mark)
        if overlaid is not None:
            save_image(overlay(image, label, self.classes), overlaid, mark)

    def fingerprint(self) -> bytes:
        """Returns a digest of all that a prediction depends on: weights, classes, sizes, white, precision.

        Devices and versions of libraries round differently; they are not part of it.
        """
        normalization = self.networks[0].normalization
        reading = (self.long_side, self.white)
        settings = (self.classes, *reading, self.evaluate, normalization, self.runtime.precision)
        digest = hashlib.blake2b(repr(settings).encode())
        for network in self.networks:
            for name, value in network.state_dict().items():
                digest.update(name.encode())
                digest.update(value.cpu().flatten().view(torch.uint8).numpy())
        return digest.digest()


class CannotReadError(UserError):
    """An image to predict cannot be read. Others can."""


def predict_files(
    predictor: Predictor,
    images: Path,
    out: Path,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_unused: Callable[[Unused], None] = lambda unused: None,
) -> int:
    """Writes an index mask and an overlay for each image.

    The pixels of `<name>.png` are class indices, and its palette has the colors of the classes. `<name>_overlay.png`
    shows these colors over the image. The output has the same folders as `images`.

    Both files have a mark: a digest of the predictor and of the image file. So an interrupted prediction goes on:
    images whose files have this mark are done, and files without it are never overwritten.

    Returns:
        The number of images.

    Raises:
        UserError: there is no image; an output file exists already that comes from elsewhere, from another network or
            from another image; or a file cannot be written. Some images cannot be read: then the others are written.
    """
    base, files, unused = _find(images)
    for others in unused:
        on_unused(others)
    targets = [out / file.relative_to(base).with_suffix("") for file in files]
    fingerprint = predictor.fingerprint()
    done = _done_before(files, targets, fingerprint)
    broken: list[str] = []
    for number, (file, target) in enumerate(zip(files, targets, strict=True), 1):
        try:
            if file not in done:
                predictor.write(file, _index_path(target), _overlay_path(target), _mark(fingerprint, file))
        except CannotReadError as error:
            broken.append(str(error))
        except UserError as error:
            written = number - 1 - len(broken)
            raise UserError(
                f"{error}; {written} of {len(files)} images were written to {out}; the same command goes on"
            ) from error
        on_image(number, len(files))
    if broken:
        raise UserError(_broken(broken, len(files), out))
    return len(files)


def _done_before(files: list[Path], targets: list[Path], fingerprint: bytes) -> set[Path]:
    """Returns the images whose two files this predictor has written before.

    Raises:
        UserError: a file exists that it did not write, or two images would have the same output.
    """
    done: set[Path] = set()
    written: dict[Path, Path] = {}
    for file, target in zip(files, targets, strict=True):
        paths = (_index_path(target), _overlay_path(target))
        found = [path for path in paths if path.exists()]
        for path in found:
            if (mark := mark_of(path)) is None:
                raise UserError(f"{path}: exists already; name another folder with --out")
            if mark != _mark(fingerprint, file):
                raise UserError(
                    f"{path}: exists already, from another checkpoint or another {file.name}; name another folder with "
                    "--out"
                )
        if len(found) == 2:
            done.add(file)
        for path in paths:
            if path in written:
                raise UserError(f"{file}: its output would be that of {written[path]}, {path}; rename one of the two")
            written[path] = file
    return done


def _mark(fingerprint: bytes, file: Path) -> str:
    if not file.is_file():  # a pipe would block; `read_image` says what is wrong
        return ""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(fingerprint, digest_size=16)).hexdigest()
    except OSError as error:
        raise CannotReadError(f"{file}: cannot be read ({error.strerror})") from error


def _broken(errors: list[str], total: int, out: Path) -> str:
    if total == 1:
        return errors[0]
    shown = "; ".join(errors[:_SHOWN]) + (f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else "")
    rest = f"the other {total - len(errors)} were written to {out}; " if len(errors) < total else ""
    return (
        f"{len(errors)} of {total} images cannot be read; {rest}the same command goes on with the missing ones: {shown}"
    )


def _find(images: Path) -> tuple[Path, list[Path], tuple[Unused, ...]]:
    """Finds the images: all below a folder, or a single file.

    Returns the folder that output paths start from, the images, and files below it that are no images.
    """
    if images.is_file():
        return images.parent, [images], ()
    if not images.is_dir():
        raise UserError(f"{images}: there is no such image or folder")
    found = scan(images)
    if not found.images:
        others = f" ({found.unused[0]})" if found.unused else ""
        raise UserError(f"{images}: holds no images{others}")
    return images, list(found.images.values()), tuple(one for one in found.unused if one.matters)


def index_image(label: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Makes a palette image: pixel values are class indices, and the palette has the colors of the classes."""
    image = Image.fromarray(label.numpy())
    image.putpalette([value for color in classes.colors for value in color])
    return image


def overlay(image: UInt8[Tensor, "3 h w"], label: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Mixes each pixel half and half with the color of its class. The background class leaves the image as it is.

    If the class table declares no background, a class that is called so is taken for it.
    """
    photo, index = image.permute(1, 2, 0).numpy(), label.numpy()
    colors = np.array(classes.colors, dtype=np.float32)
    share = np.full(len(classes), 0.5, dtype=np.float32)
    share[_background(classes)] = 0
    mixed = np.empty(photo.shape, dtype=np.uint8)
    for top in range(0, len(photo), _ROWS):  # the whole image in fp32 would take 16 times the memory of the image
        rows = slice(top, top + _ROWS)
        part, of = photo[rows].astype(np.float32), index[rows]
        mixed[rows] = (part + share[of][..., None] * (colors[of] - part)).round()
    return Image.fromarray(mixed)


def _background(classes: ClassTable) -> list[int]:
    if classes.background is not None:
        return [classes.background]
    return [index for index, name in enumerate(classes.names) if name.casefold() == "background"]


def make_predictor(source: checkpoint.Checkpoint, device: Device, precision: PrecisionSetting = "fp32") -> Predictor:
    """Makes a predictor from a checkpoint alone.

    It uses only the model section, engine.evaluate, the long side for evaluation and data.white of the checkpoint's
    recipe. It imports no module that the recipe names, such as its method.

    Raises:
        UserError: the checkpoint does not hold what its recipe says.
    """
    runtime = Runtime(device, precision)
    try:
        model = build.Config.model_validate(source.recipe["model"] | {"weights": None})
        data = {"val_long_side": "same", "white": None} | source.recipe["data"]  # older checkpoints do not have these
        key = "long_side" if data["val_long_side"] == "same" else "val_long_side"
        long_side: int | None = TypeAdapter(LongSide | None).validate_python(data[key])
        white: int | None = TypeAdapter(White | None).validate_python(data["white"])
        evaluate = EvaluateConfig.model_validate(source.recipe["engine"]["evaluate"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{source.path}: has no readable recipe ({type(error).__name__})") from error
    networks = []
    for name in source.predictor:
        with seeded(0, "predictor"):  # these weights are not used: all are replaced
            network = build.build(model, len(source.classes))
        source.load_predictor(network, name)
        network.normalization = source.normalization
        network = network.eval().requires_grad_(False).to(runtime.device)
        networks.append(network.to(memory_format=torch.channels_last))  # as in training
    return Predictor(tuple(networks), source.classes, long_side, evaluate, runtime, source.step, white)


def _index_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.png")


def _overlay_path(target: Path) -> Path:
    return target.with_name(f"{target.name}_overlay.png")
