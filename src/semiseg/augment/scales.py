"""Images at another scale."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def sample_scale(generator: torch.Generator, scales: tuple[float, ...]) -> float:
    """Draws one of some scales, all with the same probability.

    Example:
        >>> sample_scale(torch.Generator(), (0.5,))
        0.5
    """
    return scales[int(torch.randint(len(scales), (), generator=generator))]


def rescale(image: Float[Tensor, "b d h w"], scale: float) -> Float[Tensor, "b d H W"]:
    """Resizes images to `scale` times their size (bilinear). With scale 1 it returns `image` itself.

    A pixel of a smaller image is a weighted mean of all pixels around it, so no small thing is left out.
    """
    if scale == 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def resize(value: Float[Tensor, "b d _ _"], size: tuple[int, int]) -> Float[Tensor, "b d {size[0]} {size[1]}"]:
    """Resizes maps to a size (height, width) (bilinear), e.g. logits of a rescaled image to that of the image."""
    return F.interpolate(value, size, mode="bilinear", align_corners=False)


def seen_alone(member: Bool[Tensor, "b h w"], scale: float) -> Bool[Tensor, "b h w"]:
    """Returns the pixels to which only members contribute when an image is rescaled, and then resized back."""
    others = rescale((~member)[:, None].float(), scale)
    height, width = member.shape[-2:]
    return resize(others, (height, width))[:, 0] == 0
