"""Randomness as a function of where it is drawn, never of what was drawn before.

Every random decision takes a generator from `fold_in(seed, *where)`, so step 7 alone equals step 7 after steps 0 to 6,
a resumed run equals an uninterrupted one, and the number of loader workers changes nothing.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def folded_seed(seed: int, *where: int | str) -> int:
    """A 63-bit seed that depends on `seed` and on every element of `where`, in order."""
    text = repr((int(seed), *where)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def fold_in(seed: int, *where: int | str) -> torch.Generator:
    """A CPU generator for one place, e.g. `fold_in(seed, "weak", step, slot)`.

    Sampling happens on the CPU for every device: the draws are few and small, so a run on a GPU makes the same
    decisions as one on a CPU and no device is ever waited for.
    """
    return torch.Generator().manual_seed(folded_seed(seed, *where))


def uniform(generator: torch.Generator, low: float, high: float, *size: int) -> torch.Tensor:
    """Uniform draws in [low, high), of shape `size` (a scalar tensor when no size is given)."""
    return torch.rand(size, generator=generator) * (high - low) + low


def seed_global(seed: int, *where: int | str) -> None:
    """Seeds torch's global generators, from which dropout inside networks draws.

    The engine calls this once before every step; nothing else may use global random state.
    """
    torch.manual_seed(folded_seed(seed, *where))  # noqa: TID251


@contextmanager
def seeded(seed: int, *where: int | str) -> Iterator[None]:
    """Runs library code that draws from the global generators (weight initialization) and restores them afterwards."""
    with torch.random.fork_rng():
        seed_global(seed, *where)
        yield
