"""Localization of errors: where a prediction is right, and a network that finds out (ELN, Kwon and Kwak, CVPR 2022)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semiseg.models.predict import most_likely
from semiseg.types import IGNORE


def seen_by_localizer(image: Float[Tensor, "b 3 h w"], logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """Joins what the localizer sees: the image, the entropy of the prediction, and its logits. They get no gradient."""
    logits = logits.detach().float()
    entropy = torch.special.entr(logits.softmax(1)).sum(1, keepdim=True)
    return torch.cat([image, entropy, logits], 1)


def is_right(logits: Float[Tensor, "b c h w"], label: Int[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Returns where a prediction is right: what the localizer should say."""
    return most_likely(logits.detach()) == label


def localization_loss(
    found: Float[Tensor, "b h w"], right: Bool[Tensor, "b h w"], label: Int[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Computes each image's binary cross-entropy of a localizer, where errors weigh as much as right pixels.

    A wrong pixel has the weight `right pixels / wrong pixels` of its image, a right one 1. It is a sum over pixels.

    Args:
        found: logits of the localizer: above 0 it takes the prediction for right.
        right: where it is right.
        label: pixels that are IGNORE do not count.

    Example:
        Of four pixels one is wrong, so it has the weight 3. The localizer knows nothing: log 2 a pixel.

        >>> right, label = torch.tensor([[[True, True, False, True]]]), torch.zeros(1, 1, 4, dtype=torch.long)
        >>> localization_loss(torch.zeros(1, 1, 4), right, label) / torch.tensor(2.0).log()
        tensor([6.])
    """
    counted = label != IGNORE
    num_right, num_wrong = ((mask & counted).sum((1, 2)) for mask in (right, ~right))
    factor = num_right / num_wrong.clamp(min=1)
    weight = torch.where(right, 1.0, factor[:, None, None])
    loss = F.binary_cross_entropy_with_logits(found.float(), right.float(), reduction="none")
    return torch.where(counted, weight * loss, 0.0).sum((1, 2))
