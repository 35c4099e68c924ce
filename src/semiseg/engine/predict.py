"""A trained network that predicts new images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from semiseg.data.dataset import LongSide, White
from semiseg.data.read import fit, read_image, resize_image
from semiseg.engine import checkpoint
from semiseg.engine.evaluate import mean_probabilities
from semiseg.engine.pictures import index_image
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.files import save_image
from semiseg.models import build
from semiseg.models.build import Network
from semiseg.models.predict import most_likely_at
from semiseg.recipe.engine import Device, EvaluateConfig, PrecisionSetting
from semiseg.rng import seeded
from semiseg.types import ClassTable


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
        probability = self.probabilities(resize_image(image, fit(height, width, self.long_side))[None])
        return most_likely_at(probability, height, width)[0].to(torch.uint8).cpu()

    def probabilities(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Computes the class probabilities of a batch of images, on the device."""
        with self.runtime.autocast():
            return mean_probabilities(self.networks, image.to(self.device), self.evaluate)

    @property
    def device(self) -> torch.device:
        """Returns where it computes."""
        return self.runtime.device

    @property
    def least_window(self) -> int:
        """Returns the smallest side of a window in which its networks see surroundings of a pixel, px."""
        return max(32, *(max(2 * network.stride, network.smallest) for network in self.networks))

    def write(self, file: Path, index: Path) -> None:
        """Predicts an image file and writes its index mask. Makes the folder.

        Raises:
            UserError: the image cannot be read, or the mask cannot be written.
        """
        label = self.predict(read_image(file, white=self.white))
        index.parent.mkdir(parents=True, exist_ok=True)
        save_image(index_image(label, self.classes), index)

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
