"""Predicts masks of new images with a trained network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from semiseg.data.catalog import scan
from semiseg.data.dataset import LongSide
from semiseg.data.read import fit, read_image, read_size, resize_image
from semiseg.engine import checkpoint
from semiseg.engine.evaluate import Config as EvaluateConfig
from semiseg.engine.precision import Setting
from semiseg.engine.runtime import Device, Runtime
from semiseg.errors import UserError
from semiseg.files import save_image
from semiseg.models import build
from semiseg.models.build import Network
from semiseg.models.predict import most_likely, resize_probability
from semiseg.rng import seeded
from semiseg.types import ClassTable


@dataclass(frozen=True)
class Predictor:
    """A trained network with everything that is needed to use it.

    Attributes:
        network: the network, on its device and in eval mode.
        classes: the meaning of its outputs.
        long_side: images are first resized to this long side (px), as for evaluation; None: they are not resized.
        evaluate: whole image or sliding window.
        runtime: its device and precision.
        step: number of training steps before its checkpoint.
    """

    network: Network
    classes: ClassTable
    long_side: int | None
    evaluate: EvaluateConfig
    runtime: Runtime
    step: int

    def predict(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "h w"]:
        """Predicts the class index of each pixel, at the size of the image."""
        height, width = image.shape[-2:]
        batch = resize_image(image, fit(height, width, self.long_side))[None].to(self.runtime.device)
        with self.runtime.autocast():
            probability = self.evaluate.probabilities(self.network, self.network.normalization(batch))
        return most_likely(resize_probability(probability, height, width))[0].to(torch.uint8).cpu()

    def write(self, file: Path, index: Path, overlaid: Path | None = None) -> None:
        """Predicts an image file. Writes its index mask, and its overlay if `overlaid` is given. Makes the folder."""
        image = read_image(file)
        label = self.predict(image)
        index.parent.mkdir(parents=True, exist_ok=True)
        save_image(index_image(label, self.classes), index)
        if overlaid is not None:
            save_image(overlay(image, label, self.classes), overlaid)


def predict_files(
    predictor: Predictor, images: Path, out: Path, on_image: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Writes an index mask and an overlay for each image.

    The pixels of `<name>.png` are class indices, and its palette has the colors of the classes. `<name>_overlay.png`
    shows these colors over the image. The output has the same folders as `images`.

    Returns:
        The number of images.

    Raises:
        UserError: there is no image, an image cannot be read, or an output file exists already or cannot be written.
            Files that were written before an image turned out to be damaged are kept.
    """
    base, files = _find(images)
    targets = [out / file.relative_to(base).with_suffix("") for file in files]
    written: dict[Path, Path] = {}
    for file, target in zip(files, targets, strict=True):
        read_size(file)  # finds files that are no images before anything is written
        for path in (_index_path(target), _overlay_path(target)):
            if path.exists():
                raise UserError(f"{path}: exists already; name another folder with --out")
            if path in written:
                raise UserError(f"{file}: its output would be that of {written[path]}, {path}; rename one of the two")
            written[path] = file
    for done, (file, target) in enumerate(zip(files, targets, strict=True), 1):
        try:
            predictor.write(file, _index_path(target), _overlay_path(target))
        except UserError as error:
            raise UserError(f"{error}; {done - 1} of {len(files)} images were written to {out}") from error
        on_image(done, len(files))
    return len(files)


def _find(images: Path) -> tuple[Path, list[Path]]:
    """Finds the images: all below a folder, or a single file. Also returns the folder that output paths start from."""
    if images.is_file():
        return images.parent, [images]
    if not images.is_dir():
        raise UserError(f"{images}: there is no such image or folder")
    files = list(scan(images).values())
    if not files:
        raise UserError(f"{images}: holds no images")
    return images, files


def index_image(label: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Makes a palette image: pixel values are class indices, and the palette has the colors of the classes."""
    image = Image.fromarray(label.numpy())
    image.putpalette([value for color in classes.colors for value in color])
    return image


def overlay(image: UInt8[Tensor, "3 h w"], label: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Mixes each pixel half and half with the color of its class. The background class leaves the image as it is."""
    photo = image.permute(1, 2, 0).numpy().astype(np.float32)
    color = np.array(classes.colors, dtype=np.float32)[label.numpy()]
    share = np.full(label.shape, 0.5, dtype=np.float32)
    if classes.background is not None:
        share[label.numpy() == classes.background] = 0
    mixed = photo + share[..., None] * (color - photo)
    return Image.fromarray(mixed.round().astype(np.uint8))


def make_predictor(source: checkpoint.Checkpoint, device: Device, precision: Setting = "fp32") -> Predictor:
    """Makes a predictor from a checkpoint alone.

    It uses only the model section, engine.evaluate and the long side for evaluation of the checkpoint's recipe. It
    imports no module that the recipe names, such as its method.

    Raises:
        UserError: the checkpoint does not hold what its recipe says.
    """
    runtime = Runtime(device, precision)
    try:
        model = build.Config.model_validate(source.recipe["model"] | {"weights": None})
        sizes = {"val_long_side": "same"} | source.recipe["data"]  # older checkpoints do not have it
        key = "long_side" if sizes["val_long_side"] == "same" else "val_long_side"
        long_side: int | None = TypeAdapter(LongSide | None).validate_python(sizes[key])
        evaluate = EvaluateConfig.model_validate(source.recipe["engine"]["evaluate"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{source.path}: has no readable recipe ({type(error).__name__})") from error
    with seeded(0, "predictor"):  # these weights are not used: all are replaced
        network = build.build(model, len(source.classes))
    source.load_predictor(network)
    network.normalization = source.normalization
    network = (
        network.eval().requires_grad_(False).to(runtime.device).to(memory_format=torch.channels_last)
    )  # as in training
    return Predictor(network, source.classes, long_side, evaluate, runtime, source.step)


def _index_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.png")


def _overlay_path(target: Path) -> Path:
    return target.with_name(f"{target.name}_overlay.png")
