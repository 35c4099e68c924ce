"""Checkpoints: tensors as safetensors, everything else as JSON, so opening a stranger's executes nothing.

A checkpoint is a folder, written aside, synced and renamed, so that it is whole or absent:

    model.safetensors       the method: student, teacher, buffers
    optimizer.safetensors   its state, e.g. momentum (not in `best-*`, which cannot be resumed from)
    state.json              format, step, recipe, class table, normalization, predictor, scaler, what has no record
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.files import sync
from semiseg.types import ClassTable, Normalization

FORMAT = 3


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, as read: enough to use the network without the recipe file.

    Attributes:
        path: its folder.
        step: completed steps.
        recipe: the run's, as plain values.
        classes: what the network's outputs mean.
        normalization: of the network's input.
        predictor: which of the method's networks is evaluated and used: the head of its tensors' names.
        scaler: state of the fp16 gradient scaler.
        pending: scalars of the steps since the last training record, by name; empty where a record was due.
        skipped: files that could not be read in these steps.
        seconds: that these steps took.
        waited: seconds of them in which the loader was waited for.
    """

    path: Path
    step: int
    recipe: dict[str, Any]
    classes: ClassTable
    normalization: Normalization
    predictor: str
    scaler: dict[str, Any]
    pending: dict[str, list[float]]
    skipped: list[str]
    seconds: float
    waited: float

    def model_state(self) -> dict[str, Tensor]:
        """State dict of the method."""
        return _read_tensors(self.path / "model.safetensors")

    def load_model(self, method: nn.Module) -> None:
        """Puts the weights of all the method's networks into `method`.

        Raises:
            UserError: they are of another method or network.
        """
        self._load(method, self.model_state())

    def load_predictor(self, network: nn.Module) -> None:
        """Puts the weights of the network that is used into `network`, without the rest of the method.

        Raises:
            UserError: they are of another network.
        """
        head = f"{self.predictor}."
        state = {key.removeprefix(head): value for key, value in self.model_state().items() if key.startswith(head)}
        self._load(network, state)

    def _load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        own = {key: value.shape for key, value in module.state_dict().items()}
        if wrong := sorted(own.items() ^ {key: value.shape for key, value in state.items()}.items()):
            raise UserError(f"{self.path}: its tensors are not those of its recipe's network, e.g. {wrong[0][0]}")
        module.load_state_dict(state)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Tensors of the optimizer, by `<name of the parameter>.<name of the state>`."""
        return _read_tensors(self.path / "optimizer.safetensors")


def save(
    folder: Path,
    *,
    step: int,
    recipe: dict[str, Any],
    classes: ClassTable,
    normalization: Normalization,
    predictor: str,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor] | None = None,
    scaler: dict[str, Any] | None = None,
    pending: dict[str, list[float]] | None = None,
    skipped: Sequence[str] = (),
    seconds: float = 0.0,
    waited: float = 0.0,
) -> Path:
    """Writes `folder/step-<step>`, or `folder/best-<step>` where no optimizer is given. Returns its path.

    One that is there already stays: steps are a function of the recipe, so it holds the same.

    Raises:
        UserError: it cannot be written; nothing of it is left, and other checkpoints are as they were.
    """
    final = path_of(folder, "best" if optimizer is None else "step", step)
    if final.exists():
        return final
    state = {
        "format": FORMAT,
        "step": step,
        "recipe": recipe,
        "classes": asdict(classes),
        "normalization": asdict(normalization),
        "predictor": predictor,
        "scaler": scaler or {},
        "pending": pending or {},
        "skipped": list(skipped),
        "seconds": seconds,
        "waited": waited,
    }
    aside = folder / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        _write_tensors(aside / "model.safetensors", model)
        if optimizer is not None:
            _write_tensors(aside / "optimizer.safetensors", optimizer)
        (aside / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        for written in (*aside.iterdir(), aside):
            sync(written)
        aside.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = newest(folder)
        last = f"the last one, {kept.path.name}, is whole" if kept else "there is none yet"
        raise UserError(f"{final}: the checkpoint cannot be written ({_reason(error)}); {last}") from error
    return final


def path_of(folder: Path, kind: str, step: int) -> Path:
    """Where the checkpoint of a kind (`step` or `best`) and step is, or would be."""
    return folder / f"{kind}-{step:08d}"


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` resumable checkpoints and all but the newest best one."""
    for pattern, kept in (("step-*", keep), ("best-*", 1)):
        for old in sorted(folder.glob(pattern))[:-kept]:
            _delete(old)


def rewind(folder: Path, step: int) -> None:
    """Deletes what an interruption left: half-written checkpoints, and best ones beyond `step` completed steps."""
    for aside in folder.glob(".*.tmp"):
        shutil.rmtree(aside)
    for best in folder.glob("best-*"):
        if best > path_of(folder, "best", step):
            _delete(best)


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
            step=int(state["step"]),
            recipe=state["recipe"],
            classes=ClassTable(
                names=tuple(state["classes"]["names"]),
                colors=tuple((r, g, b) for r, g, b in state["classes"]["colors"]),
                background=state["classes"]["background"],
            ),
            normalization=Normalization(**{key: tuple(value) for key, value in state["normalization"].items()}),
            predictor=str(state["predictor"]),
            scaler=dict(state["scaler"]),
            pending=dict(state["pending"]),
            skipped=list(state["skipped"]),
            seconds=float(state["seconds"]),
            waited=float(state["waited"]),
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is not a readable checkpoint ({type(error).__name__}: {error})") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors by `<name of the parameter>.<name of the state>`.

    E.g. `student.net.head.weight.momentum_buffer`. What is no tensor comes from the recipe and the step.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
    return {
        f"{names[parameter]}.{name}": value
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, method: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts tensors back that `optimizer_tensors` gave, in the memory layout of their parameters.

    A fused step reads both as they lie in memory (and gradients, which autograd lays out as their parameters). A state
    has the shape of its parameter, or is a single value, as AdamW's number of steps.

    Raises:
        UserError: a tensor belongs to no parameter, has another shape, or is missing where this optimizer starts with
            one.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {names[parameter]: (number, parameter) for number, parameter in enumerate(trained)}
    start, packed = optimizer_tensors(optimizer, method), optimizer.state_dict()
    if missing := sorted(start.keys() - tensors.keys()):
        raise _other_optimizer(missing[0], "is missing")
    for key, value in tensors.items():
        of, _, name = key.rpartition(".")
        if of not in numbered:
            raise _other_optimizer(key, "belongs to no parameter of this network")
        number, parameter = numbered[of]
        if value.shape not in (parameter.shape, ()) or value.shape != start.get(key, value).shape:
            raise _other_optimizer(key, f"has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")
        like = parameter if value.shape == parameter.shape else value
        packed["state"].setdefault(number, {})[name] = torch.empty_like(like).copy_(value)
    optimizer.load_state_dict(packed)


def _other_optimizer(key: str, wrong: str) -> UserError:
    return UserError(f"the optimizer's tensor {key} {wrong}; delete the newest checkpoint to go on from an earlier one")


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _reason(error: Exception) -> str:
    """Of a failed write: OSError has it as text, safetensors inside its message."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _delete(checkpoint: Path) -> None:
    """As a whole: under its name there is never half of it."""
    aside = checkpoint.with_name(f".{checkpoint.name}.tmp")
    checkpoint.rename(aside)
    shutil.rmtree(aside)
