"""Finds photographs that show nearly the same: frames of one video, a picture saved twice.

Each photograph becomes a small gray image. Two are near-duplicates if their small images have nearly the same gray
levels, and, after each was stretched to all levels from black to white, nearly the same levels and nearly the same
signs of the differences between neighbors (as in the difference hash, dHash). So dark photographs are told apart, too.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semiseg.data.dataset import Sample
from semiseg.data.read import read_image, resize_image
from semiseg.errors import UserError

_SIDE = 16  # px of the small image
_CLEAR = 6.0  # gray levels; smaller differences between neighbors have no sign
_SIGNS = 0.06  # share of the signs that may differ; of unrelated photographs about a half does
_LEVELS = 6.0  # mean difference of gray levels that is allowed, of 255
_STRETCHED = 16.0  # the same of stretched images
_ROWS = 1024  # photographs, or pairs, that are compared at once


def groups(
    samples: Sequence[Sample], on_image: Callable[[int, int], None] = lambda done, total: None
) -> tuple[tuple[Sample, ...], ...]:
    """Puts near-duplicates into groups; a photograph without one is a group of its own.

    A photograph belongs to a group if it is a near-duplicate of any member. What cannot be read is left alone.

    Args:
        samples: the photographs.
        on_image: called with the number of photographs that are done and the number of all.

    Returns:
        The groups, each in the order of `samples`.
    """
    parent = list(range(len(samples)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, second in pairs(samples, on_image):
        parent[max(root(first), root(second))] = min(root(first), root(second))
    members: dict[int, list[Sample]] = defaultdict(list)
    for number, sample in enumerate(samples):
        members[root(number)].append(sample)
    return tuple(map(tuple, members.values()))


def pairs(
    samples: Sequence[Sample], on_image: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[int, int]]:
    """Finds pairs of near-duplicates. What cannot be read is in no pair.

    Args:
        samples: the photographs.
        on_image: as for `groups`.

    Returns:
        The positions of both in `samples`, the smaller one first.
    """
    if not samples:
        return []
    images, readable = _all_small(samples, on_image)
    return [
        pair
        for start in range(0, len(samples), _ROWS)
        for pair in _alike(images, readable, slice(start, start + _ROWS))
    ]


def across(
    samples: Sequence[Sample], others: Sequence[Sample], on_image: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[Sample, Sample]]:
    """Finds near-duplicates of `samples` among `others`. What cannot be read is in no pair.

    Args:
        samples: few photographs.
        others: other photographs, which are not compared with each other.
        on_image: as for `groups`.

    Returns:
        One of `samples` and one of `others` each.
    """
    if not samples or not others:
        return []
    every = [*samples, *others]
    images, readable = _all_small(every, on_image)
    return [
        (every[one], every[other])
        for start in range(0, len(samples), _ROWS)
        for one, other in _alike(images, readable, slice(start, min(start + _ROWS, len(samples))))
        if other >= len(samples)
    ]


def _all_small(
    samples: Sequence[Sample], on_image: Callable[[int, int], None]
) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, " n"]]:
    """Returns the small images, and which of them could be read."""
    small = []
    with ThreadPoolExecutor() as threads:
        for done, found in enumerate(threads.map(_small, samples), 1):
            small.append(found)
            on_image(done, len(samples))
    readable = torch.tensor([found is not None for found in small])
    images = torch.stack([torch.full((_SIDE, _SIDE + 1), torch.nan) if found is None else found for found in small])
    return images, readable


def _alike(images: Float[Tensor, "n h w"], readable: Bool[Tensor, " n"], rows: slice) -> list[tuple[int, int]]:
    """Returns pairs of near-duplicates: one of `rows`, and one that comes after it."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    stretched = (images - low) * 255 / (high - low).clamp(min=1)
    steps = stretched[:, :, 1:] - stretched[:, :, :-1]
    signs = torch.where(steps.abs() >= _CLEAR, steps.sign(), 0).flatten(1)
    both, same = signs[rows].abs() @ signs.abs().T, signs[rows] @ signs.T
    differing = (both - same) / 2 / both.clamp(min=1)
    candidates = ((differing <= _SIGNS) & readable[rows, None] & readable).triu(rows.start + 1)
    first, second = candidates.nonzero().T
    first = first + rows.start
    found: list[tuple[int, int]] = []
    for start in range(0, len(first), _ROWS):
        part = torch.arange(start, min(start + _ROWS, len(first)))
        one, other = first[part], second[part]
        near = (images[one] - images[other]).abs().mean((1, 2)) <= _LEVELS
        near &= (stretched[one] - stretched[other]).abs().mean((1, 2)) <= _STRETCHED
        alike = part[near]
        found += zip(first[alike].tolist(), second[alike].tolist(), strict=True)
    return found


def _small(sample: Sample) -> Float[Tensor, "h w"] | None:
    """Returns the small gray image; None for a file that cannot be read."""
    try:
        image = read_image(sample.image, enough=4 * _SIDE)
    except UserError:
        return None
    return resize_image(image, (_SIDE, _SIDE + 1)).float().mean(0)
