"""Describes how the results of a run were made: versions, hardware, precision, commit, labels, classes."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from semiseg.data.dataset import Dataset
from semiseg.data.partitions import partition_hash, published_name
from semiseg.engine.runtime import Runtime

_PACKAGES = ("semiseg", "torch", "torchvision", "segmentation-models-pytorch", "timm", "accelerate", "numpy", "pillow")


def describe(dataset: Dataset, runtime: Runtime) -> dict[str, Any]:
    """Returns the values of environment.json."""
    classes = dataset.classes
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": machine(),
        "precision": {"used": runtime.precision, "reason": runtime.reason, "device": str(runtime.device)},
        "labels": labels(dataset),
        "classes": {
            "names": list(classes.names),
            "colors": [list(color) for color in classes.colors],
            "background": classes.background,
        },
    }


def labels(dataset: Dataset) -> dict[str, Any]:
    """Returns numbers of images, hashes of the labeled and the validation ones, and the name if it is published."""
    annotated = [sample.name for sample in dataset.labeled if not sample.pseudo]
    digest, pseudo = partition_hash(annotated), len(dataset.labeled) - len(annotated)
    return {
        "labeled": len(annotated),
        **({"pseudo_labeled": pseudo} if pseudo else {}),
        "unlabeled": len(dataset.unlabeled),
        "val": len(dataset.val),
        "partition": digest,
        "published": published_name(digest),
        "val_partition": partition_hash([sample.name for sample in dataset.val]),
    }


def machine() -> dict[str, Any]:
    """Describes the hardware."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"system": platform.platform(), "cpu": _cpu(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """Returns the commit of semiseg's own checkout, or None for an installed package."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
