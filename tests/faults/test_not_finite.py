"""A loss or a weight that is not finite: the run stops, names the images of the step, and does not save the step."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import pytest
from conftest import TRAIN

from semiseg import data
from semiseg.augment.views import Views
from semiseg.data.loader import train_loader
from semiseg.recipe.load import load_recipe


def loss_at(step: int, value: float) -> None:
    """The loss of one step, counted from 1, is `value`."""

    def around(forward: Callable[..., Any]) -> Callable[..., Any]:
        def spoilt(self: Any, batch: Any, at: Any, part: Any) -> Any:
            losses = forward(self, batch, at, part)
            return replace(losses, total=losses.total * value) if at.step + 1 == step else losses

        return spoilt

    harness.wrap("semiseg.methods.imas.Method.forward", around)


def weight_after(step: int, network: str) -> None:
    """A weight of one network is infinite once a step is taken whose loss was finite."""

    def around(after_step: Callable[..., Any]) -> Callable[..., Any]:
        def spoilt(self: Any, at: Any, observed: Any) -> None:
            after_step(self, at, observed)
            if at.step + 1 == step:
                weight = next(getattr(self, network).parameters()).detach()
                weight[(0,) * weight.dim()] = math.inf

        return spoilt

    harness.wrap("semiseg.methods.imas.Method.after_step", around)


def assert_all_finite(run: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"metrics.jsonl holds {constant}")

    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert all(math.isfinite(hardness) for _, _, hardness in harness.Run(run).hardness())
    harness.newest_step(run)  # its tensors are finite, or this fails


def test_a_loss_names_its_step_and_its_images(here, semiseg, whole):
    folder = here()
    ended = semiseg(TRAIN, lambda: loss_at(8, math.inf))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("semiseg: run: the loss of step 8 is inf; its images are labeled ")
    assert ended.err.endswith("earlier checkpoints are kept\n")

    recipe = load_recipe(folder / "recipe.yaml")
    dataset = data.load(recipe.data)
    (batch,) = train_loader(dataset, recipe.data, Views(), batch_size=2, seed=0, start=7, num_steps=8)
    labeled = [dataset.labeled[index].name for index in batch.labeled_index.tolist()]
    unlabeled = [dataset.unlabeled[index].name for index in batch.index.tolist()]
    assert f"labeled {', '.join(labeled)}; unlabeled {', '.join(unlabeled)};" in ended.err
    event = harness.Run(folder / "run").events()[-1]
    assert (event["event"], event["step"]) == ("not finite", 8)
    assert (event["labeled"], event["unlabeled"]) == (labeled, unlabeled)

    assert harness.newest_step(folder / "run") == 5
    assert_all_finite(folder / "run")
    assert semiseg(TRAIN).code == 0  # e.g. the fault was one of the machine
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_a_learning_rate_that_is_far_too_high(here, semiseg):
    folder = here(engine={"save_every": 1, "eval_every": 1, "log_every": 1})
    ended = semiseg(f"{TRAIN} --set optim.lr=1.0e+30")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "optim.lr" in ended.err
    assert "Traceback" not in ended.out
    assert_all_finite(folder / "run")


@pytest.mark.parametrize(("step", "network"), [(4, "teacher"), (5, "student")])  # a best checkpoint, a resumable one
def test_an_infinite_weight_is_never_saved(here, semiseg, whole, step, network):
    folder = here()
    ended = semiseg(TRAIN, lambda: weight_after(step, network))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"run: weights are not finite after step {step}" in ended.err
    assert list((folder / "run").glob(f"checkpoints/*-{step:08d}")) == []
    assert_all_finite(folder / "run")
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_nor_by_a_run_that_is_stopped(here, semiseg):
    folder = here()

    def prepare() -> None:
        weight_after(7, "student")
        harness.at("semiseg.engine.step.make_batch", 7, partial(harness.signal_itself, signal.SIGTERM))

    ended = semiseg(TRAIN, prepare)
    assert ended.code == 143
    assert ended.err.count("\n") == 1
    assert "step 7 cannot be saved: run: weights are not finite" in ended.err
    assert harness.newest_step(folder / "run") == 5
