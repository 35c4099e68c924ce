"""A run that was interrupted anywhere and resumed equals an uninterrupted run bit by bit."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg import api
from semiseg.engine import checkpoint
from semiseg.losses import inverse_sqrt
from semiseg.recipe.load import validate
from semiseg.runs import Run

MEASURED = ("images_per_second", "waited", "peak_memory_mb")
ENGINE = {"steps": 7, "log_every": 2, "eval_every": 3, "save_every": 2}
DEEPLAB = {"architecture": "deeplabv3plus", "options": {"decoder_channels": 16}}  # has dropout


def left_behind(run: Run) -> dict[str, Any]:
    """Reads all files of a run, without times and memory."""
    left: dict[str, Any] = {"hardness": (run.path / "hardness.csv").read_text()}
    for kind in ("train", "val"):
        left[kind] = [
            {key: value for key, value in record.items() if key not in MEASURED} for record in run.metrics(kind)
        ]
    for path in sorted(run.checkpoints.iterdir()):
        saved = checkpoint.read(path)
        left[path.name] = (saved.step, saved.model_state(), {} if "best" in path.name else saved.optimizer_state())
    return left


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """uninterrupted("imas", "unet") -> the files of an uninterrupted run; each run is trained once."""
    done: dict[tuple[str, str], dict[str, Any]] = {}

    def uninterrupted(method: str, architecture: str) -> dict[str, Any]:
        if (method, architecture) not in done:
            values = settings(recipe, method, architecture)
            run = api.train(validate(values, "recipe"), tmp_path_factory.mktemp("runs") / "whole")
            done[method, architecture] = left_behind(run)
        return done[method, architecture]

    return uninterrupted


def settings(recipe: Callable[..., dict], method: str, architecture: str, workers: int = 0) -> dict[str, Any]:
    model = DEEPLAB if architecture == "deeplabv3plus" else {}
    return recipe(method, engine=ENGINE, model=model, data={"workers": workers})


@pytest.fixture
def check(interrupted) -> Callable[..., None]:
    def check(values: dict[str, Any], out: Path, expected: dict[str, Any], *interruptions: tuple[str, int]) -> None:
        for where, call in interruptions:
            with interrupted(where, call):
                api.train(validate(values, "recipe"), out)
        assert_same(left_behind(api.train(validate(values, "recipe"), out)), expected)

    return check


def test_the_uninterrupted_run(uninterrupted):
    """Checks that the uninterrupted runs are fit to compare with."""
    left = uninterrupted("imas", "unet")
    assert [record["step"] for record in left["train"]] == [2, 3, 4, 6, 7]
    assert [record["step"] for record in left["val"]] == [3, 6, 7]
    assert left["hardness"].count("\n") == 1 + 7 * 2
    step, model, optimizer = left["step-00000007"]
    assert step == 7
    networks = {key.split(".")[0] for key in model}
    assert networks == {"student", "teacher"}
    assert any("running_var" in key for key in model)
    assert len(optimizer) > 10
    assert any(
        not torch.equal(value, model[key.replace("student", "teacher")])
        for key, value in model.items()
        if key.startswith("student")
    )


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("semiseg.engine.step.make_batch", 1),  # before anything was logged
        ("semiseg.engine.checkpoint.save_file", 1),  # before anything was saved
        ("semiseg.engine.step.make_batch", 6),  # in the middle of a step
        ("semiseg.runs.Run.log_hardness", 4),  # between two files of the log
        ("semiseg.engine.train.evaluate", 2),
        ("semiseg.engine.checkpoint.save_file", 3),  # the first best checkpoint is half written
        ("semiseg.engine.checkpoint.save_file", 4),  # a resumable one is
        ("semiseg.engine.checkpoint.save_file", 5),  # its optimizer is missing
        ("semiseg.engine.checkpoint.prune", 2),  # there is one too many
    ],
)
def test_resumed_equals_uninterrupted(check, recipe, uninterrupted, tmp_path, where, call):
    check(settings(recipe, "imas", "unet"), tmp_path / "run", uninterrupted("imas", "unet"), (where, call))


@pytest.mark.parametrize("method", ["supervised", "imas"])
@pytest.mark.parametrize("workers", [0, 1])
def test_with_workers_and_dropout(check, recipe, uninterrupted, tmp_path, method, workers):
    values = settings(recipe, method, "deeplabv3plus", workers)
    at = ("semiseg.engine.step.make_batch", 6)
    check(values, tmp_path / "run", uninterrupted(method, "deeplabv3plus"), at)  # of a run without workers


def test_interrupted_again_and_again(check, recipe, uninterrupted, tmp_path):
    at = "semiseg.engine.step.make_batch"
    stops = ((at, 4), (at, 2), (at, 3), ("semiseg.engine.checkpoint.save_file", 1))
    check(settings(recipe, "imas", "unet"), tmp_path / "run", uninterrupted("imas", "unet"), *stops)


def test_resumed_in_low_precision(check, recipe, tmp_path):
    few = {"steps": 3, "eval_every": 3}  # bf16 is slow where it is emulated
    values = recipe("imas", engine=ENGINE | few | {"precision": "bf16"}, model=DEEPLAB)
    whole = left_behind(api.train(validate(values, "recipe"), tmp_path / "whole"))
    check(values, tmp_path / "run", whole, ("semiseg.engine.step.make_batch", 3))


def test_resumed_between_two_steps_with_hardness_of_the_student(check, recipe, tmp_path):
    """The checkpoint of step 4 has the last agreement of student and teacher. The student predicts again in step 6."""
    values = recipe("imas", engine=ENGINE, method={"hardness_every": 5, "threshold": 0.4})
    whole = left_behind(api.train(validate(values, "recipe"), tmp_path / "whole"))
    assert 0 < whole["step-00000007"][1]["agreement"] < 1
    check(values, tmp_path / "run", whole, ("semiseg.engine.step.make_batch", 5))


def test_resumed_with_an_optimizer_that_counts_its_steps(check, recipe, tmp_path):
    optim = {"kind": "adamw", "lr": 0.001, "warmup_steps": 3, "max_grad_norm": 1}
    values = recipe("imas", engine={"steps": 3, "eval_every": 3, "save_every": 2}, optim=optim)
    whole = left_behind(api.train(validate(values, "recipe"), tmp_path / "whole"))
    assert {value.item() for key, value in whole["step-00000003"][2].items() if key.endswith(".step")} == {3}
    check(values, tmp_path / "run", whole, ("semiseg.engine.step.make_batch", 3))


def test_resumed_with_class_balanced_labels(check, recipe, tmp_path):
    values = recipe("supervised", engine=ENGINE, data={"labeled_order": "class_balanced", "temperature": 0.1})
    run = api.train(validate(values, "recipe"), tmp_path / "whole")
    assert len(run.class_counts()) == 6
    assert all(sum(counts.values()) == 32 * 32 for counts in run.class_counts())
    check(values, tmp_path / "run", left_behind(run), ("semiseg.engine.step.make_batch", 5))


def test_resumed_with_class_weights(check, recipe, tmp_path):
    """The weights come from the counted masks, and change what is learned."""
    values = recipe("supervised", engine=ENGINE)

    def train(out: str, weights: Any) -> Run:
        values["method"]["labeled_loss"] = {"class_weights": weights}
        return api.train(validate(values, "recipe"), tmp_path / out)

    run = train("whole", "inverse_sqrt")
    listed = inverse_sqrt(run.class_counts(), 6)
    assert max(listed) > 1.2 * min(listed)
    losses = [
        [record["labeled"] for record in one.metrics("train")]
        for one in (run, train("listed", listed), train("plain", None))
    ]
    assert losses[0] == losses[1] != losses[2]
    values["method"]["labeled_loss"] = {"class_weights": "inverse_sqrt"}
    check(values, tmp_path / "run", left_behind(run), ("semiseg.engine.step.make_batch", 5))


@pytest.mark.parametrize("cached_first", [False, True])
def test_resumed_with_another_way_to_load(interrupted, recipe, uninterrupted, tmp_path, cached_first):
    first, second = (
        validate(recipe("imas", engine=ENGINE, data={"workers": 0, "cache": cache}), "recipe")
        for cache in (cached_first, not cached_first)
    )
    with interrupted("semiseg.engine.step.make_batch", 6):
        api.train(first, tmp_path / "run")
    assert_same(left_behind(api.train(second, tmp_path / "run")), uninterrupted("imas", "unet"))


def test_no_loader_process_outlives_a_run(interrupted, recipe, tmp_path):
    values = settings(recipe, "imas", "unet", workers=1)
    gc.disable()
    try:
        with interrupted("semiseg.engine.step.make_batch", 6):  # after an evaluation
            api.train(validate(values, "recipe"), tmp_path / "run")
        api.train(validate(values, "recipe"), tmp_path / "run")
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()
