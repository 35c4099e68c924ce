"""Saving and loading a checkpoint of iMAS, with student, teacher and momentum.

python benchmarks/checkpoint.py
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import torch

from semiseg import optim
from semiseg.engine import checkpoint
from semiseg.engine.optimizers import Optimizers
from semiseg.methods import imas
from semiseg.models.build import Config, build
from semiseg.rng import seeded
from semiseg.types import ClassTable, Normalization

CLASSES = ClassTable.of([str(number) for number in range(21)], background=0)


def trained(encoder: str, device: torch.device) -> tuple[imas.Method, Optimizers]:
    """Makes a method, and optimizers that have momentum."""
    with seeded(0):
        method = imas.Method(imas.Config(), lambda: build(Config(encoder=encoder, weights=None), 21), CLASSES)
    method.to(device)
    return method, Optimizers(optim.Config(), method)


def save(folder: Path, method: imas.Method, optimizers: Optimizers) -> Path:
    """Saves a checkpoint. First it removes an existing one, which `checkpoint.save` would keep."""
    shutil.rmtree(checkpoint.path_of(folder, "step", 1), ignore_errors=True)
    return checkpoint.save(
        folder, step=1, recipe={}, classes=CLASSES, normalization=Normalization(), predictor=["teacher"],
        model=method.state_dict(), optimizer=optimizers.tensors(method),
    )  # fmt: skip


def load(path: Path, method: imas.Method, optimizers: Optimizers) -> None:
    """Loads a checkpoint as a resumed run does."""
    found = checkpoint.read(path)
    found.load_model(method)
    optimizers.load(method, found.optimizer_state())


def plain_write(path: Path, content: bytes) -> None:
    """Writes as many bytes and syncs them, to measure the disk alone."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def measure(run: common.Settings, results: common.Results) -> None:
    """Times saving, loading, and the disk alone; then how saving grows with the size."""
    encoder = run.size("resnet50", "resnet50", "tu-test_efficientnet")
    encoders = run.size(
        ("resnet18", "resnet50", "resnet101"), ("resnet18", "resnet50", "resnet101"), ("tu-test_efficientnet",)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        method, optimizers = trained(encoder, run.device)
        content = b"".join(file.read_bytes() for file in save(folder, method, optimizers).iterdir())
        results.settings |= {"encoder": encoder}
        results.figure("size", "MB", len(content) / 1e6)
        path = checkpoint.path_of(folder, "step", 1)
        results.time(
            {
                "save": lambda: save(folder, method, optimizers),
                "disk alone, as many bytes": lambda: plain_write(folder / "plain", content),
                "load": lambda: load(path, method, optimizers),
            },
            usual=7,
        )
        results.ratio("save / disk alone", "save", "disk alone, as many bytes")
        runs: dict[float, Callable[[], object]] = {}
        for each in encoders:
            parts = trained(each, run.device)
            size = sum(value.numel() for value in parts[0].state_dict().values()) / 1e6
            runs[round(size, 1)] = lambda parts=parts, each=each: save(folder / each, *parts)
        results.grow("save", "million values in student and teacher", runs, 5)
        results.note("Both are synced to the disk.")


if __name__ == "__main__":
    common.main("checkpoint", __doc__, measure)
