"""Takes real steps to find a batch that fits into the memory, and the number of steps that fit into the time."""

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from semiseg import api
from semiseg.engine.progress import say
from semiseg.engine.rehearse import Rehearsal
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.init.request import Request, at_work
from semiseg.init.settings import Facts, Setting, most_steps, optim, steps
from semiseg.recipe.engine import PrecisionSetting
from semiseg.recipe.load import validate

_EVALUATIONS, _TRIED = 8, 6  # evaluations of a run; steps that are tried
_CPU_BATCHES, _GPU_BATCHES = (2, 4), (16, 8, 4, 2)  # in the order in which they are tried
_MEMORY = 0.6  # share of a machine's memory that a training may take
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, Linux


def tried(request: Request, chosen: Sequence[Setting], work: Path, facts: Facts, console: Console) -> list[Setting]:
    """Takes real steps to find a batch that fits, and the number of steps that fit into the time."""
    batch, found = _largest(request, chosen, work, facts)
    chosen = [*chosen, *optim(batch)]
    precision, reason = "auto", "bf16 where the machine has it, otherwise fp32"
    if not facts.on_gpu and Runtime(request.device, "auto").precision == "bf16":
        in_fp32 = _rehearsed(chosen, request, work, batch, "fp32")
        if in_fp32 is not None and in_fp32.step_s < found.step_s:
            precision, reason = "fp32", f"a step took {found.step_s:.2f} s in bf16 here"
            found = in_fp32
    length = steps(request.hours, found.step_s, found.evaluation_s, facts.labeled, _EVALUATIONS)
    hours = (length * found.step_s + _EVALUATIONS * found.evaluation_s) / 3600
    why = f"{hours:.1f} hours here: a step took {found.step_s:.2f} s, an evaluation {found.evaluation_s:.1f} s"
    if length >= most_steps(facts.labeled) // _EVALUATIONS * _EVALUATIONS:
        why += f"; {facts.labeled} labels need no more"
    elif hours > 1.1 * request.hours:
        why += "; fewer would teach nothing"
        say(
            console,
            f"note: training takes about {hours:.1f} hours here, not {request.hours:g}: fewer than {length} steps "
            "would teach nothing; semiseg train has --set engine.steps=N",
            "yellow",
        )
    if found.busy:
        say(
            console,
            f"note: {found.busy}; engine.steps and the hours may be off: when it is idle, repeat init with "
            "--overwrite, or set engine.steps yourself",
            "yellow",
        )
    tried = f"labeled images a step; tried: {found.train_mb:.0f} MB"
    return [
        *optim(batch),
        Setting("engine", "steps", length, why),
        Setting("engine", "batch_size", batch, tried),
        Setting("engine", "precision", precision, reason),
        Setting("engine", "eval_every", length // _EVALUATIONS, f"{_EVALUATIONS} evaluations"),
        Setting("engine", "save_every", length // _EVALUATIONS, ""),
        *([] if request.device == "auto" else [Setting("engine", "device", request.device, "as asked for")]),
    ]


def _largest(request: Request, chosen: Sequence[Setting], work: Path, facts: Facts) -> tuple[int, Rehearsal]:
    """Finds the largest batch that fits.

    A GPU says what a batch needs; the memory of a process has only grown so far. So a CPU tries the smallest one first.
    """
    fits: tuple[int, Rehearsal] | None = None
    for batch in _GPU_BATCHES if facts.on_gpu else _CPU_BATCHES:
        found = _rehearsed([*chosen, *optim(batch)], request, work, batch, "auto")
        if facts.on_gpu and found is not None:
            return batch, found
        if not facts.on_gpu and (found is None or found.evaluate_mb > _MEMORY * _memory_mb()):
            break
        fits = None if found is None else (batch, found)
    if fits is None:
        raise UserError("a step of 2 images does not fit into the memory; use a machine with more")
    return fits


def _rehearsed(
    chosen: Sequence[Setting], request: Request, work: Path, batch: int, precision: PrecisionSetting
) -> Rehearsal | None:
    """Takes real steps with these settings; None if they do not fit into the memory of the GPU."""
    values: dict[str, dict[str, Any]] = defaultdict(dict)
    for setting in chosen:
        values[setting.section][setting.key] = at_work(setting.value, request.out, work)
    values["data"] |= {"workers": 0, "cache": False}
    values["engine"] = {"steps": 10, "batch_size": batch, "precision": precision, "device": request.device}
    try:
        return api.rehearse(validate(dict(values), "init"), console=Console(quiet=True), steps=_TRIED, full=False)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _memory_mb() -> float:
    """Returns the memory of the machine, or that of the container that this process is in."""
    found = [float("inf")]
    with suppress(AttributeError, ValueError, OSError):  # not on this system
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    for limit in _LIMITS:
        with suppress(ValueError, OSError):  # `max`: there is none
            found.append(int(Path(limit).read_text(encoding="utf-8")) / 1e6)
    return min(found)
