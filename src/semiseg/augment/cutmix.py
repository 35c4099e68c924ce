"""CutMix between unlabeled images: partners, boxes, the paste, and whether it happens (e.g. iMAS, Eq. 9, 10)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semiseg.rng import uniform


def hard_easy_partners(easiness: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Returns the index of each image's partner: the easiest image's is the hardest, the second easiest's ...

    Partners are mutual: if image 0 has partner 1, image 1 has partner 0. The middle image of an odd batch is its own
    partner.

    Example:
        The easiest image (0.9) and the hardest (0.1) are partners, then 0.7 and 0.3; 0.5 is alone.

        >>> hard_easy_partners(torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3]))
        tensor([1, 0, 2, 4, 3])
    """
    order = easiness.argsort(stable=True)
    # partner[order] = order.flip(0): the hardest (first of the order) gets the easiest (last), and so on
    return torch.empty_like(order).scatter_(0, order, order.flip(0))


def chosen_partners(
    suitable: Bool[Tensor, "n b"], otherwise: Int[Tensor, " n"], rank: Float[Tensor, "n b"]
) -> Int[Tensor, " n"]:
    """Returns for each row the suitable image with the largest rank; if no image is suitable, the one of `otherwise`.

    Example:
        >>> suitable = torch.tensor([[True, False, True], [False, False, False]])
        >>> chosen_partners(suitable, torch.tensor([1, 0]), torch.tensor([[0.2, 0.9, 0.4], [0.1, 0.2, 0.3]]))
        tensor([2, 0])
    """
    return torch.where(suitable.any(1), torch.where(suitable, rank, -1.0).argmax(1), otherwise)


def bounding_boxes(member: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Returns the smallest rectangle that holds all members of an image: a mask that is True inside.

    Example:
        >>> bounding_boxes(torch.tensor([[[0, 0, 1], [1, 0, 0], [0, 0, 0]]]) == 1)[0].long()
        tensor([[1, 1, 1],
                [1, 1, 1],
                [0, 0, 0]])
    """
    return _between(member.any(2))[:, :, None] & _between(member.any(1))[:, None, :]


def _between(member: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """Returns what lies between the first and the last member of each row, both included."""
    count = member.long()
    return (count.cumsum(1) > 0) & (count.flip(1).cumsum(1).flip(1) > 0)


def random_partners(batch_size: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Returns the index of each image's partner in standard CutMix. No image is its own partner (if b > 1)."""
    order = torch.randperm(batch_size, generator=generator)
    # partner[order] = order.roll(1): each image of a random order gets the one before it, the first gets the last
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def sample_boxes(
    batch_size: int, height: int, width: int, generator: torch.Generator, side: tuple[float, float] = (0.1, 0.9)
) -> Bool[Tensor, "b h w"]:
    """Draws a random rectangle for each image: a mask that is True inside (M of Eq. 9).

    Its height and width are fractions of the image's, each drawn from U(side). Its position is uniform over all
    positions inside the image.
    """
    fraction = uniform(generator, side[0], side[1], 2, batch_size)
    return _placed(fraction, height, width, generator)


def sample_some_boxes(
    batch_size: int,
    height: int,
    width: int,
    generator: torch.Generator,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Bool[Tensor, "b h w"]:
    """Draws for each image whether it gets a box, and the box: a mask that is True inside.

    The box of an image covers a part of it that is drawn from U(area). Its height over its width, both as fractions of
    the image's, is drawn from U(ratio), but only from ratios with which the box fits. Its position is uniform over all
    positions inside the image.

    UniMatch uses these ranges. The authors' code draws ratio and position again until the box fits. So it prefers boxes
    that have many positions: small and square ones.

    Args:
        batch_size: number of images.
        height: of an image, px.
        width: of an image, px.
        generator: a CPU generator.
        probability: that an image gets a box. Without one its mask is False everywhere.
        area: range of the area of a box over that of the image.
        ratio: range of the ratio of its sides.
    """
    covered = uniform(generator, *area, batch_size)
    # sides sqrt(covered * ratio) and sqrt(covered / ratio) must be at most 1
    low, high = covered.clamp(min=ratio[0]), covered.reciprocal().clamp(max=ratio[1])
    drawn = torch.lerp(low, high, uniform(generator, 0.0, 1.0, batch_size))
    boxes = _placed(torch.stack([covered * drawn, covered / drawn]).sqrt(), height, width, generator)
    return boxes & (uniform(generator, 0.0, 1.0, batch_size) < probability)[:, None, None]


def _placed(
    fraction: Float[Tensor, "2 b"], height: int, width: int, generator: torch.Generator
) -> Bool[Tensor, "b {height} {width}"]:
    """Draws the positions of boxes whose height and width are fractions of the image's."""
    extent = (fraction * torch.tensor([[height], [width]])).round().clamp(min=1)
    last = torch.tensor([[height], [width]]) - extent  # last possible start
    start = (uniform(generator, 0.0, 1.0, 2, fraction.shape[1]) * (last + 1)).floor().minimum(last)
    return _inside(start, start + extent, height, width)


def sample_boxes_official(
    batch_size: int, height: int, width: int, generator: torch.Generator, side: tuple[float, float] = (0.1, 0.9)
) -> Bool[Tensor, "b h w"]:
    """Draws the boxes of the authors' code (D10): all of one size, centers in [1/16, 1) of the image, clipped to it."""
    size = torch.tensor([[height], [width]])
    extent = (uniform(generator, side[0], side[1]) * size).floor()
    center = (uniform(generator, 1 / 16, 1.0, 2, batch_size) * size).floor()
    start = (center - (extent / 2).floor()).clamp(min=0)
    stop = torch.minimum(center + (extent / 2).floor(), size)
    return _inside(start, stop, height, width)


def sample_cutouts(
    batch_size: int, height: int, width: int, generator: torch.Generator, side: float
) -> Bool[Tensor, "b h w"]:
    """Draws a square for each image, for cut-out: a mask that is True inside.

    Its center is uniform over the image, and what is outside the image is cut off (DeVries and Taylor, 2017).

    Args:
        batch_size: number of images.
        height: of an image, px.
        width: of an image, px.
        generator: a CPU generator.
        side: of the squares, as a fraction of the image's shorter side; it is rounded to an even number of px.
    """
    half = round(side * min(height, width) / 2)
    center = (uniform(generator, 0.0, 1.0, 2, batch_size) * torch.tensor([[height], [width]])).floor()
    return _inside(center - half, center + half, height, width)


def sample_boxes_of_area(
    batch_size: int,
    height: int,
    width: int,
    generator: torch.Generator,
    area: tuple[float, float] = (0.25, 0.5),
    num_boxes: int = 3,
) -> Bool[Tensor, "b h w"]:
    """Draws several rectangles for each image: a mask that is True inside an odd number of them.

    So do CutMix-Seg (French et al., BMVC 2020) and CPS. The area of a box, as a fraction of the image's, is drawn from
    U(area) / num_boxes. Its shape and its position inside the image are random. Where two boxes overlap, the mask is
    False again.
    """
    count = num_boxes * batch_size
    covered = uniform(generator, *area, count)
    tall = covered ** uniform(generator, 0.0, 1.0, count)  # the height, between all of `covered` and all of the image
    boxes = _placed(torch.stack([tall, covered / tall]) / math.sqrt(num_boxes), height, width, generator)
    return boxes.view(num_boxes, batch_size, height, width).sum(0) % 2 == 1


def sample_beta_boxes(
    batch_size: int, height: int, width: int, generator: torch.Generator, beta: tuple[int, int] = (4, 4)
) -> Bool[Tensor, "b h w"]:
    """Draws a rectangle with the image's proportions for each image: a mask that is True inside (AugSeg).

    The area that it leaves uncovered, as a fraction of the image's, is drawn from Beta(*beta): lambda of CutMix. Its
    position inside the image is random.

    Args:
        batch_size: number of images.
        height: of an image, px.
        width: of an image, px.
        generator: a CPU generator.
        beta: the two parameters of the distribution, whole numbers from 1 on. The mean of the uncovered area is the
            first one over their sum.
    """
    first, second = beta
    # the n-th smallest of m uniform values has the distribution Beta(n, m + 1 - n)
    uncovered = uniform(generator, 0.0, 1.0, batch_size, first + second - 1).kthvalue(first, dim=1).values
    return _placed((1 - uncovered).sqrt().expand(2, batch_size), height, width, generator)


BOXES = {"each": sample_boxes, "official": sample_boxes_official}


def _inside(
    start: Float[Tensor, "2 b"], stop: Float[Tensor, "2 b"], height: int, width: int
) -> Bool[Tensor, "b {height} {width}"]:
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    (top, left), (bottom, right) = start[:, :, None, None], stop[:, :, None, None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def paste(base: Tensor, patch: Tensor, box: Bool[Tensor, "b h w"]) -> Tensor:
    """Returns `patch` inside the box of each image and `base` outside it (Eq. 9).

    It takes maps (b, h, w) and images (b, c, h, w). So pseudo-labels and confidence are pasted as the image is.

    Example:
        >>> box = torch.tensor([[[False, True, True]]])
        >>> paste(torch.tensor([[[1, 2, 3]]]), torch.tensor([[[7, 8, 9]]]), box)
        tensor([[[1, 8, 9]]])
        >>> paste(torch.zeros(1, 2, 1, 3), torch.ones(1, 2, 1, 3), box)
        tensor([[[[0., 1., 1.]],
        <BLANKLINE>
                 [[0., 1., 1.]]]])
    """
    return torch.where(box if base.ndim == 3 else box[:, None], patch, base)


def triggered(probability: Float[Tensor, ""] | float, generator: torch.Generator) -> Bool[Tensor, ""]:
    """Draws whether an event of this probability happens. The result is a tensor on the device of `probability`.

    For iMAS the probability is the mean easiness: CutMix fires if a uniform draw exceeds the mean hardness. So say the
    sentence after Eq. 10 and the authors' code (D5).
    """
    draw = uniform(generator, 0.0, 1.0)
    if isinstance(probability, Tensor):
        draw = draw.to(probability.device, non_blocking=True)
    return torch.as_tensor(draw < probability)
