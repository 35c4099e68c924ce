"""Builds networks of segmentation_models_pytorch, with encoder weights from a download, a package or a file."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from semiseg.errors import UserError, first_line
from semiseg.files import expanded
from semiseg.models.weights import load_encoder, load_lite
from semiseg.types import Normalization

_NO_OPTIONS = {  # arguments of the libraries that model.options may not set, and why
    "activation": "the losses need logits",
    "aux_params": "the network has one output",
    "cache_dir": "model.weights names the source of the weights",
    "checkpoint_path": "model.weights names the source of the weights",
    "classes": "the data determine the number of classes",
    "in_channels": "images have three channels",
    "pretrained_cfg": "model.weights names the source of the weights",
    "pretrained_cfg_overlay": "model.weights names the source of the weights",
}
_WITH_OUTPUT_STRIDE = ("deeplabv3", "deeplabv3plus", "pan")


class Config(BaseModel):
    """Settings of a network: architecture, encoder, and the source of the encoder's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = "deeplabv3plus"  # of segmentation_models_pytorch; it must take images of any size
    encoder: str = "resnet101"  # one of its encoders; "tu-<name>" for one of timm
    output_stride: Literal[8, 16] | None = None  # of the encoder; None: 16 for DeepLab, else as the architecture has it
    weights: str | None = "imagenet"  # "imagenet" (download), "lite" (extra `lite`), a file, or null: no weights
    options: dict[str, Any] = {}  # of the architecture, and of timm's encoders, e.g. {decoder_channels: 128}
    mean: tuple[float, float, float] | None = None  # of the input in [0, 1]; None: as in the training of the encoder
    std: tuple[float, float, float] | None = None

    @field_validator("weights")
    @classmethod
    def _expand_home(cls, weights: str | None) -> str | None:
        return str(expanded(Path(weights))) if weights and weights.startswith("~") else weights

    @model_validator(mode="after")
    def _output_stride_is_used(self) -> "Config":
        if self.output_stride is not None and self.architecture.lower() not in _WITH_OUTPUT_STRIDE:
            raise ValueError(f"output_stride: {self.architecture} has none; remove it or use deeplabv3plus")
        if self.architecture.lower().startswith("deeplab") and "encoder_output_stride" in self.options:
            raise ValueError("options: encoder_output_stride is set by model.output_stride; use that key")
        return self


@dataclass(frozen=True)
class Features:
    """The feature maps of an encoder, from the finest to the coarsest.

    Attributes:
        maps: the maps; the first one may be the image itself.
        rest: what the decoder needs besides (prefix tokens of a vision transformer); None if nothing.
        size: (height, width) of the image, px.
    """

    maps: tuple[Float[Tensor, "b _ _ _"], ...]
    rest: Any
    size: tuple[int, int]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """Changes every map, e.g. `features.each(F.dropout2d)`."""
        return replace(self, maps=tuple(change(value) for value in self.maps))

    def detached(self) -> "Features":
        """Returns the features without their gradients."""
        rest = tree_map(lambda value: value if value is None else value.detach(), self.rest)
        return replace(self.each(Tensor.detach), rest=rest)

    def __getitem__(self, images: slice) -> "Features":
        """Returns the features of some of the images."""
        rest = tree_map(lambda value: value if value is None else value[images], self.rest)
        return replace(self.each(lambda value: value[images]), rest=rest)

    def joined(self, other: "Features") -> "Features":
        """Appends the images of `other`, which have the same size. So a decoder gets all of them in one pass."""
        maps = tuple(torch.cat(pair) for pair in zip(self.maps, other.maps, strict=True))
        rest = tree_map(lambda one, its: one if one is None else torch.cat([one, its]), self.rest, other.rest)
        return replace(self, maps=maps, rest=rest)


class Network(nn.Module):
    """A segmentation network for images of any size, with the normalization of its input.

    Args:
        net: network with `encoder`, `decoder` and `segmentation_head`, as those of segmentation_models_pytorch. Its
            input sides must be multiples of `stride`.
        normalization: the normalization of the input.
        stride: px. Input is padded to a multiple of it, at the bottom and on the right, with 0, i.e. the mean color.
        smallest: px, a multiple of `stride`. Smaller input is padded to it.
    """

    net: Any  # nn.Module would hide its parts

    def __init__(self, net: nn.Module, normalization: Normalization, stride: int, smallest: int = 1) -> None:
        super().__init__()
        self.net = net
        self.normalization = normalization
        self.stride = stride
        self.smallest = smallest

    def forward(self, image: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b c h w"]:
        """Computes logits at the size of the image."""
        features = self.encode(image)
        return self.classify(self.decode(features), features.size)

    def encode(self, image: Float[Tensor, "b _ h w"]) -> Features:
        """Pads images and computes their feature maps."""
        height, width = image.shape[-2:]
        bottom, right = (
            padded - side for padded, side in zip(self.padded((height, width)), (height, width), strict=True)
        )
        maps = self.net.encoder(F.pad(image, (0, right, 0, bottom)))
        maps, rest = maps if isinstance(maps, tuple) else (maps, None)
        return Features(tuple(maps), rest, (height, width))

    def decode(self, features: Features) -> Float[Tensor, "b d _ _"]:
        """Computes what the head classifies: one map of `d` values a pixel, maybe smaller than the image."""
        rest = () if features.rest is None else (features.rest,)
        return self.net.decoder(list(features.maps), *rest)

    def classify(
        self, decoded: Float[Tensor, "b d _ _"], size: tuple[int, int]
    ) -> Float[Tensor, "b c {size[0]} {size[1]}"]:
        """Computes logits at the size (height, width) of the image: resizes them and cuts the padding off."""
        logits = self.net.segmentation_head(decoded)
        padded = self.padded(size)
        if logits.shape[-2:] != padded:  # some logits have another scale, e.g. those of a shallow FPN
            logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
        return logits[..., : size[0], : size[1]]

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size (height, width) to which `encode` pads an image of this size."""
        height, width = (max(self.smallest, side + -side % self.stride) for side in size)
        return height, width


class Undivided(nn.Module):
    """Makes a network of any kind look like one of segmentation_models_pytorch: all of it is the encoder.

    Args:
        net: network that computes logits.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encoder = _OneMap(net)
        self.decoder = _Last()
        self.segmentation_head = nn.Identity()


def require_encoder(network: Network, setting: str, instead: str) -> None:
    """Refuses a network without an encoder of its own, for a setting that perturbs feature maps.

    Args:
        network: the network.
        setting: the setting and its value, for the message, e.g. "method.name: unimatch".
        instead: what works with this network, e.g. "method fixmatch".

    Raises:
        UserError: the network is `Undivided`.
    """
    if isinstance(network.net, Undivided):
        raise UserError(
            f"{setting} perturbs the feature maps of an encoder, and this network has no encoder of its own; use "
            f"another model.architecture, or {instead}"
        )


class _OneMap(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.net(image)]


class _Last(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[-1]


@runtime_checkable
class Build(Protocol):
    """Builds the next network of the recipe, with an initialization of its own."""

    def __call__(self, outputs: int | None = None, channels: int = 3, model: Config | None = None) -> Network:
        """Builds a network.

        Args:
            outputs: number of its output channels; None: the number of classes.
            channels: number of its input channels. With others than three, pretrained weights of the first layer are
                repeated.
            model: its settings; None: those of the recipe.
        """


def build(config: Config, num_classes: int, channels: int = 3) -> Network:
    """Builds a network with a new head and, if `config` asks for it, a pretrained encoder.

    The libraries draw from torch's global generator, so call it inside `semiseg.rng.seeded`.

    Raises:
        UserError: the architecture or encoder is unknown, the weights cannot be found or belong to another
            architecture, or the network does not take images of any size.
    """
    architecture = config.architecture.lower()
    known = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if architecture not in known:
        raise UserError(f"model.architecture: there is no {config.architecture!r}; choose one of {', '.join(known)}")
    _check_encoder(config.encoder)
    downloads = config.weights == "imagenet"
    options = _options(config, smp.MODEL_ARCHITECTURES_MAPPING[architecture])
    if architecture.startswith("deeplab"):
        options["encoder_output_stride"] = config.output_stride or 16
    elif config.output_stride is not None:
        options["encoder_output_stride"] = config.output_stride
    pretrained = (
        (config.encoder.startswith("tu-") or "imagenet") if downloads else None
    )  # smp takes True for an encoder of timm
    try:
        with warnings.catch_warnings(action="ignore"):  # errors follow for what these warnings are about
            net = smp.create_model(
                architecture,
                encoder_name=config.encoder,
                encoder_weights=pretrained,
                in_channels=channels,
                classes=num_classes,
                **options,
            )
        normalization = _normalization(config)
    except TypeError as error:
        raise UserError(f"model.options: {error}") from error
    except Exception as error:
        if downloads:
            raise UserError(
                f"model.weights: the ImageNet weights of {config.encoder} cannot be downloaded ({first_line(error)}); "
                "name a file, use weights: lite with encoder: tu-tf_efficientnet_lite0, or weights: null"
            ) from error
        raise UserError(
            f"model: {config.architecture} with encoder {config.encoder} cannot be built ({first_line(error)})"
        ) from error
    if any(parameter.numel() == 0 for parameter in net.parameters()):
        raise UserError(f"model.options: {config.options} make layers of size 0; sizes start at 1")
    if config.weights == "lite":
        load_lite(net.encoder, config.encoder, channels)
    elif config.weights is not None and not downloads:
        load_encoder(net.encoder, Path(config.weights), channels)
    net.eval()  # so no random numbers are drawn and batch norm does not change
    stride, logits = _find_stride(net, config, channels)
    _freeze_unused(net, logits)
    _skip_unused(net)
    smallest = _find_smallest(net, stride, channels)
    return Network(net.train(), normalization, stride, smallest)


def _find_stride(net: smp.base.SegmentationModel, config: Config, channels: int) -> tuple[int, Tensor]:
    """Finds the number of which the sides of an image must be multiples. Also returns the logits of such an image.

    The function tries several numbers. For most networks the output stride of the encoder works. The output stride of
    a vision transformer is the side of its patches, but DPT needs an even number of patches of 16 px (a multiple of 4
    of 8 px). The sides of the images tried are odd multiples: an even one would also fit networks that need twice the
    stride. The second try is for PAN, which needs 8 cells.

    Raises:
        UserError: none of the numbers works.
    """
    base = net.encoder.output_stride
    tries = [(base, max(3, 64 // base) | 1), (base, 9)]
    tries += [(stride, 3) for stride in (2 * base, 4 * base, 8 * base) if stride <= 64]
    errors: list[Exception] = []
    for stride, cells in tries:
        try:
            return stride, net(torch.zeros(1, channels, cells * stride, cells * stride))
        except Exception as error:
            errors.append(error)
    options = ["patch_size: 16"] if base & (base - 1) else []  # the decoder doubles its maps, up to the patch
    if any(getattr(module, "strict_img_size", False) for module in net.encoder.modules()):  # timm's transformers
        options.append("dynamic_img_size: true")
    advice = f"add {{{', '.join(options)}}} to model.options, or " if options else ""
    raise UserError(
        f"model: {config.architecture} with encoder {config.encoder} does not take images of any size "
        f"({first_line(errors[0]).rstrip('.')}); {advice}use another encoder"
    ) from errors[0]


@torch.no_grad()
def _find_smallest(net: nn.Module, stride: int, channels: int) -> int:
    """Finds the smallest multiple of `stride` that the network takes: PAN needs 8 cells, most networks a single one."""
    side = stride
    while True:
        try:
            net(torch.zeros(1, channels, side, side))
            return side
        except Exception:  # ends at the latest with the side that fitted when the stride was sought
            side += stride


def _freeze_unused(net: nn.Module, logits: Tensor) -> None:
    """Freezes parameters that do not change the output, e.g. those of stages after `encoder_depth`.

    If they were trained, several processes would wait for their gradients forever.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _skip_unused(net: nn.Module) -> None:
    """Leaves out the last stages of an encoder of timm if nothing that they compute is used.

    timm computes all stages of some encoders, e.g. of EfficientNet with `encoder_depth` 4, where the unused ones take
    half of the time of a forward pass. The stages stay in the state dict, as other programs expect it.
    """
    stages = getattr(getattr(net.encoder, "model", None), "blocks", ())
    for stage in reversed(stages):
        parameters = [*stage.parameters()]
        if not parameters or any(parameter.requires_grad for parameter in parameters):
            break
        stage.forward = _same  # a copy of the network keeps it


def _same(value: Tensor) -> Tensor:
    return value


def _check_encoder(name: str) -> None:
    if name.startswith("tu-"):
        if timm.is_model(name.removeprefix("tu-").split(".")[0]):
            return
        hint = "timm has no such model"
    elif name in smp.encoders.get_encoder_names():
        return
    else:
        hint = "e.g. resnet50, resnet101, mobilenet_v2, or timm's as tu-<name>"
    raise UserError(f"model.encoder: there is no {name!r}; {hint}")


def _options(config: Config, architecture: type[nn.Module]) -> dict[str, Any]:
    """Checks the options and returns them.

    An architecture passes options that it does not know to an encoder of timm. Other encoders would ignore them, so
    they are an error then.
    """
    parameters = inspect.signature(architecture).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    for name in config.options:
        if name in _NO_OPTIONS:
            raise UserError(f"model.options: {name} cannot be set, {_NO_OPTIONS[name]}; remove it")
        if name not in known and not config.encoder.startswith("tu-"):
            raise UserError(f"model.options: {config.architecture} has no {name!r}; it has {', '.join(known)}")
    return dict(config.options)


def _normalization(config: Config) -> Normalization:
    """Returns the normalization of the recipe, or that of the encoder's training, or that of ImageNet."""
    default = Normalization()
    if config.weights == "imagenet" and not config.encoder.startswith("tu-"):
        params = smp.encoders.get_preprocessing_params(config.encoder, "imagenet")
        top = max(params["input_range"])
        default = Normalization(_three(m / top for m in params["mean"]), _three(s / top for s in params["std"]))
    elif config.encoder.startswith("tu-"):
        trained = timm.get_pretrained_cfg(config.encoder.removeprefix("tu-"), allow_unregistered=True)
        if trained is not None:
            default = Normalization(_three(trained.mean), _three(trained.std))
    return Normalization(config.mean or default.mean, config.std or default.std)


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
