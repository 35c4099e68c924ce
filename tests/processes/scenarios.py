"""What processes do in these tests; each function runs in every process of a group."""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from semiseg import api, cli, data
from semiseg.data.loader import _EvalItems
from semiseg.engine import step as stepping
from semiseg.engine.predict import Predictor
from semiseg.engine.runtime import Runtime
from semiseg.engine.step import Stepper
from semiseg.errors import UserError
from semiseg.models import build
from semiseg.recipe.load import validate
from semiseg.types import Normalization


def train(recipes: dict[str, Any], out: str, small: bool = True, trouble: dict[str, Any] | None = None) -> None:
    """Trains recipes one after another, each into its folder of `out`."""
    networks = mock.patch.object(build, "build", _small if small else build.build)
    with networks, _in_trouble(**trouble or {}):
        for name, values in recipes.items():
            api.train(validate(values, "recipe"), Path(out) / name)


def command(
    arguments: list[str], late: int | None = None, patience: float = 10, trouble: dict[str, Any] | None = None
) -> None:
    """What `semiseg` does with these arguments. Process `late` comes a second later than the others."""
    sys.argv = ["semiseg", *arguments]
    if _rank() == late:
        time.sleep(1)
    with mock.patch.object(cli, "_PATIENCE_S", patience), _in_trouble(**trouble or {}):
        cli.main()


def watched(recipe: dict[str, Any], out: str) -> dict[str, Any]:
    """Trains a recipe; returns what this process saw, and a digest of all its tensors after every step."""
    seen: dict[str, Any] = {"strong": [], "index": [], "states": []}
    take, make_batch = Stepper.take, stepping.make_batch

    def watched_take(self: Stepper, *args: Any) -> Any:
        losses = take(self, *args)
        state = self.method.state_dict()
        seen["states"].append(
            {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in state.items()}
        )
        return losses

    def watched_batch(*args: Any) -> Any:
        batch = make_batch(*args)
        seen["strong"] += [view.clone() for view in batch.strong[0]]
        seen["index"] += batch.index.tolist()
        return batch

    with mock.patch.object(Stepper, "take", watched_take), mock.patch.object(stepping, "make_batch", watched_batch):
        api.train(validate(recipe, "recipe"), out)
    return seen


def evaluations(run: str, lists: list[list[str]]) -> list[tuple[Any, list[int]]]:
    """Scores of a run on lists of images, and which of them this process loaded."""
    found, load = [], _EvalItems._load
    for overrides in lists:
        loaded: list[int] = []

        def spy(self: Any, index: int, loaded: list[int] = loaded) -> Any:
            loaded.append(index)
            return load(self, index)

        with mock.patch.object(_EvalItems, "_load", spy):
            found.append((vars(api.evaluate(run, overrides=overrides)), loaded))
    return found


def predictions(run: str, images: str, out: str, write: list[str]) -> list[tuple[int, ...]]:
    """Predicts files; returns the shapes of the images that this process predicted."""
    seen, probabilities = [], Predictor.probabilities

    def spy(self: Predictor, image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return probabilities(self, image)

    with mock.patch.object(Predictor, "probabilities", spy):
        api.predict(run, images, out, device="cpu", write=write)
    return seen


def batch_statistics() -> list[float]:
    """Running statistics after they were averaged that were 1 and 10 times the rank."""
    runtime, method = Runtime("cpu"), nn.ModuleList([nn.BatchNorm2d(2), nn.Linear(1, 1), nn.BatchNorm1d(1)])
    for module in (method[0], method[2]):
        module.running_mean.fill_(runtime.rank)
        module.running_var.fill_(10 * runtime.rank)
    runtime.average_batch_statistics(method)  # type: ignore[arg-type]
    return [value for module in (method[0], method[2]) for value in (*module.running_mean, *module.running_var)]


def gone_astray(recipe: str, out: str) -> None:
    """Trains, but the second process does not find the images, and nothing ends it."""
    load = data.load

    def not_found(*args: Any) -> Any:
        if _rank() == 1:
            raise UserError("photos: no such folder")
        return load(*args)

    with mock.patch.object(data, "load", not_found):
        command(["train", recipe, "--out", out], patience=0.1)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _small(_: build.Config, num_classes: int, channels: int = 3) -> build.Network:
    """A network without batch statistics, so that images do not influence each other.

    It decides for squares of 4 px: the fewer decisions there are, the seldomer a rounding error makes another one. And
    it is sure enough of itself for pseudo-labels.
    """
    encoder = nn.Sequential(nn.Conv2d(channels, 16, 4, 4), nn.GroupNorm(4, 16), nn.ReLU())
    body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
    head = nn.Conv2d(16, num_classes, 1)
    with torch.no_grad():
        head.weight *= 4
    net = build.Undivided(encoder)
    net.segmentation_head = nn.Sequential(body, head, nn.Upsample(scale_factor=4))
    return build.Network(net, Normalization(), 4)


@contextmanager
def _in_trouble(
    step: int = -1, rank: int = 0, signum: int = 0, to_parent: bool = False, spoil: str = "", nan: bool = False
) -> Iterator[None]:
    """When process `rank` comes to step `step`, something happens to it or its data."""
    take, make_batch = Stepper.take, stepping.make_batch
    now = False

    def troubled(self: Stepper, at: int, *args: Any) -> Any:
        nonlocal now
        now = at == step and self.runtime.rank == rank
        if now and spoil:
            Path(spoil).write_bytes(b"no image")
        if now and signum:
            os.kill(os.getppid() if to_parent else os.getpid(), signum)
            time.sleep(0.5 * to_parent)
        return take(self, at, *args)

    def spoilt(*args: Any) -> Any:
        batch = make_batch(*args)
        return replace(batch, image=batch.image * float("nan")) if now and nan else batch

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Stepper, "take", troubled))
        stack.enter_context(mock.patch.object(stepping, "make_batch", spoilt))
        yield
