"""The contract of a method: tensors in, losses out.

A method uses tensors, networks, augmentations, hardness and losses. It does not know the loader, the optimizer, files
or processes. For distributed training the whole method is wrapped, not the student alone: so every gradient is reduced.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from semiseg.augment.views import Views
from semiseg.models.build import Network
from semiseg.types import IGNORE, ClassTable, Losses, Progress, SemiBatch, Whole


class MethodConfig(BaseModel):
    """Settings of a method. They are frozen; an unknown key is an error; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SemiMethod(nn.Module):
    """One semi-supervised method: `class Method(SemiMethod, config=Config)` in `semiseg.methods.<name>`.

    Attributes:
        Config: the class of the method's settings, as the class statement names it.
        views: the views that the engine must make of a loaded batch for this method.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    views: Views

    def __init_subclass__(cls, config: type[MethodConfig] = MethodConfig, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.Config = config

    def __init__(self, config: Any, build_model: Callable[[], Network], classes: ClassTable) -> None:
        super().__init__()

    def observe(self, batch: SemiBatch, at: Progress) -> Any:
        """Computes what the method must know about all unlabeled images of a step before the first gradient.

        The engine calls this for every part of the whole batch, without gradient, and joins the rows of all parts. The
        method must not wait for the device.

        Returns:
            A dataclass of tensors with one row for each unlabeled image of `batch`; None if nothing is needed.
        """
        return None

    def forward(self, batch: SemiBatch, at: Progress, whole: Whole | None = None) -> Losses:
        """Computes the share that `batch` has in the losses of a step. It must not wait for the device.

        Args:
            batch: the batch of the step, or a part of it.
            at: the step.
            whole: the whole batch. None: `batch` is the whole batch.
        """
        raise NotImplementedError

    def alone(self, batch: SemiBatch, at: Progress) -> Whole:
        """Makes the `Whole` of a batch that is not a part of a larger one."""
        return Whole(
            num_labeled=len(batch.image),
            labeled_px=(batch.label != IGNORE).sum(),
            observed=self.observe(batch, at),
            rows=slice(0, len(batch.weak)),
        )

    def after_step(self, step: int) -> None:
        """Runs after the optimizer's step: EMA, memory banks (banks are buffers, so that checkpoints contain them)."""

    def predictor(self) -> Network:
        """Returns the network that is evaluated, used for prediction and exported."""
        raise NotImplementedError

    def param_groups(self, head_lr_factor: float) -> list[dict[str, Any]]:
        """Returns groups for the optimizer with their `lr_factor`: 1 for encoders, `head_lr_factor` for all else.

        Parameters without gradient (teachers) belong to no group.
        """
        encoder: list[nn.Parameter] = []
        head: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (encoder if ".encoder." in f".{name}" else head).append(parameter)
        return [{"params": encoder, "lr_factor": 1.0}, {"params": head, "lr_factor": head_lr_factor}]
