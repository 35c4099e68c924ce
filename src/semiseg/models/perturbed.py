"""A pass that classifies feature maps twice: as they are, and changed (the feature perturbation of UniMatch)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from semiseg.models.build import Features, Network


def classify_perturbed(
    network: Network, features: Features, num_labeled: int, change: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "u c h w"], Float[Tensor, "u c h w"]]:
    """Computes logits of labeled and unlabeled images, and again of the unlabeled ones with changed feature maps.

    All go through the decoder together. So they share its statistics of batch norm, if that is joint.

    Args:
        network: the network.
        features: what it encoded: the labeled images, then the unlabeled ones.
        num_labeled: number of labeled images.
        change: changes a feature map of the unlabeled images.

    Returns:
        The logits of the labeled images, of the unlabeled ones, and of the unlabeled ones with changed maps.
    """
    unlabeled = features[num_labeled:]
    everything = features.joined(unlabeled.each(change))
    logits = network.classify(network.decode(everything), features.size)
    num_unlabeled = len(unlabeled.maps[0])
    on_labeled, on_unlabeled, on_changed = torch.split(logits, [num_labeled, num_unlabeled, num_unlabeled])
    return on_labeled, on_unlabeled, on_changed
