"""Chooses images one after the other: the most valuable first, without near-duplicates of those chosen before."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Chosen:
    """An image that was chosen.

    Attributes:
        number: its number among the candidates.
        weak: the class that made it more valuable; None if no class did.
        left_out: the candidates that were left out because they are near-duplicates of it.
    """

    number: int
    weak: int | None
    left_out: tuple[int, ...]


def choose(
    score: Float[Tensor, " n"],
    tie: Float[Tensor, " n"],
    presence: Float[Tensor, "n c"],
    weakness: Float[Tensor, " c"],
    alike: Callable[[int], Bool[Tensor, " n"]],
    left_out: Iterable[int],
    count: int,
) -> list[Chosen]:
    """Chooses at most `count` images.

    The value of an image is its score, times a factor between 1 and 2: 1 plus the largest product of a class's weakness
    and its presence in the image. After each choice the weakness of a class is divided by 1 plus the sum of its
    presence in the images that are chosen. So the images show several weak classes, not the weakest alone.

    Args:
        score: how hard or uncertain each image is.
        tie: decides between images of equal value; the larger one comes first.
        presence: how likely each image shows each class.
        weakness: of each class, between 0 and 1, e.g. 1 - IoU. Zeros: classes do not count.
        alike: the number of an image -> which images are near-duplicates of it.
        left_out: images that cannot be chosen.
        count: number of images to choose.

    Returns:
        The images in the order of their choice; fewer than `count` if no others are left.
    """
    free = torch.ones(len(score), dtype=torch.bool)
    free[list(left_out)] = False
    shown = torch.zeros_like(weakness)
    chosen: list[Chosen] = []
    while len(chosen) < count and free.any():
        factor, weak = (presence * (weakness / (1 + shown))).max(1)
        value = torch.where(free, score * (1 + factor), -torch.inf)
        best = value >= value.max() - 1e-6
        number = int(torch.where(best, tie, -torch.inf).argmax())
        near = alike(number) & free
        near[number] = False
        free &= ~near
        free[number] = False
        shown += presence[number]
        index = int(weak[number]) if factor[number] > 0 else None
        chosen.append(Chosen(number, index, tuple(near.nonzero()[:, 0].tolist())))
    return chosen
