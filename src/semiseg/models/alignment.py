"""Distribution alignment: pseudo-labels should have the class frequencies of the labeled images (ReMixMatch, DARS).

A teacher that takes one class for another teaches its error to the student, and so on. Frequencies show the error: one
class has too many pixels and the other too few. So the teacher's probabilities are multiplied by the ratio of the
frequencies that labels have and those that predictions have had.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class DistributionAlignment(nn.Module):
    """Running class frequencies of labels and of predictions. It is a module with buffers: checkpoints contain them.

    Args:
        num_classes: number of classes.
        strength: exponent of the ratio: 0 changes nothing, 1 is the full correction.
        decay: of the moving averages; the first updates make plain means.
        floor: the least frequency, so that the factor of a class that is never seen stays finite.
    """

    labeled: Float[Tensor, " c"]
    predicted: Float[Tensor, " c"]
    updates: Int[Tensor, ""]

    def __init__(self, num_classes: int, strength: float, decay: float = 0.99, floor: float = 1e-4) -> None:
        super().__init__()
        self.strength, self.decay, self.floor = strength, decay, floor
        self.register_buffer("labeled", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("predicted", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns logits whose probabilities are p (labeled / predicted)^strength, normalized.

        Example:
            Labels show both classes alike, predictions mostly the first one.

            >>> alignment = DistributionAlignment(2, strength=1.0)
            >>> alignment.predicted.copy_(torch.tensor([0.8, 0.2]))
            tensor([0.8000, 0.2000])
            >>> even = torch.zeros(1, 2, 1, 1)
            >>> alignment(even).softmax(1).flatten()
            tensor([0.2000, 0.8000])
        """
        ratio = self.labeled.clamp(min=self.floor).log() - self.predicted.clamp(min=self.floor).log()
        return logits.float() + (self.strength * ratio)[:, None, None]

    def update(self, labeled: Float[Tensor, "b c"], predicted: Float[Tensor, "b c"]) -> None:
        """Adds a step.

        Args:
            labeled: number of labeled pixels of each class, image by image.
            predicted: sum over valid pixels of the unaligned probabilities of each class, image by image.
        """
        decay = (1 - 1 / (self.updates + 1.0)).clamp(max=self.decay)
        for mean, seen in ((self.labeled, labeled.sum(0)), (self.predicted, predicted.sum(0))):
            frequency = torch.where(seen.sum() > 0, seen / seen.sum().clamp(min=1e-9), mean)
            mean.copy_(torch.where(self.updates > 0, torch.lerp(frequency, mean, decay), frequency))
        self.updates += 1
