"""Writes networks as ONNX files, in fp32, fp16 or int8, and compares them with PyTorch.

A file holds everything from uint8 images to probabilities: normalization, padding, networks, softmax, their mean.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor, nn

from semiseg.engine.evaluate import mean_probabilities
from semiseg.engine.onnx_network import INPUT, METADATA, OUTPUT, OnnxNetwork, require
from semiseg.errors import UserError, first_line
from semiseg.models.build import Network
from semiseg.recipe.engine import EvaluateConfig

OPSET = 17
TOLERANCE = 1e-4  # largest difference in probability between PyTorch and an ONNX file in fp32
_MOST_PX = 512  # side of the crops that are compared
_TRACED = (3, 5)  # of the image that is traced, in strides: other numbers than those of common images


class Probabilities(nn.Module):
    """Computes class probabilities from uint8 images: what an ONNX file holds.

    It calls networks of segmentation_models_pytorch as a whole. Sizes are tensors while torch traces it, so the
    arithmetic of `Network.padded` is written for tensors here.

    Args:
        networks: networks, which are copied; of several the mean probability counts.
        dtype: in which they compute.
    """

    def __init__(self, networks: Sequence[Network], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.nets = nn.ModuleList(copy.deepcopy(network.net) for network in networks).to(dtype)
        for parent in [*self.nets.modules()]:
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                    setattr(parent, name, GridPool(child.output_size))
        self.sizes = [(network.stride, network.smallest) for network in networks]
        self.dtype = dtype
        for index, network in enumerate(networks):
            for name in ("mean", "std"):
                values = torch.tensor(getattr(network.normalization, name))[:, None, None]
                self.register_buffer(f"{name}_{index}", values)

    def forward(self, image: Tensor) -> Tensor:
        """Computes probabilities at the size of the images."""
        height, width = image.shape[-2:]
        each = []
        for index, (net, sizes) in enumerate(zip(self.nets, self.sizes, strict=True)):
            mean, std = getattr(self, f"mean_{index}"), getattr(self, f"std_{index}")
            normal = (image.float() / 255 - mean) / std
            bottom, right = (_padded(side, *sizes) - side for side in (height, width))
            padded = F.pad(normal, (0, right, 0, bottom))
            logits = net(padded.to(self.dtype)).float()
            if logits.shape[-2:] != padded.shape[-2:]:
                logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
            each.append(logits[..., :height, :width].softmax(1))
        return each[0] if len(each) == 1 else torch.stack(each).mean(0)


class GridPool(nn.Module):
    """Computes what nn.AdaptiveAvgPool2d computes, with operations that ONNX has for any size of the map.

    Args:
        size: (height, width) of the grid, or one number for both.
    """

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, value: Tensor) -> Tensor:
        """Returns the mean of the map in each cell of the grid."""
        rows, columns = (_cells(cells, side, value) for cells, side in zip(self.size, value.shape[-2:], strict=True))
        return rows @ value @ columns.T


def _cells(cells: int, side: Any, like: Tensor) -> Tensor:
    """Returns a matrix: the share of each position of a side in the mean of each cell. Cells may overlap."""
    position = torch.arange(side, device=like.device)
    number = torch.arange(cells, device=like.device)[:, None]
    start, end = number * side // cells, ((number + 1) * side + cells - 1) // cells
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _padded(side: Any, stride: int, smallest: int) -> Any:
    multiple = torch.as_tensor(side + -side % stride)
    return multiple.clamp(min=smallest) if smallest > stride else multiple


@torch.no_grad()
def write(networks: Sequence[Network], file: Path, half: bool, architecture: str) -> None:
    """Writes an ONNX file.

    torch's exporter by tracing is used. Its successor by torch.export reasons about sizes symbolically. With those of
    an EfficientNet, whose padding depends on them, it did not end within 8 minutes.

    Args:
        networks: networks in eval mode, on the CPU, in fp32; of several the mean probability counts.
        file: the file.
        half: whether the networks compute in fp16. Normalization, softmax and the output stay in fp32.
        architecture: the name of the architecture and the encoder, for the message.

    Raises:
        UserError: torch cannot write this network as ONNX.
    """
    onnx = require("onnxruntime", "onnx")
    stride = max(max(network.stride, network.smallest // 2) for network in networks)
    image = torch.zeros(2, 3, *(cells * stride - 1 for cells in _TRACED), dtype=torch.uint8)
    module = Probabilities(networks, torch.float16 if half else torch.float32)
    axes = {0: "batch", 2: "height", 3: "width"}
    try:
        # the warnings are about constants and branches, which the comparison tests
        with _no_graphs(), warnings.catch_warnings(action="ignore"):
            # traced before: while torch exports, some networks of smp take another way, which is not one for all sizes
            traced: Any = torch.jit.trace(module.eval(), image, check_trace=False)  # type: ignore[no-untyped-call]
            torch.onnx.export(
                traced,
                (image,),
                file,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: axes, OUTPUT: axes},
                opset_version=OPSET,
                dynamo=False,
            )
            model = onnx.load(file)  # after a resize torch does not know the number of classes any more
            model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = traced(image).shape[1]
            onnx.save(model, file)
    except Exception as error:  # torch has many kinds of errors for what it cannot trace
        raise UserError(_cannot(architecture, first_line(error))) from error


@contextmanager
def _no_graphs() -> Iterator[None]:
    """Keeps torch from printing the whole graph, thousands of lines, where the exporter fails. No option does."""
    log = getattr(torch._C, "_jit_onnx_log", None)
    if log is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *parts: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def largest_difference(
    networks: Sequence[Network], file: Path, images: Sequence[UInt8[Tensor, "3 _ _"]], architecture: str
) -> float:
    """Returns the largest difference in probability between PyTorch and an ONNX file.

    Each image is compared as it is (at most 512 x 512 px of it), and so is an odd part of it, a tiny one, and two parts
    in a batch.

    Raises:
        UserError: onnxruntime cannot compute the file at these sizes.
    """
    other, most = OnnxNetwork(file), 0.0
    for image in images:
        for batch in _views(image[:, :_MOST_PX, :_MOST_PX]):
            expected = mean_probabilities(networks, batch, EvaluateConfig())
            try:
                found = other.probability(batch.contiguous().numpy())
            except Exception as error:  # onnxruntime has many of its own
                size = "x".join(str(side) for side in batch.shape)
                raise UserError(_cannot(architecture, f"for {size}: {first_line(error)}")) from error
            if found.shape != tuple(expected.shape):
                raise UserError(_cannot(architecture, f"sizes are fixed: {found.shape} for {tuple(expected.shape)}"))
            most = max(most, float((torch.from_numpy(found) - expected).abs().max()))
    return most


def _views(image: UInt8[Tensor, "3 h w"]) -> list[UInt8[Tensor, "_ 3 _ _"]]:
    height, width = image.shape[-2:]
    odd = image[:, : max(1, height - 1 - height % 2), : max(1, width * 2 // 3)]
    return [image[None], odd[None], image[None, :, :9, :13], torch.stack([odd, odd.flip(-1)])]


def _cannot(architecture: str, reason: str) -> str:
    return (
        f"model: {architecture} cannot be exported as ONNX ({reason.rstrip('.:')}); use --no-onnx for the PyTorch "
        "weights alone"
    )


def quantize(file: Path, out: Path, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> None:
    """Writes an ONNX file whose convolutions compute in int8.

    Static quantization: the ranges of their inputs are the smallest and the largest values on `images`. Weights have 7
    bits and a scale for each channel, because the sums of 8 bits overflow on processors without VNNI.

    Args:
        file: an ONNX file in fp32.
        out: the new file.
        images: images for the ranges; training images.
    """
    quantization = require("onnx", "onnxruntime", "onnxruntime.quantization")
    waiting = [{INPUT: image[None].contiguous().numpy()} for image in images]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return waiting.pop(0) if waiting else None

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that the exporter has made already
    try:
        quantization.quantize_static(
            file,
            out,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    except Exception as error:
        raise UserError(f"--precision int8: onnxruntime cannot quantize this network ({first_line(error)})") from error
    finally:
        logging.disable(before)


def describe(file: Path, text: str) -> None:
    """Puts a description among the metadata of an ONNX file, so that the file can be used alone."""
    onnx = require("onnx")
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {METADATA: text})
    onnx.save(model, file)
