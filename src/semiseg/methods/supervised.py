"""Supervised training on the labeled images alone: the baseline of every semi-supervised method.

It gets the same labeled batches, augmentation, optimizer and number of steps as the other methods. The baselines of
most papers do not: they train on the plain labeled list for far fewer steps.
"""

from collections.abc import Callable

from pydantic import Field

from semiseg.augment.views import Views
from semiseg.losses import LabeledLoss
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models.build import Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.types import ClassTable, Losses, Progress, SemiBatch, Whole


class Config(MethodConfig):
    """Settings of the baseline."""

    labeled_loss: LabeledLoss = LabeledLoss()
    ema_decay: float | None = Field(
        None, ge=0, lt=1
    )  # evaluate a moving average (EMA) of the weights; None: evaluate the weights themselves


class Method(SemiMethod, config=Config):
    """Cross-entropy on labeled images."""

    views = Views(unlabeled=False)

    def __init__(self, config: Config, build_model: Callable[[], Network], classes: ClassTable) -> None:
        super().__init__(config, build_model, classes)
        self.config = config
        self.student = build_model()
        self.teacher = make_teacher(self.student) if config.ema_decay is not None else None

    def forward(self, batch: SemiBatch, at: Progress, whole: Whole | None = None) -> Losses:
        """Computes the labeled loss (Eq. 3)."""
        loss = self.config.labeled_loss(self.student(batch.image), batch.label, whole or self.alone(batch, at))
        return Losses(total=loss, scalars={"labeled": loss.detach()})

    def after_step(self, step: int) -> None:
        """Updates the average of the weights, if there is one."""
        if self.teacher is not None and self.config.ema_decay is not None:
            ema_(self.teacher, self.student, ema_decay(step, self.config.ema_decay))

    def predictor(self) -> Network:
        """Returns the average of the weights if there is one, else the network itself."""
        return self.student if self.teacher is None else self.teacher
