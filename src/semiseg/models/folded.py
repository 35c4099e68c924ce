"""Folds batch norm into the convolution before it, where nothing is learned: the same function in fewer operations.

In eval mode batch norm multiplies each channel by a number and adds another. A convolution does that itself with other
weights (Jacob et al., CVPR 2018, Eq. 14). On a CPU a small network takes two thirds of the time then, a ResNet-50 as
long as before (docs/log.md, 2026-11-27).
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg.models.build import Network

_SIDE = 32  # px, of the image that shows how a network's modules hang together


class _Pair:
    """A convolution, and the batch norm that alone gets its result."""

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm) -> None:
        self.conv, self.norm = conv, norm
        self.joined = copy.copy(conv)  # with weights of its own
        after = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        self.rest = nn.Sequential(*after).eval()  # what follows the normalization in its module

    @property
    def is_folded(self) -> bool:
        """Returns whether the joined convolution is in their place."""
        return "forward" in vars(self.conv)

    @torch.no_grad()
    def fold(self) -> None:
        """Takes the present weights of both, and puts the joined convolution in their place."""
        norm, bias = self.norm, self.conv.bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
        weight = self.conv.weight * scale[:, None, None, None]
        self.joined.__dict__["_parameters"] = {"weight": weight, "bias": shift}
        self.conv.forward, self.norm.forward = self.joined.forward, self.rest.forward  # type: ignore[method-assign]

    def unfold(self) -> None:
        """Undoes `fold`. Weights were never changed."""
        del self.conv.forward, self.norm.forward
        self.joined.__dict__["_parameters"] = {}


_PAIRS: WeakKeyDictionary[Network, list[_Pair]] = WeakKeyDictionary()


@contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """Lets convolutions of a network in eval mode do the work of its batch norm. All weights stay as they are.

    Nothing happens where gradients are computed, on another device than a CPU (there it was not measured), for a
    compiled network, and for other modules than a `Network`. Images have three channels.
    """
    pairs = []
    if isinstance(network, Network) and not torch.is_grad_enabled() and _suits(network):
        if network not in _PAIRS:
            _PAIRS[network] = _pairs(network)
        pairs = [pair for pair in _PAIRS[network] if not pair.is_folded]
    try:
        for pair in pairs:
            pair.fold()
        yield
    finally:
        for pair in pairs:
            if pair.is_folded:  # an error may have ended the folding before
                pair.unfold()


def _suits(network: Network) -> bool:
    parameter = next(network.parameters(), None)
    return parameter is not None and parameter.device.type == "cpu" and network._compiled_call_impl is None


def _pairs(network: Network) -> list[_Pair]:
    """Finds pairs in the graph that autograd makes of one pass. Names and places of modules are not used."""
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and _can_join(module)]
    if not convs or not norms:
        return []
    made: dict[Node, nn.Conv2d] = {}
    given: dict[_BatchNorm, Any] = {}
    calls: Counter[nn.Module] = Counter()

    def after_conv(conv: nn.Module, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        made[output.grad_fn] = conv  # type: ignore[index, assignment]

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        given[norm] = inputs[0].grad_fn  # type: ignore[index]

    hooks = [conv.register_forward_hook(after_conv) for conv in convs]
    hooks += [norm.register_forward_pre_hook(before_norm) for norm in norms]
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            logits = network.forward(torch.zeros(1, 3, _SIDE, _SIDE, requires_grad=True))
    finally:
        for hook in hooks:
            hook.remove()
    uses = _uses(logits.grad_fn)
    return [
        _Pair(made[node], norm)
        for norm, node in given.items()
        if node in made and uses[node] == calls[norm] == calls[made[node]] == 1
    ]


def _can_join(norm: _BatchNorm) -> bool:
    """Returns whether it has running statistics, and we know what else it does."""
    return type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d) and norm.running_mean is not None


def _uses(last: Node | None) -> Counter[Node]:
    """Counts how often the result of each operation is used on the way to the last one."""
    uses: Counter[Node] = Counter()
    seen, left = {last}, [last]
    while left:
        for node, _ in () if (one := left.pop()) is None else one.next_functions:
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    left.append(node)
    return uses
