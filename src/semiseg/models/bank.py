"""Memory banks: the last representations of each class, on the device."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from semiseg.losses import contrastive


def choose(
    member: Bool[Tensor, "c p"], generator: torch.Generator, most: int
) -> tuple[Int[Tensor, "c k"], Bool[Tensor, "c k"]]:
    """Chooses at random at most `most` members of each row.

    Returns:
        The positions of the chosen ones, and whether each is a member: members come first, then the row is filled up.

    Example:
        >>> member = torch.tensor([[True, False, True, True], [False, False, True, False]])
        >>> index, chosen = choose(member, torch.Generator(), most=2)
        >>> index[1, 0].item(), chosen
        (2, tensor([[ True,  True],
                [ True, False]]))
    """
    order = torch.rand(member.shape[1], generator=generator).to(member.device, non_blocking=True)
    largest = torch.where(member, order, -1.0).topk(min(most, len(order)), dim=1)
    return largest.indices, largest.values >= 0


def prototypes(
    key: Float[Tensor, "p d"], label: Int[Tensor, " p"], num_classes: int
) -> Float[Tensor, "{num_classes} d"]:
    """Returns the direction of the mean representation of each class, as a vector of length 1; zeros if it has none.

    Args:
        key: representations.
        label: the class of each; `num_classes` for those of no class.
        num_classes: number of classes.
    """
    total = key.new_zeros(num_classes + 1, key.shape[1]).index_add(0, label, key)
    return F.normalize(total[:-1], dim=-1)


class Bank(nn.Module):
    """A ring buffer for each class. It is a module with buffers, so that checkpoints carry it.

    All shapes are fixed, so the host never waits for the number of representations that arrive.

    Args:
        num_classes: number of classes.
        size: number of representations that a class keeps; new ones replace the oldest.
        channels: number of values in a representation.
        new: number of representations that a class takes in one step, at most; not more than `size`.
    """

    key: Float[Tensor, "c k d"]
    count: Int[Tensor, " c"]  # representations that a class got so far

    def __init__(self, num_classes: int, size: int, channels: int, new: int = 1024) -> None:
        super().__init__()
        self.size, self.new = size, min(new, size)
        self.register_buffer("key", torch.zeros(num_classes, size, channels))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def filled(self) -> Int[Tensor, " c"]:
        """Returns the number of representations that each class has."""
        return self.count.clamp(max=self.size)

    def add(self, key: Float[Tensor, "p d"], member: Bool[Tensor, "c p"], generator: torch.Generator) -> None:
        """Adds representations, scaled to length 1.

        Args:
            key: the representations.
            member: which of them each class takes.
            generator: a CPU generator; it decides which ones a class takes if there are too many.
        """
        index, new = choose(member, generator, self.new)
        row = torch.arange(len(member), device=key.device)[:, None]
        slot = (self.count[:, None] + torch.arange(new.shape[1], device=key.device)) % self.size
        unit = F.normalize(key[index].float(), dim=-1)
        self.key[row, slot] = torch.where(new[..., None], unit, self.key[row, slot])
        self.count += new.sum(1)

    def draw(self, uniform: Float[Tensor, "c a m"]) -> Float[Tensor, "c a m d"]:
        """Returns representations of each class, as uniform values in [0, 1) pick them; zeros if a class has none."""
        index = (uniform * self.filled[:, None, None]).long()
        index = index.minimum(self.filled[:, None, None] - 1).clamp(min=0)  # a product in fp32 can round up
        row = torch.arange(len(index), device=index.device)[:, None, None]
        return self.key[row, index]

    def contrast(
        self,
        representation: Float[Tensor, "q d"],
        first: int,
        label: Int[Tensor, " p"],
        positive: Float[Tensor, "c d"],
        num_anchors: int,
        num_negatives: int,
        temperature: float,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Computes a part's share of InfoNCE: the mean over classes of the mean over their anchors.

        Anchors are drawn from all pixels, those of other parts included. Each draws negatives of its class from the
        bank. Classes without anchors or without negatives do not count. The shares of all parts add up to the loss.

        Args:
            representation: representations of the part's own pixels.
            first: the first of them among all pixels.
            label: the class of each of all pixels; the number of classes for those that cannot be anchors.
            positive: the positive of each class, of length 1.
            num_anchors: number of anchors of a class, at most.
            num_negatives: number of negatives of an anchor.
            temperature: similarities are divided by it.
            generator: a CPU generator, the same one for all parts.
        """
        device = representation.device
        is_anchor = label == torch.arange(len(positive), device=device)[:, None]
        index, drawn = choose(is_anchor, generator, num_anchors)
        index = index - first
        own = drawn & (index >= 0) & (index < len(representation))
        anchor = F.normalize(representation[index.clamp(0, len(representation) - 1)].float(), dim=-1)
        pick = torch.rand(*drawn.shape, num_negatives, generator=generator).to(device, non_blocking=True)
        loss = contrastive(anchor, positive, self.draw(pick), temperature)
        of_class = torch.where(own, loss, 0.0).sum(1) / drawn.sum(1).clamp(min=1)
        counted = drawn.any(1) & (self.count > 0)
        return torch.where(counted, of_class, 0.0).sum() / counted.sum().clamp(min=1)
