"""The optimizer and its learning rate at each step."""

import torch
from pydantic import BaseModel, ConfigDict, Field

from semiseg.method import SemiMethod


class Config(BaseModel):
    """SGD with polynomial decay per step (paper, Sec. 4; values that it leaves out are from the authors' VOC logs)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lr: float = Field(0.001, gt=0)  # of the encoder; on VOC the authors use 0.001, and 0.01 for the head (D25)
    head_lr_factor: float = Field(10.0, gt=0)  # all other parameters have this multiple of lr
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)  # 5e-4 on Cityscapes (D26)
    power: float = Field(0.9, ge=0)  # exponent of the learning rate's decay

    def lr_at(self, step: int, num_steps: int) -> float:
        """Returns the encoder's learning rate for step `step` of `num_steps`: `lr * (1 - step/num_steps) ** power`.

        Example:
            The rate falls almost linearly. In the last step it is still above 0.

            >>> [f"{Config(lr=0.001).lr_at(step, 100):.6f}" for step in (0, 50, 99)]
            ['0.001000', '0.000536', '0.000016']
        """
        return self.lr * (1 - step / num_steps) ** self.power


def build_optimizer(config: Config, method: SemiMethod) -> torch.optim.Optimizer:
    """Makes SGD over the method's parameter groups; each keeps its `lr_factor`. The method must be on its device.

    The fused step reads and writes memory in one pass on every device. It expects momentum in the memory layout of the
    parameter. It also expects that the first step, which creates momentum, is not skipped for an overflow in fp16. So
    momentum is created here, as zeros; the first step computes the same with it as with none.
    """
    groups = [group for group in method.param_groups(config.head_lr_factor) if group["params"]]
    optimizer = torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    if config.momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
