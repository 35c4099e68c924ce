"""The optimizers of a method: one for each kind of settings that its groups name."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semiseg import optim
from semiseg.errors import UserError
from semiseg.method import SemiMethod


class Optimizers:
    """Makes the optimizers of a method, sets their learning rates, and takes their steps together.

    The method must be on its device. The fused step reads and writes memory in one pass on every device. It expects
    momentum in the memory layout of the parameter. It also expects that the first step, which creates momentum, is not
    skipped for an overflow in fp16. So momentum is created here, as zeros; the first step computes the same with it as
    with none.

    Args:
        settings: the optimizer settings of the recipe.
        method: the method whose groups are trained.

    Attributes:
        lr: the learning rate of the recipe, as it was set last; that of encoders.
    """

    def __init__(self, settings: optim.Config, method: SemiMethod) -> None:
        self.settings, self.lr = settings, settings.lr
        groups: dict[optim.Config, list[optim.Group]] = {}
        for group in method.groups(settings):
            if group.parameters:
                groups.setdefault(group.optim, []).append(group)
        self.each = [(config, _make(config, members)) for config, members in groups.items()]

    def set_lr(self, step: int, num_steps: int) -> None:
        """Sets the learning rates of step `step` of `num_steps`: that of the settings times the factor of the group."""
        self.lr = self.settings.lr_at(step, num_steps)
        for config, optimizer in self.each:
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(step, num_steps) * group["lr_factor"]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields every parameter that is trained."""
        for _, optimizer in self.each:
            for group in optimizer.param_groups:
                yield from group["params"]

    @torch.no_grad()
    def step(self, scaler: torch.amp.GradScaler | None) -> Tensor:
        """Takes a step of each optimizer and sets the gradients to zero. In fp16 it skips steps that overflow.

        Returns the norm of the gradient of all parameters, on the device.
        """
        for _, optimizer in self.each:
            if scaler is not None:
                scaler.unscale_(optimizer)
        norms = []
        for config, optimizer in self.each:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            norms.append(norm)
            if config.max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(_trained(optimizer), config.max_grad_norm, norm)
        for _, optimizer in self.each:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        return torch.linalg.vector_norm(torch.stack(norms))

    def tensors(self, method: nn.Module) -> dict[str, Tensor]:
        """Returns the optimizers' tensors by `<name of the parameter>.<name of the state>`.

        An example of a name is `student.net.head.weight.momentum_buffer`. Other values of the optimizers, such as the
        learning rate, follow from the recipe and the step.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
        return {
            f"{names[parameter]}.{name}": value
            for _, optimizer in self.each
            for parameter, state in optimizer.state.items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, method: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Loads the tensors that `tensors` returned, in the memory layout of their parameters.

        A fused optimizer step reads parameters, gradients and states in the order in which they lie in memory. Autograd
        gives gradients the layout of their parameters, so states need this layout, too. A state has the shape of its
        parameter or is a single value, e.g. AdamW's number of steps.

        Raises:
            UserError: a tensor belongs to no parameter, has a wrong shape, or is missing although a new optimizer of
                this kind has it.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
        places = {
            names[parameter]: (optimizer, number, parameter)
            for _, optimizer in self.each
            for number, parameter in enumerate(_trained(optimizer))
        }
        start = self.tensors(method)
        packed = {optimizer: optimizer.state_dict() for _, optimizer in self.each}
        if missing := sorted(start.keys() - tensors.keys()):
            raise _other_optimizer(missing[0], "is missing")
        for key, value in tensors.items():
            of, _, name = key.rpartition(".")
            if of not in places:
                raise _other_optimizer(key, "belongs to no parameter of this network")
            optimizer, number, parameter = places[of]
            if value.shape not in (parameter.shape, ()) or value.shape != start.get(key, value).shape:
                raise _other_optimizer(key, f"has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")
            like = parameter if value.shape == parameter.shape else value
            packed[optimizer]["state"].setdefault(number, {})[name] = torch.empty_like(like).copy_(value)
        for optimizer, state in packed.items():
            optimizer.load_state_dict(state)


def _make(config: optim.Config, groups: list[optim.Group]) -> torch.optim.Optimizer:
    grouped = [{"params": group.parameters, "lr_factor": group.lr_factor} for group in groups]
    if config.kind == "adamw":
        betas = config.betas or (0.9, 0.999)
        return torch.optim.AdamW(grouped, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)
    momentum = 0.9 if config.momentum is None else config.momentum
    optimizer = torch.optim.SGD(grouped, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay, fused=True)
    if momentum:
        for parameter in _trained(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _other_optimizer(key: str, wrong: str) -> UserError:
    return UserError(f"the optimizer's tensor {key} {wrong}; delete the newest checkpoint to go on from an earlier one")
