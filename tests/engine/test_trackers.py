"""A training shown live: TensorBoard's files are read back; Weights & Biases and MLflow are packages of this test."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from semiseg import api
from semiseg.engine import trackers
from semiseg.engine.pictures import beside_mask
from semiseg.engine.saving import Saver
from semiseg.engine.trackers import Tracking
from semiseg.errors import Interrupted, UserError
from semiseg.recipe.load import validate
from semiseg.runs import Run
from semiseg.types import IGNORE, ClassTable

FAKE = """
import json, os
from pathlib import Path
SAID = Path(os.environ["FAKE_TRACKER"])
def say(*what):
    if os.environ.get("FAKE_FAILS") == str(what[0]):
        raise ConnectionError("the server is gone")
    with SAID.open("a") as file:
        file.write(json.dumps(what, default=lambda value: list(value.shape)) + "\\n")
"""
WANDB = """
class _Run:
    def log(self, values, step=None, commit=False):
        if commit:
            return say("commit", step)
        say("log", {k: v if isinstance(v, float) else [i.shape for i in v] for k, v in values.items()}, step)
    def finish(self):
        say("finish")
class Image:
    def __init__(self, image):
        self.shape = image.shape
def init(project, **settings):
    say("init", project, settings)
    return _Run()
"""
MLFLOW = """
from types import SimpleNamespace as N
utils = N(validation=N(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100))
def search_experiments(filter_string):
    return []
def create_experiment(name, **_):
    say("experiment", name)
    return "1"
def start_run(run_id, run_name, **_):
    say("start", run_id, run_name)
    return N(info=N(run_id=run_id or "new"))
def log_params(values):
    say("params", len(values))
def log_metrics(values, step=None):
    say("log", values, step)
class MlflowClient:
    def get_metric_history(self, run_id, key):
        logged = [json.loads(line) for line in SAID.read_text().splitlines()]
        return [N(step=entry[2]) for entry in logged if entry[0] == "log" and key in entry[1]]
def log_image(image, key, step):
    say("image", key, image.shape, step)
def end_run():
    say("finish")
"""


@pytest.fixture
def train(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Run]:
    """train(steps=4, trackers=["wandb"]) -> a run; the same directory each time."""

    def train(**engine: Any) -> Run:
        return api.train(validate(recipe("fixmatch", engine={"trackers": None, **engine}), "recipe"), tmp_path / "run")

    return train


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """Installs packages that write down what they are told; returns a function that reads it."""
    said = tmp_path / "said"
    monkeypatch.setenv("FAKE_TRACKER", str(said))
    for name, text in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(FAKE + text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield lambda: [json.loads(line) for line in said.read_text().splitlines()]
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def shown(run: Run) -> EventAccumulator:
    found = EventAccumulator(str(run.path / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def curve(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_tensorboard_shows_every_record(train):
    run = train()
    found = shown(run)
    records, scores = run.metrics("train"), run.metrics("val")
    assert [record["step"] for record in records] == [2, 4]
    for key in set(records[0]) - {"kind", "step", "pseudo_shares"}:
        expected = [(record["step"], pytest.approx(record[key])) for record in records]
        assert curve(found, f"train/{key}") == expected, key
    names = run.environment()["classes"]["names"]
    for index, name in enumerate(names):
        expected = [(record["step"], pytest.approx(record["iou"][index])) for record in scores]
        assert curve(found, f"iou/{name}") == expected
    assert curve(found, "val/miou") == [(record["step"], pytest.approx(record["miou"])) for record in scores]
    assert "fixmatch" in found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    images = found.Tags()["images"]
    assert len(images) == 4
    assert all(tag.startswith("predictions/") for tag in images)
    for tag in images:
        assert [(event.step, event.height, event.width) for event in found.Images(tag)] == [(2, 32, 64), (4, 32, 64)]


def test_a_resumed_run_continues_the_curves(train, interrupted, tmp_path):
    """It stops before its fourth step is recorded, three steps after its checkpoint: they are taken again."""
    whole = curve(shown(train(steps=6, log_every=1, eval_every=3, save_every=3)), "train/loss")
    (tmp_path / "run").rename(tmp_path / "whole")
    with interrupted("semiseg.engine.step.Stepper.take", 6):
        train(steps=6, log_every=1, eval_every=3, save_every=3)
    run = Run(tmp_path / "run")
    assert run.metrics("train")[-1]["step"] == 5
    assert [step for step, _ in curve(shown(run), "train/loss")] == [1, 2, 3, 4, 5]
    train(steps=6, log_every=1, eval_every=3, save_every=3)
    assert curve(shown(run), "train/loss") == whole
    assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
    files = {*(run.path / "tensorboard").iterdir()}
    train(steps=6, log_every=1, eval_every=3, save_every=3)  # complete: nothing is shown
    assert {*(run.path / "tensorboard").iterdir()} == files


def test_trackers_change_no_result(train, tmp_path):
    with_it = train()
    (tmp_path / "run").rename(tmp_path / "with")
    without = train(trackers=[])
    with_it = Run(tmp_path / "with")
    assert not (without.path / "tensorboard").exists()
    losses = [[record["loss"] for record in run.metrics("train")] for run in (with_it, without)]
    assert losses[0] == losses[1]
    assert with_it.last() == without.last()
    train(trackers=["tensorboard"])  # the setting may change when a run goes on


def test_wandb_knows_a_resumed_run(train, fake, interrupted):
    with interrupted("semiseg.engine.step.Stepper.take", 4):
        train(trackers=["wandb"])
    train(trackers=["wandb"])
    said = fake()
    first, second = (entry for entry in said if entry[0] == "init")
    assert first[1] == "semiseg"
    assert first[2]["config"]["method"]["name"] == "fixmatch"
    assert (first[2]["resume"], first[2]["name"]) == ("allow", "run")
    assert first[2]["id"] == second[2]["id"]
    logged = [entry for entry in said if entry[0] == "log"]
    assert [step for _, values, step in logged if "train/loss" in values] == [2, 4]
    assert [step for _, values, step in logged if "val/miou" in values] == [2, 4]
    pictures = [values for _, values, _ in logged if any(key.startswith("predictions/") for key in values)]
    assert [[*values.values()] for values in pictures] == [[[[32, 64, 3]]]] * 8
    assert said[-1] == ["finish"]


def test_mlflow_knows_a_resumed_run(train, fake, interrupted):
    with interrupted("semiseg.engine.step.Stepper.take", 4):
        train(trackers=["mlflow"])
    train(trackers=["mlflow"])
    said = fake()
    assert [entry for entry in said if entry[0] == "start"] == [["start", None, "run"], ["start", "new", "run"]]
    assert len([entry for entry in said if entry[0] == "params"]) == 1
    assert [entry[2] for entry in said if entry[0] == "log"] == [2, 2, 4, 4]
    images = [entry for entry in said if entry[0] == "image"]
    assert len({key for _, key, _, _ in images}) == 4
    assert all(key.startswith("predictions/") for _, key, _, _ in images)
    assert [(shape, step) for _, _, shape, step in images] == [([32, 64, 3], 2)] * 4 + [([32, 64, 3], 4)] * 4


def test_mlflow_shows_no_step_twice(train, fake, interrupted):
    """The run stops three steps after its checkpoint, like a process that is killed: they are taken again."""
    with interrupted("semiseg.engine.step.Stepper.take", 6):
        train(steps=6, log_every=1, eval_every=2, save_every=3, trackers=["mlflow"])
    train(steps=6, log_every=1, eval_every=2, save_every=3, trackers=["mlflow"])
    logged = [entry for entry in fake() if entry[0] == "log"]
    assert [step for _, values, step in logged if "train/loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for _, values, step in logged if "val/miou" in values] == [2, 4, 6]


def test_wandb_loses_no_step_of_a_checkpoint(train, fake, monkeypatch):
    """It keeps the newest step to itself. A kill after the checkpoint would lose it, as a resumed run goes on later."""
    saved = []
    save = Saver.save
    monkeypatch.setattr(Saver, "save", lambda self, done, log: (saved.append((done, fake())), save(self, done, log)))
    train(steps=4, log_every=1, eval_every=2, save_every=2, trackers=["wandb"])
    assert [done for done, _ in saved] == [2, 4]
    for done, said in saved:
        assert said[-1] == ["commit", done]
        assert [entry[1] for entry in said if entry[0] == "commit"] == [*range(1, done + 1)]


def test_pictures_that_cannot_be_stored_cost_no_curve(train, fake, monkeypatch):
    """MLflow stores pictures elsewhere than curves."""
    monkeypatch.setenv("FAKE_FAILS", "image")
    run = train(trackers=["mlflow"])
    said = fake()
    assert [entry[2] for entry in said if entry[0] == "log"] == [2, 2, 4, 4]
    assert said[-1] == ["finish"]
    (event,) = (event for event in run.events() if event["event"] == "tracker lost")
    assert (event["tracker"], event["reason"]) == ("mlflow (pictures)", "the server is gone")


def test_names_of_pictures(fake, tmp_path):
    tracking = Tracking(Run(tmp_path), [], lambda name, reason: pytest.fail(reason))
    assert not tracking.shows_pictures
    tracking.trackers["mlflow"] = object()
    assert tracking.shows_pictures
    tracking.pictures(3, {"a:b (ß)": np.zeros((2, 4, 3), np.uint8), "c/d 1": np.zeros((2, 4, 3), np.uint8)})
    assert fake() == [
        ["image", "predictions/a_x3ab _x28_xdf_x29", [2, 4, 3], 3],
        ["image", "predictions/c/d 1", [2, 4, 3], 3],
    ]


def test_a_server_that_is_gone_ends_no_training(train, fake, monkeypatch):
    monkeypatch.setenv("FAKE_FAILS", "log")
    run = train(trackers=["wandb", "tensorboard"])
    assert run.last()["step"] == 4
    assert [step for step, _ in curve(shown(run), "train/loss")] == [2, 4]
    (event,) = (event for event in run.events() if event["event"] == "tracker lost")
    assert (event["tracker"], event["reason"], event["step"]) == ("wandb", "the server is gone", 2)


def test_a_tracker_that_cannot_be_started(train, fake, monkeypatch):
    monkeypatch.setenv("FAKE_FAILS", "init")
    with pytest.raises(UserError, match=r"^engine.trackers: wandb cannot be started \(the server is gone\); "):
        train(trackers=["wandb"])
    monkeypatch.delenv("FAKE_FAILS")
    assert train(trackers=["wandb"]).last()["step"] == 4  # the same command, when the server is there


def test_a_broken_tensorboard_that_nobody_asked_for(train, monkeypatch):
    def broken(*_: Any) -> Any:
        raise ImportError("no protobuf")

    monkeypatch.setitem(trackers._START, "tensorboard", broken)
    run = train()
    assert run.last()["step"] == 4
    assert [event["event"] for event in run.events()][:2] == ["tracker lost", "started"]


def test_a_missing_package_is_said_before_training(train, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # what wandb leaves is no package
    monkeypatch.syspath_prepend("")
    says = r"^engine.trackers: the package wandb is not installed; pip install wandb, or leave it out$"
    with pytest.raises(UserError, match=says):
        train(trackers=["tensorboard", "wandb"])
    assert not (tmp_path / "run").exists()
    train(steps=2, trackers=[])
    with pytest.raises(UserError, match=says):
        train(steps=2, trackers=["wandb"])


def test_without_tensorboard_nothing_is_shown(train, monkeypatch):
    monkeypatch.setattr(trackers, "_is_installed", lambda name: False)
    assert not (train().path / "tensorboard").exists()


def test_the_setting(recipe):
    for wrong, says in ((["wandb", "wandb"], "names a tracker twice"), (["aim"], "should be 'tensorboard', 'wandb'")):
        with pytest.raises(UserError, match=f"engine.trackers.*{says}"):
            validate(recipe(engine={"trackers": wrong}), "recipe")
    assert validate(recipe(engine={"trackers": ["mlflow"]}), "recipe").engine.trackers == ("mlflow",)


def test_unused_packages_are_not_imported():
    code = (
        "import sys, semiseg.engine.train; print([n for n in ('tensorboard', 'wandb', 'mlflow') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


class Told:
    """A tracker that stores what it is told."""

    def __init__(self) -> None:
        self.values: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.values.append((values, step))


def test_names_of_curves(tmp_path):
    tracking = Tracking(Run(tmp_path), ["sky", "traffic [x]"], lambda name, reason: None)
    tracking.trackers["told"] = told = Told()
    tracking.on_train({"kind": "train", "step": 3, "loss": 1.5, "norm": None, "pseudo_shares": [0.5, 0.25]})
    scores = {"miou": 0.5, "accuracy": 0.75, "iou": [0.5, None]}
    student = {"miou": 0.25, "accuracy": 0.5, "iou": [0.25, 0.125]}
    quality = {"thresholds": [0.0, 0.95], "kept": [1.0, None], "accuracy": [0.5, 0.75], "precision": [[1.0]]}
    networks = {"teacher": scores, "student": student}
    tracking.on_scores({"kind": "val", "step": 4, **scores, "networks": networks, "pseudo_labels": quality})
    x = "traffic _x5bx_x5d"
    assert told.values == [
        ({"train/loss": 1.5, "pseudo-label share/sky": 0.5, f"pseudo-label share/{x}": 0.25}, 3),
        (
            {
                "val/miou": 0.5,
                "val/accuracy": 0.75,
                "iou/sky": 0.5,
                "val/miou student": 0.25,
                "val/accuracy student": 0.5,
                "iou student/sky": 0.25,
                f"iou student/{x}": 0.125,
                "pseudo-labels/kept at 0": 1.0,
                "pseudo-labels/accuracy at 0": 0.5,
                "pseudo-labels/accuracy at 0.95": 0.75,
            },
            4,
        ),
    ]


def test_a_prediction_beside_its_mask():
    classes = ClassTable(("ground", "sky"), ((0, 0, 0), (100, 200, 50)), background=0)
    image, prediction = torch.full((3, 4, 8), 100, dtype=torch.uint8), torch.ones(4, 8, dtype=torch.uint8)
    mask = torch.zeros(4, 8, dtype=torch.uint8)
    mask[:, 4:] = IGNORE
    found = beside_mask(image, prediction, mask, classes)
    assert found.shape == (4, 16, 3)
    assert (found[:, :8] == np.array([100, 140, 80])).all()  # 0.6 of the image, 0.4 of the color
    assert (found[:, 8:12] == 100).all()
    assert (found[:, 12:] == 0).all()


def test_only_the_first_process_shows(train, monkeypatch):
    """The others have no tracker: `start` is not called there."""
    from semiseg.engine.runtime import Runtime

    original = Runtime.__init__

    def second(self: Runtime, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.is_main = False

    run = train(steps=2)
    assert len([*(run.path / "tensorboard").iterdir()]) == 1
    monkeypatch.setattr(Runtime, "__init__", second)
    monkeypatch.setattr(Tracking, "start", lambda *_: pytest.fail("started"))
    recipe = api.load_recipe(run.config)
    api.train_recipe(recipe, api.data.load(recipe.data), run)


def test_it_ends_when_a_run_is_stopped(train, fake, monkeypatch):
    def stops(*_: Any) -> None:
        raise Interrupted("stopped", 15)

    monkeypatch.setattr("semiseg.engine.train._Training._stop_if_asked", stops)
    with pytest.raises(Interrupted):
        train(trackers=["wandb"])
    assert fake()[-1] == ["finish"]
