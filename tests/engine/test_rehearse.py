"""A dry run prints what the run would need and writes no files."""

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semiseg import data
from semiseg.data.loader import _TrainBatches
from semiseg.engine import checkpoint, rehearse
from semiseg.engine import train as training
from semiseg.engine.evaluate import evaluate
from semiseg.engine.rehearse import Rehearsal
from semiseg.engine.runtime import Runtime
from semiseg.engine.step import Stepper
from semiseg.errors import UserError
from semiseg.recipe.load import validate
from semiseg.runs import Run

Rehearse = Callable[..., Rehearsal]


@pytest.fixture
def dry_run(recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearse:
    """dry_run("imas", engine={...}) -> what is said of that run; fails if anything is written."""
    monkeypatch.chdir(tmp_path)

    def dry_run(method: str = "imas", /, **sections: dict[str, Any]) -> Rehearsal:
        validated = validate(recipe(method, **sections), "recipe")
        root = Path(validated.data.root)
        before = {path: path.stat().st_mtime_ns for path in (*root.rglob("*"), *tmp_path.rglob("*"))}
        found = rehearse.rehearse(validated, data.load(validated.data), Runtime("cpu", validated.engine.precision))
        assert {path: path.stat().st_mtime_ns for path in (*root.rglob("*"), *tmp_path.rglob("*"))} == before
        return found

    return dry_run


@pytest.mark.parametrize(("method", "micro"), [("imas", 2), ("supervised", None)])
def test_it_says_what_is_needed(dry_run, method, micro):
    found = dry_run(method, engine={"steps": 40, "batch_size": 4, "micro_batch_size": micro})
    assert 100 < found.train_mb <= found.evaluate_mb < 10_000
    assert 0 < found.step_s < 20
    assert 0 < found.evaluation_s < 20
    assert math.isfinite(found.loss)


@pytest.mark.parametrize(("steps", "eval_every", "evaluations"), [(100, 30, 4), (90, 30, 3), (25, None, 13)])
def test_hours_are_those_of_all_steps_and_evaluations(dry_run, steps, eval_every, evaluations):
    found = dry_run("supervised", engine={"steps": steps, "eval_every": eval_every})
    assert found.hours * 3600 == pytest.approx(steps * found.step_s + evaluations * found.evaluation_s)


def test_times_are_those_of_a_step_and_of_all_images(dry_run, recipe, monkeypatch):
    take, scored = Stepper.take, []

    def slow(self: Stepper, *args: Any) -> Any:
        time.sleep(0.3)
        return take(self, *args)

    def slow_evaluate(networks: Any, items: Any, *args: Any) -> Any:
        time.sleep(0.2 if scored else 2)  # the first evaluation warms up
        scored.append(list(items))
        return evaluate(networks, scored[-1], *args)

    monkeypatch.setattr(Stepper, "take", slow)
    monkeypatch.setattr(rehearse, "evaluate", slow_evaluate)
    found = dry_run()
    assert 0.3 < found.step_s < 3
    assert 4 * 0.2 < found.evaluation_s < 4 * 2  # four images of one size
    assert [len(items) for items in scored] == [1, 1]


@pytest.mark.parametrize(("val_long_side", "size"), [("same", 32), (None, 64), (48, 48)])
def test_the_largest_image_is_that_at_the_size_for_evaluation(
    dry_run, monkeypatch, scenes, tmp_path, val_long_side, size
):
    root = shutil.copytree(scenes, tmp_path / "scenes")
    for kind, filter_ in (("images", Image.Resampling.BILINEAR), ("masks", Image.Resampling.NEAREST)):
        path = root / kind / "val" / "0002.png"
        Image.open(path).resize((64, 64), filter_).save(path)
    scored = []

    def recorded(networks: Any, items: Any, *args: Any) -> Any:
        scored[:] = items
        return evaluate(networks, scored, *args)

    monkeypatch.setattr(rehearse, "evaluate", recorded)
    dry_run("supervised", data={"root": str(root), "long_side": 32, "val_long_side": val_long_side})
    assert [item.image.shape for item in scored] == [(3, size, size)]


def test_a_step_is_the_median_of_those_after_the_first_two(recipe, monkeypatch):
    take, waits = Stepper.take, iter((1.0, 1.0, 0.0, 1.0, 0.0))

    def uneven(self: Stepper, *args: Any) -> Any:
        time.sleep(next(waits))
        return take(self, *args)

    monkeypatch.setattr(Stepper, "take", uneven)
    validated = validate(recipe("supervised", engine={"steps": 9}), "recipe")
    found = rehearse.rehearse(validated, data.load(validated.data), Runtime("cpu"), steps=5)
    assert found.step_s < 1
    assert next(waits, None) is None


def test_a_step_waits_for_its_images(dry_run, monkeypatch):
    load = _TrainBatches.__getitem__

    def slow(self: Any, step: int) -> Any:
        time.sleep(0.3)
        return load(self, step)

    monkeypatch.setattr(_TrainBatches, "__getitem__", slow)
    assert 0.3 < dry_run(data={"workers": 0}).step_s < 3


def test_too_few_images_for_batch_norm(dry_run):
    with pytest.raises(UserError, match=r"engine.micro_batch_size: batch norm cannot learn from 1 labeled image "):
        dry_run("supervised", engine={"batch_size": 2, "micro_batch_size": 1})


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_run(dry_run, steps):
    found = dry_run(engine={"steps": steps})
    assert math.isfinite(found.loss)
    assert found.hours > 0


@pytest.mark.parametrize(
    ("method", "engine"),
    [
        ("imas", {"keep_checkpoints": 2, "save_every": 2, "eval_every": 2}),
        ("imas", {"keep_checkpoints": 1, "save_every": 3, "eval_every": 1}),  # every evaluation is the best so far
    ],
)
def test_room_on_disk_is_what_the_run_takes_at_most(dry_run, recipe, tmp_path, monkeypatch, method, engine):
    values = {"steps": 6, "batch_size": 2, "log_every": 1} | engine
    found = dry_run(method, engine=values)

    validated = validate(recipe(method, engine=values), "recipe")
    dataset, run = data.load(validated.data), Run(tmp_path / "run")
    run.start("", {}, [sample.name for sample in dataset.unlabeled])
    sizes = []
    save, best = checkpoint.save, iter(range(1, 100))

    def measured(*args: Any, **kwargs: Any) -> Path:
        path = save(*args, **kwargs)
        sizes.append(sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file()) / 1e6)
        return path

    def better_and_better(*args: Any) -> Any:
        miou = next(best) / 100
        return {name: replace(scores, miou=miou, accuracy=0.0) for name, scores in evaluate(*args).items()}

    monkeypatch.setattr(checkpoint, "save", measured)
    monkeypatch.setattr(training, "evaluate", better_and_better)
    training.train(validated, dataset, run)
    assert found.disk_mb == pytest.approx(max(sizes), rel=0.1)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not say who waits")
def test_a_busy_machine_is_noticed(dry_run):
    """Another program computes on the same core; threads of this one have to wait."""
    cores = os.sched_getaffinity(0)
    only = {min(cores)}
    program = "print(flush=True)\nwhile True: pass"

    def move(cores):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)

    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            os.sched_setaffinity(other.pid, only)
            move(only)
            found = dry_run("supervised")
        finally:
            other.kill()
            move(cores)
    assert 0.2 < found.waited < 1
    assert found.busy.startswith(f"the machine is busy: during the trial {100 * found.waited:.0f} % of")


def test_an_idle_machine_is_not_called_busy(dry_run, monkeypatch):
    times = [{"1": (0, 0)}, {"1": (94, 6)}]
    monkeypatch.setattr(rehearse, "_processor_times", lambda: times.pop(0))
    found = dry_run("supervised")
    assert (found.waited, found.busy) == (0.06, None)
    assert rehearse._share_of_waiting({}, {}) == 0  # a system that does not say it
