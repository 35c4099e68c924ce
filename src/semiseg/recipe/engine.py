"""The settings of the engine: steps, batch, device, precision, intervals, evaluation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from semiseg.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class EvaluateConfig(BaseModel):
    """How a network gets an image in evaluation and prediction: whole, or in windows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["whole", "sliding"] = "whole"
    window: int | None = Field(None, ge=16)  # px, side of the square windows of sliding
    stride: int | None = Field(None, ge=1)  # px between windows; None: two thirds of the window

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "EvaluateConfig":
        if self.mode == "sliding" and self.window is None:
            raise ValueError("sliding needs a window, in px, e.g. the training crop")
        if self.stride and self.window and self.stride > self.window:
            raise ValueError(f"stride {self.stride} is larger than window {self.window}: pixels would be left out")
        if self.mode == "whole" and (self.window or self.stride):
            raise ValueError("window and stride belong to mode: sliding; remove them or choose it")
        return self


class EngineConfig(BaseModel):
    """Settings of the engine: number of steps, batch size, device, and intervals."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(ge=1, le=10**9)  # optimizer steps
    batch_size: int = Field(16, ge=2, le=65536)  # labeled images of a step, over all processes; as many unlabeled ones
    micro_batch_size: int | None = Field(None, ge=1)  # in one forward pass of a process; None: its whole share
    seed: int = Field(0, ge=0)
    precision: PrecisionSetting = "auto"  # of the networks; auto: bf16 if the device has instructions for it, else fp32
    device: Device = "auto"
    compile: bool = False  # compile the networks for training; no gain on a CPU, not tried on a GPU
    log_every: int = Field(10, ge=1)  # steps
    eval_every: int | None = Field(None, ge=1)  # steps; None: a tenth of the run
    save_every: int | None = Field(None, ge=1)  # steps; None: a tenth of the run
    keep_checkpoints: int = Field(1, ge=1)  # number of newest checkpoints to keep; the best one is kept, too
    keep_every: int | None = Field(None, ge=1)  # steps; checkpoints are saved at its multiples, too, and all kept
    evaluate: EvaluateConfig = EvaluateConfig()
    # Unlabeled images with masks on which each evaluation measures the pseudo-labels; training does not read the masks
    pseudo_label_images: int = Field(0, ge=0)
    # Validation images, and as many of those with the lowest IoU, whose pictures each evaluation puts into the run
    # directory; at the end of a run also as many of the hardest and of the easiest unlabeled images
    pictures: int = Field(6, ge=0, le=50)
    trackers: tuple[Tracker, ...] | None = None  # which show the training live; None: tensorboard if it is installed

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[Tracker, ...] | None) -> tuple[Tracker, ...] | None:
        if trackers and len({*trackers}) < len(trackers):
            raise ValueError("names a tracker twice")
        return trackers

    def part_size(self, world_size: int) -> int:
        """Returns the number of labeled images in one forward pass of one of `world_size` processes.

        Raises:
            UserError: the batch cannot be split evenly.
        """
        share, rest = divmod(self.batch_size, world_size)
        if rest:
            raise UserError(
                f"engine.batch_size: {self.batch_size} is no multiple of the {world_size} processes; use a multiple, "
                "or another number of processes"
            )
        if share % (self.micro_batch_size or share):
            raise UserError(
                f"engine.micro_batch_size: {self.micro_batch_size} does not divide the {share} images that a process "
                f"has a step (engine.batch_size {self.batch_size} over {world_size} processes); use a divisor of it"
            )
        return self.micro_batch_size or share

    @property
    def evaluation_interval(self) -> int:
        """Returns the number of steps between evaluations."""
        return self.eval_every or max(1, self.steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        """Returns the number of steps between checkpoints."""
        return self.save_every or max(1, self.steps // 10)

    def saves_after(self, done: int) -> bool:
        """Returns whether a checkpoint is due after so many completed steps."""
        intervals = [self.checkpoint_interval, *([self.keep_every] if self.keep_every else [])]
        return done == self.steps or any(done % interval == 0 for interval in intervals)
