"""Settings of optimizers, and groups of parameters that a method gives to them. The engine makes the optimizers."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from semiseg.errors import UserError


class Config(BaseModel):
    """An optimizer and its learning rate: polynomial decay per step, after a linear warm-up.

    The defaults are those of the paper (Sec. 4); values that it leaves out are from the authors' VOC logs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.001, gt=0)  # of the encoder; on VOC the authors use 0.001, and 0.01 for the head (D25)
    head_lr_factor: float = Field(10.0, gt=0)  # all other parameters have this multiple of lr
    momentum: float | None = Field(None, ge=0, lt=1)  # of sgd; 0.9 if not given
    betas: tuple[float, float] | None = None  # of adamw; (0.9, 0.999) if not given
    weight_decay: float = Field(1e-4, ge=0)  # 5e-4 on Cityscapes (D26)
    power: float = Field(0.9, ge=0)  # exponent of the learning rate's decay
    warmup_steps: int = Field(0, ge=0)  # the learning rate rises linearly in these steps
    layer_decay: float | None = Field(None, gt=0, le=1)  # of vision transformers: lr of a layer over that of the next
    max_grad_norm: float | None = Field(None, gt=0)  # longer gradients are shortened to this norm

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.kind == "adamw" and self.momentum is not None:
            raise ValueError("momentum belongs to kind: sgd; adamw has betas")
        if self.kind == "sgd" and self.betas is not None:
            raise ValueError("betas belong to kind: adamw; sgd has momentum")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        return self

    def lr_at(self, step: int, num_steps: int) -> float:
        """Returns the encoder's learning rate for step `step` of `num_steps`: `lr * (1 - step/num_steps) ** power`.

        In the warm-up this is multiplied by `(step + 1) / warmup_steps`.

        Example:
            The rate falls almost linearly. In the last step it is still above 0.

            >>> [f"{Config(lr=0.001).lr_at(step, 100):.6f}" for step in (0, 50, 99)]
            ['0.001000', '0.000536', '0.000016']
        """
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.lr * rising * (1 - step / num_steps) ** self.power


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike.

    Attributes:
        parameters: the parameters.
        optim: settings of their optimizer. Groups with equal settings share one optimizer.
        lr_factor: their learning rate over that of the settings.
    """

    parameters: list[nn.Parameter]
    optim: Config
    lr_factor: float = 1.0


def encoder_and_rest(module: nn.Module, optim: Config) -> list[Group]:
    """Makes groups of a module's parameters: encoders have the learning rate of `optim`, all else has a multiple.

    With `layer_decay` each layer of an encoder is a group of its own. Parameters without gradient (teachers) are in no
    group.

    Raises:
        UserError: `layer_decay` is given, and an encoder does not tell its layers.
    """
    factors = _layer_factors(module, optim.layer_decay) if optim.layer_decay is not None else {}
    found: dict[float, list[nn.Parameter]] = {1.0: []}
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            in_encoder = ".encoder." in f".{name}"
            (found.setdefault(factors.get(name, 1.0), []) if in_encoder else rest).append(parameter)
    groups = [Group(parameters, optim, factor) for factor, parameters in found.items()]
    return [group for group in [*groups, Group(rest, optim, optim.head_lr_factor)] if group.parameters]


def _layer_factors(module: nn.Module, decay: float) -> dict[str, float]:
    """Returns the factor of each trained encoder parameter, by name: decay ** (number of trained layers above its own).

    The layers are those that timm's models tell. The classifier of a vision transformer is not trained, so it is none.
    """
    from timm.models import group_parameters

    factors: dict[str, float] = {}
    for prefix, part in module.named_modules():
        if ".encoder." in f".{prefix}." and hasattr(part, "group_matcher"):
            layers: dict[str, int] = group_parameters(part, part.group_matcher(coarse=False), reverse=True)
            trained = {name: layers[name] for name, value in part.named_parameters() if value.requires_grad}
            top = max(trained.values(), default=0)
            factors |= {f"{prefix}.{name}": decay ** (top - layer) for name, layer in trained.items()}
    if not factors:
        raise UserError(
            "optim.layer_decay: the encoder does not tell its layers; use an encoder of timm (tu-...) that is a vision "
            "transformer, or remove layer_decay"
        )
    return factors
