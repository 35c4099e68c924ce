"""A pass that classifies feature maps twice: as they are, and changed (the feature perturbation of UniMatch)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from semiseg.models.build import Network


def classify_perturbed(
    network: Network,
    image: Float[Tensor, "b 3 h w"],
    weak: Float[Tensor, "u 3 h w"],
    change: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "u c h w"], Float[Tensor, "u c h w"]]:
    """Computes logits of two sets of images, and again of the second set with changed feature maps.

    All go through the encoder together once, and through the decoder together. So they share the statistics of batch
    norm.

    Args:
        network: the network.
        image: the first images.
        weak: the second images.
        change: changes each feature map of the second images.

    Returns:
        The logits of the first images, of the second ones, and of the second ones with changed maps.
    """
    features = network.encode(torch.cat([image, weak]))
    features = features.joined(features[len(image) :].each(change))
    logits = network.classify(network.decode(features), features.size)
    on_image, on_weak, on_changed = torch.split(logits, [len(image), len(weak), len(weak)])
    return on_image, on_weak, on_changed
