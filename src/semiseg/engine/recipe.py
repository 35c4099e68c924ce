"""A complete, validated run: what `semiseg.config.load` makes of a YAML file and what the engine carries out."""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from semiseg import methods
from semiseg.data.dataset import DataConfig
from semiseg.engine import schedule
from semiseg.engine.evaluate import Config as EvaluateConfig
from semiseg.engine.precision import Setting
from semiseg.engine.runtime import Device
from semiseg.errors import UserError
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models import build
from semiseg.rng import seeded
from semiseg.types import ClassTable


class EngineConfig(BaseModel):
    """How long, how large, how often."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(ge=1, le=10**9)  # optimizer steps
    batch_size: int = Field(16, ge=2, le=65536)  # labeled images a step over all processes, as many unlabeled
    micro_batch_size: int | None = Field(None, ge=1)  # of them in one forward pass of a process; None: its whole share
    seed: int = Field(0, ge=0)
    precision: Setting = "auto"  # of the networks; auto: bf16 where the device has it natively, else fp32
    device: Device = "auto"
    compile: bool = False  # the networks, for training; no gain on a CPU, not tried on a GPU
    log_every: int = Field(10, ge=1)  # steps
    eval_every: int | None = Field(None, ge=1)  # steps; None: a tenth of the run
    save_every: int | None = Field(None, ge=1)  # steps; None: a tenth of the run
    keep_checkpoints: int = Field(1, ge=1)  # newest ones kept, beside the best
    evaluate: EvaluateConfig = EvaluateConfig()

    def part_size(self, world_size: int) -> int:
        """Labeled images in one forward pass of one of `world_size` processes.

        Raises:
            UserError: the batch cannot be dealt out evenly.
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
        """Steps between evaluations."""
        return self.eval_every or max(1, self.steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or max(1, self.steps // 10)


@dataclass(frozen=True)
class Recipe:
    """The five sections of a recipe."""

    data: DataConfig
    model: build.Config
    method_name: str
    method: MethodConfig
    optim: schedule.Config
    engine: EngineConfig

    def computed_in(self, precision: Setting) -> "Recipe":
        """Returns the recipe with this precision in place of `auto`: a run goes on in what it started with."""
        return replace(self, engine=self.engine.model_copy(update={"precision": precision}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the sections in reading order; loading them gives an equal recipe."""
        return {
            "data": self.data.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "method": {"name": self.method_name, **self.method.model_dump(mode="json")},
            "optim": self.optim.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
        }


def build_method(recipe: Recipe, classes: ClassTable) -> SemiMethod:
    """The method with its networks. Network number k starts from `seeded(seed, "init", k)`.

    So methods that build their first network with the same model section start from the same weights. Everything else
    that the method draws while it is made, such as layers of its own, comes from `seeded(seed, "method")`.
    """
    built = 0

    def build_model() -> build.Network:
        nonlocal built
        with seeded(recipe.engine.seed, "init", built):
            network = build.build(recipe.model, len(classes))
        built += 1
        return network

    method = methods.load(recipe.method_name)
    with seeded(recipe.engine.seed, "method"):
        return method(recipe.method, build_model, classes)
