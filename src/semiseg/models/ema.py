"""The teacher: an exponential moving average of the student (iMAS, Eq. 2)."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """Copies the student. The copy gets no gradient."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher


def ema_decay(step: int, decay: float, copy_steps: int = 0) -> float:
    """Returns the decay of the update after step `step` (counted from 0): `min(1 - 1/(step+1), decay)`.

    So at first the teacher is the plain mean of the student's weights after each step. In the first `copy_steps` steps
    the decay is 0: the teacher is a copy of the student (in the authors' code in the first epoch, D21).

    Example:
        The first update copies the student into the teacher. A decay of 0.996 is reached after 250 updates.

        >>> [round(ema_decay(step, 0.996), 4) for step in (0, 1, 2, 99, 249, 1000)]
        [0.0, 0.5, 0.6667, 0.99, 0.996, 0.996]
    """
    return 0.0 if step < copy_steps else min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, decay: float, buffers: bool = True) -> None:
    """Updates the teacher in place: `decay * teacher + (1 - decay) * student` (Eq. 2).

    It averages parameters and buffers (D22). Buffers that are not floating point (counters) are copied. Without
    `buffers` it averages parameters only; then batch norm of the teacher must see images itself, in train mode.
    """
    averaged: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for own, its in zip(_state(teacher, buffers), _state(student, buffers), strict=True):
        if own.is_floating_point():
            averaged[0].append(own)
            averaged[1].append(its)
        else:
            own.copy_(its)
    # own = decay * own + (1 - decay) * its, for all tensors in one call
    torch._foreach_lerp_(averaged[0], averaged[1], 1 - decay)


def _state(module: nn.Module, buffers: bool) -> list[torch.Tensor]:
    return [*module.parameters(), *(module.buffers() if buffers else ())]
