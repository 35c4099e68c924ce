"""The recipe of a run, complete and validated. `semiseg.config.load` makes it from a YAML file; the engine runs it."""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from semiseg import methods, optim
from semiseg.data.dataset import DataConfig
from semiseg.engine.evaluate import Config as EvaluateConfig
from semiseg.engine.precision import Setting
from semiseg.engine.runtime import Device
from semiseg.errors import UserError
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models import build
from semiseg.rng import seeded
from semiseg.types import ClassTable


class EngineConfig(BaseModel):
    """Settings of the engine: number of steps, batch size, device, and intervals."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(ge=1, le=10**9)  # optimizer steps
    batch_size: int = Field(16, ge=2, le=65536)  # labeled images of a step, over all processes; as many unlabeled ones
    micro_batch_size: int | None = Field(None, ge=1)  # in one forward pass of a process; None: its whole share
    seed: int = Field(0, ge=0)
    precision: Setting = "auto"  # of the networks; auto: bf16 where the device has instructions for it, else fp32
    device: Device = "auto"
    compile: bool = False  # compile the networks for training; no gain on a CPU, not tried on a GPU
    log_every: int = Field(10, ge=1)  # steps
    eval_every: int | None = Field(None, ge=1)  # steps; None: a tenth of the run
    save_every: int | None = Field(None, ge=1)  # steps; None: a tenth of the run
    keep_checkpoints: int = Field(1, ge=1)  # number of newest checkpoints to keep; the best one is kept, too
    evaluate: EvaluateConfig = EvaluateConfig()

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


@dataclass(frozen=True)
class Recipe:
    """The five sections of a recipe."""

    data: DataConfig
    model: build.Config
    method_name: str
    method: MethodConfig
    optim: optim.Config
    engine: EngineConfig

    def computed_in(self, precision: Setting) -> "Recipe":
        """Returns the recipe with this precision in place of `auto`. A resumed run keeps the precision of its start."""
        return replace(self, engine=self.engine.model_copy(update={"precision": precision}))

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain values, section by section. Loading them gives an equal recipe."""
        return {
            "data": self.data.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "method": {"name": self.method_name, **self.method.model_dump(mode="json")},
            "optim": self.optim.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
        }


def build_method(recipe: Recipe, classes: ClassTable) -> SemiMethod:
    """Builds the method with its networks. Network number k is initialized inside `seeded(seed, "init", k)`.

    So two methods that build their first network from the same model section start from the same weights. All other
    random values of a new method, e.g. the weights of its own layers, are drawn inside `seeded(seed, "method")`.
    """
    built = 0

    def build_next(outputs: int | None = None, channels: int = 3, model: build.Config | None = None) -> build.Network:
        nonlocal built
        with seeded(recipe.engine.seed, "init", built):
            network = build.build(model or recipe.model, outputs or len(classes), channels)
        built += 1
        return network

    method = methods.load(recipe.method_name)
    if recipe.engine.compile and not method.compiles:
        raise UserError(
            f"engine.compile: method {recipe.method_name} calls the parts of its networks, and only whole networks are "
            "compiled; use compile: false"
        )
    with seeded(recipe.engine.seed, "method"):
        return method(recipe.method, build_next, classes)
