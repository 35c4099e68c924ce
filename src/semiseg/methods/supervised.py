"""Supervised training on the labeled images alone: the baseline of every semi-supervised method.

It gets the same labeled batches, augmentation, optimizer and number of steps as the other methods. The baselines of
most papers do not: they train on the plain labeled list for far fewer steps.
"""

from pydantic import Field

from semiseg.augment.views import Views
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.types import ClassTable, Losses, Part, Progress, SemiBatch


class Config(MethodConfig):
    """Settings of the baseline."""

    ema_decay: float | None = Field(
        None, ge=0, lt=1
    )  # evaluate a moving average (EMA) of the weights; None: evaluate the weights themselves


class Method(SemiMethod, config=Config):
    """Cross-entropy on labeled images."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(unlabeled=False, labeled=config.labeled)
        self.student = build()
        self.teacher = make_teacher(self.student) if config.ema_decay is not None else None

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the labeled loss (Eq. 3)."""
        loss = self.config.labeled_loss(self.student(batch.image), batch.label, part)
        return Losses(total=loss, scalars={"labeled": loss.detach()})

    def after_step(self, at: Progress, observed: None) -> None:
        """Updates the average of the weights, if there is one."""
        if self.teacher is not None and self.config.ema_decay is not None:
            ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the average of the weights if there is one, and the network itself."""
        student: dict[str, tuple[Network, ...]] = {"student": (self.student,)}
        return student if self.teacher is None else {"teacher": (self.teacher,)} | student
