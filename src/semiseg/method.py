"""The contract of a method: tensors in, losses out.

A method sees tensors, networks, augmentations, hardness and losses; never a loader, an optimizer, a file or a process.
The whole method, not the student alone, is wrapped for distributed training, so no path goes round the reduction of
gradients.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from semiseg.augment.views import Views
from semiseg.models.build import Network
from semiseg.types import IGNORE, ClassTable, Losses, Progress, SemiBatch, Whole


class MethodConfig(BaseModel):
    """Settings of a method. Frozen; a key that is not known is an error; defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SemiMethod(nn.Module):
    """One semi-supervised method: `class Method(SemiMethod, config=Config)` in `semiseg.methods.<name>`.

    Attributes:
        Config: the method's settings, from the class statement.
        views: what the engine must make of a loaded batch for this method.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    views: Views

    def __init_subclass__(cls, config: type[MethodConfig] = MethodConfig, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.Config = config

    def __init__(self, config: Any, build_model: Callable[[], Network], classes: ClassTable) -> None:
        super().__init__()

    def observe(self, batch: SemiBatch, at: Progress) -> Any:
        """What has to be known of all unlabeled images of a step before the first gradient, None for nothing.

        A dataclass of tensors with one row for each unlabeled image of `batch`. The engine calls this for every part
        of the whole batch, without gradient, and puts the rows of all parts together. Must not wait for the device.
        """
        return None

    def forward(self, batch: SemiBatch, at: Progress, whole: Whole | None = None) -> Losses:
        """The share that `batch` has in one step's losses. Must not wait for the device.

        Args:
            batch: the step's batch, or a part of it.
            at: the step.
            whole: what the batch is a part of; None: it is whole.
        """
        raise NotImplementedError

    def alone(self, batch: SemiBatch, at: Progress) -> Whole:
        """`batch` as a whole of its own."""
        return Whole(
            num_labeled=len(batch.image),
            labeled_px=(batch.label != IGNORE).sum(),
            observed=self.observe(batch, at),
            rows=slice(0, len(batch.weak)),
        )

    def after_step(self, step: int) -> None:
        """What follows the optimizer's step: EMA, memory banks (banks are buffers, so that checkpoints carry them)."""

    def predictor(self) -> Network:
        """The network that is evaluated, used for prediction and exported."""
        raise NotImplementedError

    def param_groups(self, head_lr_factor: float) -> list[dict[str, Any]]:
        """Groups for the optimizer, each with its `lr_factor`: encoder 1, everything else `head_lr_factor`.

        Parameters without gradient (teachers) belong to no group.
        """
        encoder: list[nn.Parameter] = []
        head: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (encoder if ".encoder." in f".{name}" else head).append(parameter)
        return [{"params": encoder, "lr_factor": 1.0}, {"params": head, "lr_factor": head_lr_factor}]
