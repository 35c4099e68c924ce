"""Which image a turn of a list gets: a function of seed, list and turn alone, so resuming replays nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from semiseg.errors import UserError
from semiseg.rng import fold_in, uniform
from semiseg.types import IGNORE


@runtime_checkable
class Order(Protocol):
    """Maps turns to positions in a list."""

    def index(self, turn: int, attempt: int = 0) -> int:
        """Returns the position for a turn. If that image cannot be read, later attempts give other positions."""


@dataclass(frozen=True)
class Shuffled:
    """Turn n of a list of N images is image n % N in the random order of round n // N.

    Attributes:
        size: N.
        seed: the seed of the run.
        stream: the name of the list.
    """

    size: int
    seed: int
    stream: str

    def index(self, turn: int, attempt: int = 0) -> int:
        """Returns the position for a turn."""
        round_, place = divmod(turn, self.size)
        return int(_permutation(self.seed, f"{self.stream} order", self.size, round_)[(place + attempt) % self.size])


@dataclass(frozen=True)
class ClassBalanced:
    """Draws a class for each turn, rare ones more often, and then one of the images that show it.

    This is the rare class sampling of DAFormer (Hoyer et al., CVPR 2022, Eq. 5 and 6): the probability of class c is
    proportional to exp((1 - f_c) / T), where f_c is its share of the labeled pixels and T the temperature.

    Attributes:
        images: for each class the positions of the images that show it.
        cumulative: for each class the probability of this class or an earlier one.
        size: number of images.
        seed: the seed of the run.
    """

    images: tuple[tuple[int, ...], ...]
    cumulative: tuple[float, ...]
    size: int
    seed: int

    @classmethod
    def of(cls, counts: Sequence[Mapping[int, int]], temperature: float, seed: int) -> "ClassBalanced":
        """Makes the order from the number of pixels of each class in each image. IGNORE does not count.

        Raises:
            UserError: no image shows a class.

        Example:
            One image in four shows class 1, on a twentieth of the labeled pixels. It is drawn most of the time.

            >>> counts = [{0: 100}, {0: 100}, {0: 100}, {0: 80, 1: 20}]
            >>> order = ClassBalanced.of(counts, temperature=0.5, seed=0)
            >>> [round(p, 3) for p in order.cumulative], order.images
            ([0.142, 1.0], ((0, 1, 2, 3), (3,)))
        """
        classes = sorted({index for shown in counts for index, pixels in shown.items() if pixels and index != IGNORE})
        if not classes:
            raise UserError("data.labeled_order: no labeled mask shows a class; use shuffled")
        pixels = torch.tensor([sum(shown.get(index, 0) for shown in counts) for index in classes], dtype=torch.float64)
        probability = ((1 - pixels / pixels.sum()) / temperature).softmax(0)
        images = tuple(tuple(i for i, shown in enumerate(counts) if shown.get(index)) for index in classes)
        return cls(images, tuple(probability.cumsum(0).tolist()), len(counts), seed)

    def index(self, turn: int, attempt: int = 0) -> int:
        """Returns the position for a turn."""
        generator = fold_in(self.seed, "class-balanced order", turn)
        draw = uniform(generator, 0.0, 1.0).item()
        chosen = next((i for i, bound in enumerate(self.cumulative) if draw < bound), len(self.images) - 1)
        showing = self.images[chosen]
        first = showing[int(torch.randint(len(showing), (), generator=generator))]
        return (first + attempt) % self.size


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: str, size: int, round_: int) -> Tensor:
    return torch.randperm(size, generator=fold_in(seed, stream, round_))
