"""Writes and reads checkpoints: tensors as safetensors, everything else as JSON.

Opening a checkpoint executes no code from it, even if the checkpoint comes from somebody else.

A checkpoint is a folder. It is written under another name, synced and then renamed, so it is either complete or absent:

    model.safetensors       tensors of the method: student, teacher, buffers
    optimizer.safetensors   tensors of the optimizer, e.g. momentum (`best-*` has none, so no run can resume from it)
    state.json              format, step, recipe, class table, normalization, predictor, scaler, steps without a record
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.files import sync
from semiseg.types import ClassTable, Normalization

FORMAT = 4


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read from disk. It suffices to use the network; the recipe file is not needed.

    Attributes:
        path: the folder of the checkpoint.
        step: number of completed steps.
        recipe: the recipe of the run, as plain values.
        classes: the meaning of the network's outputs.
        normalization: the normalization of the network's input.
        predictor: names of the method's networks that are evaluated and used together. The names of their tensors start
            with them.
        scaler: state of the fp16 gradient scaler.
        pending: scalars of the steps since the last training record, by name; empty if the step has a record.
        skipped: files that could not be read in these steps.
        seconds: the time that these steps took, s.
        waited: the part of this time in which the run waited for the loader, s.
    """

    path: Path
    step: int
    recipe: dict[str, Any]
    classes: ClassTable
    normalization: Normalization
    predictor: list[str]
    scaler: dict[str, Any]
    pending: dict[str, list[float]]
    skipped: list[str]
    seconds: float
    waited: float

    def model_state(self) -> dict[str, Tensor]:
        """Reads the state dict of the method."""
        return _read_tensors(self.path / "model.safetensors")

    def load_model(self, method: nn.Module) -> None:
        """Loads the weights of all the method's networks into `method`.

        Raises:
            UserError: the weights belong to another method or network.
        """
        self._load(method, self.model_state())

    def load_predictor(self, network: nn.Module, name: str) -> None:
        """Loads the weights of one of the predictors into `network`, without the rest of the method.

        Raises:
            UserError: the weights belong to another network.
        """
        head = f"{name}."
        state = {key.removeprefix(head): value for key, value in self.model_state().items() if key.startswith(head)}
        self._load(network, state)

    def _load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        own = {key: value.shape for key, value in module.state_dict().items()}
        if wrong := sorted(own.items() ^ {key: value.shape for key, value in state.items()}.items()):
            raise UserError(f"{self.path}: its tensors are not those of its recipe's network, e.g. {wrong[0][0]}")
        module.load_state_dict(state)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Reads the tensors of the optimizer, by `<name of the parameter>.<name of the state>`."""
        return _read_tensors(self.path / "optimizer.safetensors")


def save(
    folder: Path,
    *,
    step: int,
    recipe: dict[str, Any],
    classes: ClassTable,
    normalization: Normalization,
    predictor: Sequence[str],
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor] | None = None,
    scaler: dict[str, Any] | None = None,
    pending: dict[str, list[float]] | None = None,
    skipped: Sequence[str] = (),
    seconds: float = 0.0,
    waited: float = 0.0,
) -> Path:
    """Writes `folder/step-<step>`, or `folder/best-<step>` if no optimizer is given. Returns its path.

    A checkpoint that exists already is not written again: the recipe determines the steps, so its content is the same.

    Raises:
        UserError: the checkpoint cannot be written. Its files are removed, and other checkpoints do not change.
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
        "predictor": list(predictor),
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
    """Returns the path of a checkpoint by its kind (`step` or `best`) and step. The checkpoint need not exist."""
    return folder / f"{kind}-{step:08d}"


def prune(folder: Path, keep: int, every: int | None = None) -> None:
    """Deletes all but the newest `keep` resumable checkpoints, those at multiples of `every`, and the newest best."""
    for pattern, kept in (("step-*", keep), ("best-*", 1)):
        for old in sorted(folder.glob(pattern))[:-kept]:
            if pattern == "best-*" or every is None or int(old.name.removeprefix("step-")) % every:
                _delete(old)


def resumable(folder: Path) -> list[Checkpoint]:
    """Reads the resumable checkpoints in `folder`, the oldest first."""
    return [read(path) for path in sorted(folder.glob("step-*"))]


def rewind(folder: Path, step: int) -> None:
    """Deletes what an interruption left: incomplete checkpoints, and best ones of more than `step` completed steps."""
    for aside in folder.glob(".*.tmp"):
        shutil.rmtree(aside)
    for best in folder.glob("best-*"):
        if best > path_of(folder, "best", step):
            _delete(best)


def newest(folder: Path, kind: str = "step") -> Checkpoint | None:
    """Reads the newest checkpoint of a kind (`step` or `best`) in `folder`. Returns None if there is none."""
    found = sorted(folder.glob(f"{kind}-*"))
    return read(found[-1]) if found else None


def read(path: Path) -> Checkpoint:
    """Reads the state.json of a checkpoint. Its methods read the tensors later.

    Raises:
        UserError: `path` is not a checkpoint, or has another format.
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
            predictor=[str(name) for name in state["predictor"]],
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


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _reason(error: Exception) -> str:
    """Returns why a write failed: the text of an OSError, or the first line of the message of safetensors."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _delete(checkpoint: Path) -> None:
    """Deletes a checkpoint. It is renamed first, so an interruption leaves no incomplete one under its name."""
    aside = checkpoint.with_name(f".{checkpoint.name}.tmp")
    checkpoint.rename(aside)
    shutil.rmtree(aside)
