"""How sure a network is of each class where it is right to be: a running mean over labeled pixels (AEL).

A class with a low confidence performs badly, so methods show it more often: they draw classes, or pixels, by what the
bank knows.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from semiseg.models.build import Network
from semiseg.models.predict import evaluating
from semiseg.types import IGNORE


@torch.no_grad()
def true_class_probability(
    network: Network, image: Float[Tensor, "b 3 h w"], label: Int[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """Computes the probability that a network in eval mode gives to each pixel's label, in fp32; 1 for IGNORE pixels.

    Args:
        network: the network.
        image: the images, normalized.
        label: class indices, or IGNORE.
    """
    with evaluating(network):
        logits = network(image).float()
    return torch.exp(-F.cross_entropy(logits, label.long(), ignore_index=IGNORE, reduction="none"))


def class_sums(
    value: Float[Tensor, "b h w"], label: Int[Tensor, "b h w"], num_classes: int
) -> Float[Tensor, "b {num_classes}"]:
    """Sums the values of the pixels of each class, image by image. IGNORE pixels do not count.

    Example:
        Sums of ones are numbers of pixels.

        >>> label = torch.tensor([[[0, 1, 1, 255]]])
        >>> class_sums(torch.tensor([[[0.5, 0.25, 1.0, 9.0]]]), label, 3), class_sums(torch.ones(1, 1, 4), label, 3)
        (tensor([[0.5000, 1.2500, 0.0000]]), tensor([[1., 2., 0.]]))
    """
    cell = label.clamp(max=num_classes).flatten(1)  # IGNORE pixels go to a cell of their own
    sums = torch.zeros(len(label), num_classes + 1, device=value.device)
    return sums.scatter_add_(1, cell, value.float().flatten(1))[:, :-1]


class ClassConfidence(nn.Module):
    """The confidence of each class. It is a module with buffers, so that checkpoints contain it.

    A class starts at 0, as the worst one, and stays there until a labeled pixel shows it. Its first updates make the
    plain mean of what was seen, and later ones a moving average. So a class that is seen rarely is not taken for a bad
    one because its average has not yet risen.

    Args:
        num_classes: number of classes.
        decay: of the moving average (tau of AEL, Eq. 7).
    """

    value: Float[Tensor, " c"]
    updates: Int[Tensor, " c"]  # steps that showed the class

    def __init__(self, num_classes: int, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(num_classes))
        self.register_buffer("updates", torch.zeros(num_classes, dtype=torch.int64))

    def update(self, total: Float[Tensor, "b c"], count: Float[Tensor, "b c"]) -> None:
        """Adds what a step saw: the mean over images of the mean over an image's pixels of the class (AEL, Eq. 4).

        Images without the class do not count. A class that no image shows keeps its value.

        Args:
            total: sum of the probabilities of the true class, for each image and class.
            count: number of these pixels.
        """
        shown = count > 0
        num_images = shown.sum(0)
        seen = (total / count.clamp(min=1)).sum(0) / num_images.clamp(min=1)
        decay = (1 - 1 / (self.updates + 1)).clamp(max=self.decay)
        self.value.copy_(torch.where(num_images > 0, decay * self.value + (1 - decay) * seen, self.value))
        self.updates += num_images > 0

    def draw(self, uniform: Float[Tensor, "*n"], allowed: Bool[Tensor, " c"] | None = None) -> Int[Tensor, "*n"]:
        """Returns classes as uniform values in [0, 1) pick them, by the probabilities softmax(1 - confidence) (Eq. 9).

        Args:
            uniform: the values, on the device of the bank.
            allowed: only these classes are drawn, at least one; None: all of them.

        Example:
            >>> bank = ClassConfidence(2)
            >>> bank.value[0] = 1.0
            >>> bank.draw(torch.tensor([0.0, 0.26, 0.27, 0.99]))
            tensor([0, 0, 1, 1])
        """
        need = 1 - self.value
        cumulated = (need if allowed is None else torch.where(allowed, need, -torch.inf)).softmax(0).cumsum(0)
        # the number of classes that end below a value; the last end is exactly 1, above all values
        return (uniform[..., None] >= cumulated / cumulated[-1:]).sum(-1)

    def sampling_rate(self, power: float) -> Float[Tensor, " c"]:
        """Returns the share of the pixels of each class that count: the worst class has 1 (Eq. 10).

        Args:
            power: beta; with 0 all pixels count.

        Example:
            >>> bank = ClassConfidence(3)
            >>> bank.value.copy_(torch.tensor([0.2, 0.6, 1.0]))
            tensor([0.2000, 0.6000, 1.0000])
            >>> bank.sampling_rate(power=1.0)
            tensor([1.0000, 0.5000, 0.0000])
        """
        need = 1 - self.value
        return (need / need.max().clamp(min=torch.finfo(need.dtype).tiny)) ** power
