"""The contract of a method: tensors in, losses out.

A method uses tensors, networks, augmentations, hardness and losses. It does not know the loader, the optimizer, files
or processes. For distributed training the whole method is wrapped, not the student alone: so every gradient is reduced.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from semiseg import optim
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import LabeledLoss
from semiseg.models.build import Build, Network
from semiseg.models.norms import BatchNorm
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class MethodConfig(BaseModel):
    """Settings of a method. They are frozen; an unknown key is an error; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labeled: Pool | None = None  # operations on labeled images, e.g. {pool: intensity}; None: weak augmentation only
    labeled_loss: LabeledLoss = LabeledLoss()


class SemiConfig(MethodConfig):
    """Settings of a method that learns from labeled and unlabeled images at the same time.

    The papers' own ramps are the defaults; 0, a constant weight, where they have none. In a short run a constant weight
    teaches the student the errors of a young teacher (docs/results.md).
    """

    ramp: float = Field(0.0, ge=0, le=1)  # share of the run in which the weight of unlabeled images rises
    batch_norm: BatchNorm = "joint"  # apart: labeled and unlabeled images are normalized by their own statistics


class SemiMethod(nn.Module):
    """One semi-supervised method: `class Method(SemiMethod, config=Config)` in `semiseg.methods.<name>`.

    The engine constructs it inside `seeded(seed, "method")`, so every layer that it makes is reproducible.

    Attributes:
        Config: the class of the method's settings, as the class statement names it.
        compiles: whether `engine.compile` does something for it: only calls of whole networks are compiled.
        views: the views that the engine must make of a loaded batch for this method.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    compiles: ClassVar[bool] = True
    views: Views

    def __init_subclass__(cls, config: type[MethodConfig] = MethodConfig, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.Config = config

    def __init__(self, config: Any, build: Build, classes: ClassTable) -> None:
        super().__init__()

    def observe(self, batch: SemiBatch, at: Progress) -> Any:
        """Computes what the method must know about all slots of a step before the first gradient.

        The engine calls this for every part of the whole batch, without gradient, and joins the rows of all parts. The
        method must not wait for the device.

        Returns:
            A dataclass of tensors with one row for each slot of `batch`; None if nothing is needed.
        """
        return None

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the share that `batch` has in the losses of a step.

        It changes no state but the statistics of batch norm, and must not wait for the device.

        Args:
            batch: the batch of the step, or a part of it.
            at: the step.
            part: what the pass knows about the whole batch.
        """
        raise NotImplementedError

    def after_step(self, at: Progress, observed: Any) -> None:
        """Runs after the optimizer's step, alike in all processes: EMA, memory banks, thresholds.

        Banks are buffers, so that checkpoints contain them.

        Args:
            at: the step.
            observed: what `observe` returned for the whole batch, over all processes.
        """

    def groups(self, settings: optim.Config) -> list[optim.Group]:
        """Returns the parameters in groups, with the settings of their optimizers."""
        return optim.encoder_and_rest(self, settings)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the networks that are evaluated, by name; of several networks the mean probability counts.

        The first one is kept as the best, used for prediction and exported.
        """
        raise NotImplementedError

    def alone(self, batch: SemiBatch, at: Progress) -> Part:
        """Makes the `Part` of a batch that is not a part of a larger one."""
        observed = self.observe(batch, at)
        return Part(
            observed=observed,
            own=observed,
            rows=slice(0, len(batch.weak) or len(batch.image)),
            share=1.0,
            labeled_px=(batch.label != IGNORE).sum(),
            valid_px=batch.valid.sum(),
        )

    def losses(self, batch: SemiBatch, at: Progress) -> Losses:
        """Computes the losses of a batch that is not a part of a larger one."""
        return self(batch, at, self.alone(batch, at))


def predictor(method: SemiMethod) -> tuple[Network, ...]:
    """Returns the networks of a method that are used for prediction: the first ones that are evaluated."""
    return next(iter(method.evaluated().values()))
