"""Batch norm of labeled images and views of unlabeled ones: as one batch, or apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNorm = Literal["joint", "apart"]


@contextmanager
def batch_norm(network: nn.Module, how: BatchNorm, labeled: int) -> Iterator[None]:
    """Sets how batch norm treats the batches that pass a network, or all networks of a method, inside, in train mode.

    Strong and mixed views have other statistics than photographs. If both share a batch, each is normalized by values
    that do not fit it. Yuan et al. (ICCV 2021) give strong views running statistics of their own. Here they have none,
    because no such view is ever evaluated.

    Args:
        network: the network or the method.
        how: `joint`: all images are one batch. `apart`: the first `labeled` images are a batch and the rest is another
            one, whose statistics do not become running ones.
        labeled: number of labeled images, which come first. There must be others behind them. 0: all are unlabeled, so
            with `apart` no statistics become running ones.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)] if how == "apart" else []
    for norm in norms:
        vars(norm)["forward"] = _apart(norm, norm.forward, labeled)  # it hides the method
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def _apart(norm: _BatchNorm, forward: Callable[[Tensor], Tensor], labeled: int) -> Callable[[Tensor], Tensor]:
    def both(value: Tensor) -> Tensor:
        first = [forward(value[:labeled])] if labeled else []
        tracks, norm.track_running_stats = norm.track_running_stats, False
        try:
            rest = forward(value[labeled:])
        finally:
            norm.track_running_stats = tracks
        return torch.cat([*first, rest])

    return both
