"""Every test runs with the shapes in semiseg's annotations checked by beartype."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

install_import_hook("semiseg", "beartype.beartype")

hypothesis.settings.register_profile("semiseg", hypothesis.settings(deadline=None))  # a busy machine is no bug
hypothesis.settings.load_profile("semiseg")


class _NoHostSync(TorchDispatchMode):
    """Fails where the host would wait for an accelerator: values asked for, sizes that depend on them, copies back."""

    waits = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    may_wait = (torch.ops.aten.index,)  # waits for boolean masks only, and asks for their nonzero() then

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        source = any(tensor.is_meta for tensor in tensors)
        if source and func.overloadpacket not in self.may_wait:
            assert not any(tag in func.tags for tag in self.waits), f"{func} makes the host wait for the device"
        if func is torch.ops.aten._to_copy.default and (device := kwargs.get("device")):
            assert not (source and device.type == "cpu"), f"{func} copies from the device to the host"
            assert source or device.type == "cpu" or kwargs.get("non_blocking"), f"{func} waits until it has copied"
        if func is torch.ops.aten.copy_.default:
            assert args[0].is_meta or not args[1].is_meta, f"{func} copies from the device to the host"
        return func(*args, **kwargs)


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to("meta")
    if isinstance(value, (tuple, list)):
        return type(value)(_to_meta(item) for item in value)
    if is_dataclass(value):
        return type(value)(**{name: _to_meta(item) for name, item in vars(value).items()})
    return value


@pytest.fixture
def no_host_sync() -> Callable[..., Any]:
    """no_host_sync(function, *args) -> what it returns on the meta device, where waiting for the device is an error.

    The meta device is an accelerator that every machine has: its tensors have shapes and no values.
    """

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        on_device = [_to_meta(value) for value in (*args, *kwargs.values())]
        with _NoHostSync():
            return function(*on_device[: len(args)], **dict(zip(kwargs, on_device[len(args) :], strict=True)))

    return call


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """tiny(seed) -> a network of two convolutions for 3 classes, sure enough of itself for pseudo-labels.

    With norm=False it has no batch norm, so that images do not influence each other.
    """
    from semiseg.models.build import Network
    from semiseg.rng import seeded
    from semiseg.types import Normalisation

    def tiny(seed: int = 0, norm: bool = True) -> Network:
        with seeded(seed, "tiny"):
            conv = nn.Conv2d(3, 8, 3, padding=1)
            encoder = nn.Sequential(conv, *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU())
            head = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            head.weight *= 4
        return Network(nn.Sequential(OrderedDict(encoder=encoder, head=head)), Normalisation(), 1)

    return tiny
