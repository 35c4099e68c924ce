"""Model-adaptive strength of the intensity augmentation (iMAS, Eq. 8)."""

import torch
from jaxtyping import Float
from torch import Tensor


def blend(
    weak: Float[Tensor, "b c h w"], strong: Float[Tensor, "b c h w"], easiness: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Mixes the two views: `easiness * strong + hardness * weak`. So hard images are perturbed less.

    Eq. 8 is printed with hardness and easiness exchanged. The text below it, the authors' code and the authors' answer
    to a question say that this is a misprint (D2).

    Example:
        A hard image keeps its weak view, an easy one gets its strong view.

        >>> weak, strong = torch.zeros(3, 3, 1, 1), torch.ones(3, 3, 1, 1)
        >>> blend(weak, strong, easiness=torch.tensor([0.0, 0.25, 1.0])).amax((1, 2, 3))
        tensor([0.0000, 0.2500, 1.0000])
    """
    # lerp computes weak + easiness * (strong - weak)
    return torch.lerp(weak, strong, easiness[:, None, None, None].to(weak.dtype))
