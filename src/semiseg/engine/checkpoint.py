"""Checkpoints: tensors as safetensors, everything else as JSON, so opening a stranger's executes nothing.

A checkpoint is a folder, written aside, synced and renamed, so that it is whole or absent:

    model.safetensors       the method: student, teacher, buffers
    optimizer.safetensors   momentum (not in `best-*`, which cannot be resumed from)
    state.json              format, step, recipe, class table, normalisation, scaler
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semiseg.errors import UserError
from semiseg.types import ClassTable, Normalisation

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, as read: enough to use the network without the recipe file."""

    path: Path
    step: int  # completed steps
    recipe: dict[str, Any]
    classes: ClassTable
    normalisation: Normalisation
    scaler: dict[str, Any]

    def model_state(self) -> dict[str, Tensor]:
        """State dict of the method."""
        return _read_tensors(self.path / "model.safetensors")

    def optimizer_state(self) -> dict[str, Tensor]:
        """Tensors of the optimizer, by `<parameter number>.<name>`."""
        return _read_tensors(self.path / "optimizer.safetensors")


def save(
    folder: Path,
    *,
    step: int,
    recipe: dict[str, Any],
    classes: ClassTable,
    normalisation: Normalisation,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor] | None = None,
    scaler: dict[str, Any] | None = None,
) -> Path:
    """Writes `folder/step-<step>`, or `folder/best-<step>` where no optimizer is given. Returns its path."""
    name = f"{'best' if optimizer is None else 'step'}-{step:08d}"
    state = {
        "format": FORMAT,
        "step": step,
        "recipe": recipe,
        "classes": asdict(classes),
        "normalisation": asdict(normalisation),
        "scaler": scaler or {},
    }
    aside, final = folder / f".{name}.tmp", folder / name
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.items()}, aside / "model.safetensors")
    if optimizer is not None:
        save_file({key: value.contiguous() for key, value in optimizer.items()}, aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for file in aside.iterdir():
        _sync(file)
    if final.exists():  # the same step of the same run, written before an interruption
        shutil.rmtree(final)
    aside.rename(final)
    _sync(folder)
    return final


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` resumable checkpoints and all but the newest best one."""
    for pattern, kept in (("step-*", keep), ("best-*", 1)):
        for old in sorted(folder.glob(pattern))[:-kept]:
            shutil.rmtree(old)


def newest(folder: Path, kind: str = "step") -> Checkpoint | None:
    """The newest checkpoint of a kind (`step` or `best`) in `folder`, None where there is none."""
    found = sorted(folder.glob(f"{kind}-*"))
    return read(found[-1]) if found else None


def read(path: Path) -> Checkpoint:
    """Reads what a checkpoint says of itself; tensors are read on demand.

    Raises:
        UserError: `path` is no checkpoint, or one of another format.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(f"{path}: is a checkpoint of format {state['format']}; this semiseg reads format {FORMAT}")
        return Checkpoint(
            path=path,
            step=state["step"],
            recipe=state["recipe"],
            classes=ClassTable(
                names=tuple(state["classes"]["names"]),
                colors=tuple((r, g, b) for r, g, b in state["classes"]["colors"]),
                background=state["classes"]["background"],
            ),
            normalisation=Normalisation(**{key: tuple(value) for key, value in state["normalisation"].items()}),
            scaler=state["scaler"],
        )
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a readable checkpoint ({type(error).__name__}: {error})") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by `<parameter number>.<name>`; its numbers come from the recipe and the step."""
    return {
        f"{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts tensors back that `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
