"""A threshold that follows how sure the network is: a running mean over steps (CorrMatch)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def class_maxima(
    label: Int[Tensor, "b h w"], confidence: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], num_classes: int
) -> Float[Tensor, " {num_classes}"]:
    """Returns the largest confidence among the pixels of each predicted class; 0 for a class that none predicts.

    Example:
        >>> label, valid = torch.tensor([[[0, 0, 2, 1]]]), torch.tensor([[[True, True, True, False]]])
        >>> class_maxima(label, torch.tensor([[[0.75, 0.5, 0.5, 1.0]]]), valid, 3)
        tensor([0.7500, 0.0000, 0.5000])
    """
    counted = torch.where(valid, confidence, 0.0).flatten()
    return torch.zeros(num_classes, device=label.device).scatter_reduce_(0, label.flatten(), counted, "amax")


class GlobalThreshold(nn.Module):
    """One threshold for all classes. It is a module with a buffer, so that checkpoints contain it.

    Args:
        initial: its value before the first update.
        decay: of the running mean.
    """

    value: Float[Tensor, ""]

    def __init__(self, initial: float, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.tensor(initial))

    def update(
        self,
        label: Int[Tensor, "b h w"],
        confidence: Float[Tensor, "b h w"],
        valid: Bool[Tensor, "b h w"],
        num_classes: int,
    ) -> None:
        """Moves the threshold towards the mean, over predicted classes, of the largest confidence of a class.

        Without a valid pixel it stays as it is.
        """
        largest = class_maxima(label, confidence, valid, num_classes)
        shown = (largest > 0).sum()
        mean = largest.sum() / shown.clamp(min=1)
        self.value.copy_(torch.where(shown > 0, self.decay * self.value + (1 - self.decay) * mean, self.value))
