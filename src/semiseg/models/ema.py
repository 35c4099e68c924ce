"""The teacher: an exponential moving average of the student (iMAS, Eq. 2)."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy of the student that no gradient reaches."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher


def ema_decay(step: int, decay: float, copy_steps: int = 0) -> float:
    """Decay after step `step`, counted from 0: `min(1 - 1/(step+1), decay)`, so that the first steps average evenly.

    During the first `copy_steps` steps it is 0, which makes the teacher a copy of the student (the authors' first
    epoch, D21).
    """
    return 0.0 if step < copy_steps else min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """In place `teacher = decay * teacher + (1 - decay) * student` (Eq. 2), parameters and buffers alike (D22).

    Buffers that are not floating point (counters) are copied.
    """
    averaged: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for own, its in zip(_state(teacher), _state(student), strict=True):
        if own.is_floating_point():
            averaged[0].append(own)
            averaged[1].append(its)
        else:
            own.copy_(its)
    torch._foreach_lerp_(averaged[0], averaged[1], 1 - decay)


def _state(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
