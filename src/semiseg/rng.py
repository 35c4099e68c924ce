"""Random generators that depend on where they are used (seed, purpose, step), not on what was drawn before.

Every random decision takes a generator from `fold_in(seed, *where)`. So step 7 alone equals step 7 after steps 0 to 6,
a resumed run equals an uninterrupted one, and the number of loader workers changes nothing.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def folded_seed(seed: int, *where: int | str) -> int:
    """Returns a 63-bit seed that depends on `seed` and on every element of `where`, in order."""
    text = repr((int(seed), *where)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def fold_in(seed: int, *where: int | str) -> torch.Generator:
    """Returns a CPU generator for one purpose and place, e.g. `fold_in(seed, "weak", step, slot)`.

    All draws are made on the CPU, whatever the device; they are few and small. So a run on a GPU makes the same
    decisions as a run on a CPU, and no draw waits for the device.

    Example:
        Step 7 alone draws what step 7 draws after steps 0 to 6.

        >>> alone = torch.rand(2, generator=fold_in(0, "cutmix", 7))
        >>> after_others = [torch.rand(2, generator=fold_in(0, "cutmix", step)) for step in range(8)][7]
        >>> torch.equal(alone, after_others)
        True
    """
    return torch.Generator().manual_seed(folded_seed(seed, *where))


def uniform(generator: torch.Generator, low: float, high: float, *size: int) -> torch.Tensor:
    """Draws uniformly from [low, high). The result has shape `size`; without sizes it is a scalar tensor."""
    return torch.rand(size, generator=generator) * (high - low) + low


def seed_global(seed: int, *where: int | str) -> None:
    """Seeds torch's global generators, from which dropout inside networks draws.

    The engine calls this before each forward pass of training. Other code must not use global random state, except
    inside `seeded`.
    """
    torch.manual_seed(folded_seed(seed, *where))  # noqa: TID251


@contextmanager
def seeded(seed: int, *where: int | str) -> Iterator[None]:
    """Seeds the global generators for library code that draws from them (weight initialization), then restores them."""
    with torch.random.fork_rng():
        seed_global(seed, *where)
        yield
