"""A network in an ONNX file, computed by onnxruntime. It takes the place of a `Network` of PyTorch."""

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semiseg.errors import UserError, first_line
from semiseg.models.build import Network
from semiseg.recipe.engine import Device
from semiseg.types import Normalization

INPUT, OUTPUT = "image", "probability"
METADATA = "semiseg"  # key of the description among the metadata of an ONNX file
_ERRORS_ONLY = 3  # onnxruntime's level of messages


class Unchanged(Normalization):
    """Leaves images as they are: the graph in an ONNX file normalizes them itself."""

    def __call__(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Returns the images in fp32, in 0 to 255."""
        return image.float()


class OnnxNetwork(Network):
    """A network in an ONNX file. Its logits are the logarithms of the probabilities that the file computes.

    Args:
        file: an ONNX file that `semiseg export` wrote.
        device: cpu, cuda, or auto: a GPU if onnxruntime can use one.

    Attributes:
        description: the description among the metadata of the file; None if there is none.
        num_classes: number of its outputs.

    Raises:
        UserError: the file cannot be read, its input or output are not those of an exported network, onnxruntime is
            missing, or it cannot use the device.
    """

    digest: Tensor

    def __init__(self, file: Path, device: Device = "cpu") -> None:
        super().__init__(nn.Identity(), Unchanged(), stride=1)
        if not file.is_file():
            raise UserError(f"{file}: there is no such file; name an ONNX file that semiseg export made")
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            content = file.read_bytes()  # as bytes: a path would let the graph name other files for its weights
            self.session = runtime.InferenceSession(content, options, providers=_providers(runtime, device))
            self.description: str | None = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from error
        except UserError:
            raise
        except Exception as error:  # onnxruntime has many of its own
            raise UserError(f"{file}: is no ONNX file that onnxruntime can read ({first_line(error)})") from error
        self.num_classes = _num_classes(self.session, file)
        # a digest of the file is part of the state: other weights make another predictor
        digest = hashlib.blake2b(content, digest_size=32).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    def forward(self, image: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b c h w"]:
        """Computes the logarithms of the probabilities, at the size of the image. Their softmax gives them back."""
        return torch.from_numpy(self.probability(image.to(torch.uint8).contiguous().numpy())).clamp_min_(1e-30).log_()

    def probability(self, image: UInt8[np.ndarray, "b 3 h w"]) -> Float[np.ndarray, "b c h w"]:
        """Computes the class probabilities of a batch of images."""
        return self.session.run([OUTPUT], {INPUT: image})[0]


def require(*names: str) -> Any:
    """Imports packages of the extra `export`, and returns the last one.

    Raises:
        UserError: one is not installed.
    """
    module = None
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise UserError(f'ONNX needs the package {name}: pip install "semiseg[export]"') from error
    return module


def _providers(runtime: Any, device: Device) -> list[str]:
    on_gpu = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "mps" or (device == "cuda" and not on_gpu):
        raise UserError(
            f"--device: onnxruntime cannot use {device} here; use auto or cpu, or install onnxruntime-gpu for cuda"
        )
    return [*(["CUDAExecutionProvider"] if on_gpu and device != "cpu" else []), "CPUExecutionProvider"]


def _num_classes(session: Any, file: Path) -> int:
    """Returns the number of outputs.

    Raises:
        UserError: there is not one input of uint8 RGB images and one output of probabilities.
    """
    inputs, outputs = (
        [(one.name, one.type, one.shape) for one in ends] for ends in (session.get_inputs(), session.get_outputs())
    )
    if len(inputs) == len(outputs) == 1:
        (taken, kind, shape), (given, as_kind, as_shape) = inputs[0], outputs[0]
        fits = (taken, kind, given, as_kind) == (INPUT, "tensor(uint8)", OUTPUT, "tensor(float)")
        if fits and len(shape) == len(as_shape) == 4 and shape[1] == 3 and isinstance(as_shape[1], int):
            return as_shape[1]
    raise UserError(
        f"{file}: its input or its output are not those of an exported network; name an ONNX file that semiseg export "
        "made"
    )
