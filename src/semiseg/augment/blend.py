"""Model-adaptive strength of the intensity augmentation (iMAS, Eq. 8)."""

import torch
from jaxtyping import Float
from torch import Tensor


def blend(
    weak: Float[Tensor, "b c h w"], strong: Float[Tensor, "b c h w"], easiness: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """`easiness * strong + hardness * weak`: hard images are perturbed less.

    Eq. 8 is printed with hardness and easiness exchanged; the prose below it, the authors' code and their answer
    agree on this reading (D2).
    """
    return torch.lerp(weak, strong, easiness[:, None, None, None].to(weak.dtype))
