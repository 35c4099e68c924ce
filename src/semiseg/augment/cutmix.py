"""CutMix between unlabeled images: who is paired, which box, when, and the paste (iMAS, Eq. 9, 10)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semiseg.rng import uniform


def hard_easy_partners(easiness: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Index of each image's partner: the easiest goes with the hardest, the second easiest with the second hardest ...

    The batch sorted by easiness is zipped with itself reversed, so partners are mutual and the middle image of an odd
    batch is its own partner.
    """
    order = easiness.argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, order.flip(0))


def random_partners(batch_size: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Index of each image's partner in standard CutMix: a random cycle, so nobody is its own partner (if b > 1)."""
    order = torch.randperm(batch_size, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def sample_boxes(
    batch_size: int, height: int, width: int, generator: torch.Generator, side: tuple[float, float] = (0.1, 0.9)
) -> Bool[Tensor, "b h w"]:
    """A random rectangle for each image, True inside (M of Eq. 9).

    Both side fractions are drawn for each image from U(side), the position uniformly among those inside the image.
    """
    fraction = uniform(generator, side[0], side[1], 2, batch_size)
    extent = (fraction * torch.tensor([[height], [width]])).round().clamp(min=1)
    room = torch.tensor([[height], [width]]) - extent
    start = (uniform(generator, 0.0, 1.0, 2, batch_size) * (room + 1)).floor().minimum(room)
    return _inside(start, start + extent, height, width)


def sample_boxes_official(
    batch_size: int, height: int, width: int, generator: torch.Generator, side: tuple[float, float] = (0.1, 0.9)
) -> Bool[Tensor, "b h w"]:
    """The authors' boxes (D10): one side fraction for the whole batch, centers in [1/16, 1) of the image, clipped."""
    size = torch.tensor([[height], [width]])
    extent = (uniform(generator, side[0], side[1]) * size).floor()
    center = (uniform(generator, 1 / 16, 1.0, 2, batch_size) * size).floor()
    start = (center - (extent / 2).floor()).clamp(min=0)
    stop = torch.minimum(center + (extent / 2).floor(), size)
    return _inside(start, stop, height, width)


BOXES = {"each": sample_boxes, "official": sample_boxes_official}


def _inside(
    start: Float[Tensor, "2 b"], stop: Float[Tensor, "2 b"], height: int, width: int
) -> Bool[Tensor, "b {height} {width}"]:
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    (top, left), (bottom, right) = start[:, :, None, None], stop[:, :, None, None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def paste(base: Tensor, patch: Tensor, box: Bool[Tensor, "b h w"]) -> Tensor:
    """`patch` inside the box of each image, `base` around it (Eq. 9), for maps (b, h, w) and images (b, c, h, w)."""
    return torch.where(box if base.ndim == 3 else box[:, None], patch, base)


def triggered(probability: Float[Tensor, ""] | float, generator: torch.Generator) -> Bool[Tensor, ""]:
    """Whether a Bernoulli event of this probability happens, as a tensor on the device of `probability`.

    For iMAS the probability is the mean easiness: CutMix fires when a uniform draw exceeds the mean hardness, as the
    sentence after Eq. 10 and the authors' code have it (D5).
    """
    draw = uniform(generator, 0.0, 1.0)
    if isinstance(probability, Tensor):
        draw = draw.to(probability.device, non_blocking=True)
    return torch.as_tensor(draw < probability)
