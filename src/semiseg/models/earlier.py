"""Networks of earlier steps of a run, whose random mixture labels images (PrevMatch)."""

from bisect import bisect_right

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semiseg.models.build import Network
from semiseg.models.ema import make_teacher
from semiseg.models.predict import evaluating, prediction
from semiseg.types import Prediction, Progress


def store_steps(stores: int, num_steps: int) -> list[int]:
    """Returns after how many steps of a run the network is stored: the shares (i / (stores + 1))^2 of it, i = 1, 2 ...

    So the times between two of them grow evenly. In short runs some of them are the same step, which counts once.

    Args:
        stores: number of times in a run, at most.
        num_steps: number of steps of the run.

    Example:
        >>> store_steps(4, 100), store_steps(4, 4)
        ([4, 16, 36, 64], [1, 2])
    """
    steps = {number**2 * num_steps // (stores + 1) ** 2 for number in range(1, stores + 1)}
    return sorted(steps - {0})


def sample_mix(generator: torch.Generator, held: int, most: int) -> tuple[list[int], list[float]]:
    """Draws which networks are mixed, and their weights.

    The number of networks is uniform in 1 to `most`, but at most `held`. The weights are from the Dirichlet
    distribution whose parameters are all 1: every set of weights with sum 1 is equally probable.

    Args:
        generator: a CPU generator.
        held: number of networks to choose from, at least one.
        most: largest number of networks that are mixed.

    Returns:
        Indices of different networks, and the weight of each.
    """
    number = min(held, int(torch.randint(1, most + 1, (), generator=generator)))
    chosen = torch.randperm(held, generator=generator)[:number]
    share = torch.empty(number, dtype=torch.float64).exponential_(generator=generator)  # normalized: Dirichlet(1, ...)
    return chosen.tolist(), (share / share.sum()).tolist()


def mixed(logits: list[Float[Tensor, "b c h w"]], weights: list[float]) -> Float[Tensor, "b c h w"]:
    """Returns the weighted sum of logits, in fp32.

    Example:
        >>> first, second = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 8.0]).view(1, 2, 1, 1)
        >>> mixed([first, second], [0.75, 0.25]).flatten()
        tensor([3., 2.])
    """
    return torch.stack([weight * one.float() for one, weight in zip(logits, weights, strict=True)]).sum(0)


class EarlierNetworks(nn.Module):
    """Copies of a network from earlier steps. It is a module, so that checkpoints contain them.

    How many copies it holds follows from the step alone. A new copy replaces the oldest one.

    Args:
        network: the network that is trained.
        size: number of copies that are held, at most.
        stores: number of times in a run at which a copy is made, at most (`store_steps`).
        most: number of copies that are mixed, at most.
    """

    def __init__(self, network: Network, size: int, stores: int, most: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(make_teacher(network) for _ in range(size))
        self.stores, self.most = stores, most

    def held(self, at: Progress) -> int:
        """Returns the number of copies that there are in step `at`."""
        return min(len(self.copies), self._stored(at.step, at.num_steps))

    def _stored(self, completed: int, num_steps: int) -> int:
        return bisect_right(store_steps(self.stores, num_steps), completed)

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "b 3 h w"], at: Progress) -> Prediction:
        """Predicts with a random mixture of the copies, in eval mode. At least one must be held.

        All images of a step get the same mixture.
        """
        chosen, weights = sample_mix(at.generator("earlier networks"), self.held(at), self.most)
        logits = []
        for index in chosen:
            with evaluating(self.copies[index]):
                logits.append(self.copies[index](image))
        return prediction(mixed(logits, weights))

    @torch.no_grad()
    def store(self, network: Network, at: Progress) -> None:
        """Copies the network, if step `at` is one after which that is done."""
        before, after = (self._stored(completed, at.num_steps) for completed in (at.step, at.step + 1))
        if after > before:
            self.copies[before % len(self.copies)].load_state_dict(network.state_dict())
