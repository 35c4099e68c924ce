"""The training loop: what it logs, evaluates and saves, and when."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg import data
from semiseg.data import partitions
from semiseg.data.masks import read_pair
from semiseg.engine import checkpoint, environment, reporter, setup
from semiseg.engine import step as stepping
from semiseg.engine import train as engine
from semiseg.engine.log import NotFiniteError
from semiseg.engine.predict import make_predictor
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.methods import imas
from semiseg.metrics import Scores, add_confusion, scores
from semiseg.recipe.load import dump, validate
from semiseg.recipe.recipe import Recipe
from semiseg.runs import Run


class Listener(reporter.Silent):
    """A reporter that stores all calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def on_step(self, record: dict[str, Any]) -> None:
        self.told.append(("step", record))

    def on_train(self, record: dict[str, Any]) -> None:
        self.told.append(("train", record))

    def on_evaluation(self, done: int, total: int) -> None:
        self.told.append(("evaluation", (done, total)))

    def on_scores(self, record: dict[str, Any]) -> None:
        self.told.append(("val", record))


Start = Callable[..., tuple[Recipe, data.Dataset, Run]]


@pytest.fixture
def start(recipe, tmp_path: Path) -> Start:
    """start("imas", engine={...}) -> recipe, dataset and a run directory that was just started."""

    def start(
        method: str = "imas", /, name: str = "run", **sections: dict[str, Any]
    ) -> tuple[Recipe, data.Dataset, Run]:
        validated = validate(recipe(method, **sections), "recipe")
        dataset, run = data.load(validated.data), Run(tmp_path / name)
        run.start(dump(validated), {}, [sample.name for sample in dataset.unlabeled])
        return validated, dataset, run

    return start


def steps(run: Run, kind: str) -> list[int]:
    return [record["step"] for record in run.metrics(kind)]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that are saved, in order."""
    names: list[str] = []
    save = checkpoint.save

    def spy(*args: Any, **kwargs: Any) -> Path:
        path = save(*args, **kwargs)
        names.append(path.name)
        return path

    monkeypatch.setattr(checkpoint, "save", spy)
    return names


def test_when_it_logs_evaluates_and_saves(start, saved):
    prepared = start(engine={"steps": 11, "log_every": 4, "eval_every": 5, "save_every": 3, "keep_checkpoints": 2})
    listener = Listener()
    engine.train(*prepared, listener)
    run = prepared[2]
    assert steps(run, "train") == [3, 4, 5, 6, 8, 9, 10, 11]  # each fourth, and what evaluations and checkpoints need
    assert steps(run, "val") == [5, 10, 11]  # the last step always
    assert [name for name in saved if "step" in name] == [f"step-{n:08d}" for n in (3, 6, 9, 11)]
    best = run.best()["step"]
    assert saved.index("best-00000005") < saved.index("step-00000006")
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == [f"best-{best:08d}", "step-00000009", "step-00000011"]

    assert [record for kind, record in listener.told if kind == "train"] == run.metrics("train")
    assert [record for kind, record in listener.told if kind == "val"] == run.metrics("val")
    assert [count for kind, count in listener.told if kind == "evaluation"] == [(n, 4) for n in (1, 2, 3, 4)] * 3


def test_each_step_is_reported_however_often_it_logs(start):
    every, rarely = (
        start(name=name, engine={"log_every": n, "eval_every": 4, "save_every": 4}) for name, n in (("a", 1), ("b", 4))
    )
    told = []
    for prepared in (every, rarely):
        listener = Listener()
        engine.train(*prepared, listener)
        told.append([record for kind, record in listener.told if kind == "step"])
    assert told[0] == told[1]
    assert [record["step"] for record in told[0]] == [1, 2, 3, 4]
    for record, logged in zip(told[0], every[2].metrics("train"), strict=True):
        assert {"step", "images_per_step", "loss", "labeled", "unlabeled", "easiness"} <= record.keys()
        assert all(logged[name] == pytest.approx(value, abs=1e-6) for name, value in record.items())


def test_a_tenth_of_the_run_unless_told(start, saved):
    prepared = start("supervised", engine={"steps": 20, "eval_every": None, "save_every": None, "log_every": 50})
    engine.train(*prepared)
    assert steps(prepared[2], "val") == list(range(2, 21, 2))
    assert [name for name in saved if "step" in name] == [f"step-{n:08d}" for n in range(2, 21, 2)]


def test_a_record_is_the_mean_of_its_steps(start):
    every, whole = (
        start(name=name, engine={"log_every": n, "eval_every": 4, "save_every": 4}) for name, n in (("a", 1), ("b", 4))
    )
    engine.train(*every)
    engine.train(*whole)
    (record,) = whole[2].metrics("train")
    each = every[2].metrics("train")
    assert [r["step"] for r in each] == [1, 2, 3, 4]
    for name in ("loss", "labeled", "unlabeled", "easiness"):
        assert record[name] == pytest.approx(sum(r[name] for r in each) / 4, abs=2e-6)
    assert list(every[2].hardness()) == list(whole[2].hardness())  # of every step, however often it is logged
    assert [r["lr"] for r in each] == pytest.approx([0.2 * (1 - step / 4) ** 0.9 for step in range(4)])
    assert record["images_per_step"] == 4
    assert record["images_per_second"] > 0
    assert 0 <= record["waited"] <= 1


def test_the_norm_of_the_gradient_is_recorded(start, monkeypatch):
    """Before it is shortened, as its steps see it; a record has their mean."""
    norms = []
    take = stepping.Optimizers.step

    def spy(self: stepping.Optimizers, scaler: Any) -> torch.Tensor:
        norms.append(torch.cat([parameter.grad.flatten() for parameter in self.parameters()]).norm().item())
        return take(self, scaler)

    monkeypatch.setattr(stepping.Optimizers, "step", spy)
    listener = Listener()
    prepared = start(optim={"max_grad_norm": 1e-3}, engine={"log_every": 2})
    engine.train(*prepared, listener)
    assert len(norms) == 4
    assert min(norms) > 0.01
    told = [record["gradient_norm"] for kind, record in listener.told if kind == "step"]
    assert told == pytest.approx(norms, rel=1e-4)
    means = [(norms[0] + norms[1]) / 2, (norms[2] + norms[3]) / 2]
    assert [r["gradient_norm"] for r in prepared[2].metrics("train")] == pytest.approx(means, rel=1e-4)


def test_every_network_is_scored_and_the_first_one_decides(start, monkeypatch):
    """The student's scores fall while the teacher's rise."""
    teacher, evaluate = iter([0.2, 0.3, 0.5, 0.4]), engine.evaluate

    def scripted(networks: Any, *args: Any) -> Any:
        assert evaluate(networks, *args).keys() == networks.keys()
        miou = next(teacher)
        return {name: Scores(miou if name == "teacher" else 1 - miou, (0.5,) * 6, 0.25) for name in networks}

    monkeypatch.setattr(engine, "evaluate", scripted)
    prepared = start(engine={"eval_every": 1, "save_every": 4, "steps": 4})
    engine.train(*prepared)
    run = prepared[2]
    for record in run.metrics("val"):
        assert list(record["networks"]) == ["teacher", "student"]
        for each in record["networks"].values():
            assert each.keys() == {"miou", "accuracy", "iou"}
        assert {name: record[name] for name in ("miou", "accuracy", "iou")} == record["networks"]["teacher"]
        assert record["networks"]["student"]["miou"] == 1 - record["miou"]
    assert run.best()["step"] == 3
    assert checkpoint.newest(run.checkpoints).predictor == ["teacher"]


def test_a_single_network_needs_no_names(start):
    prepared = start("supervised")
    engine.train(*prepared)
    assert all("networks" not in record for record in prepared[2].metrics("val"))
    assert checkpoint.newest(prepared[2].checkpoints).predictor == ["student"]


def test_networks_that_are_used_together_are_saved_and_loaded_together(start, monkeypatch):
    monkeypatch.setattr(
        imas.Method, "evaluated", lambda self: {"mean": (self.student, self.teacher), "teacher": (self.teacher,)}
    )
    recipe, dataset, run = start()
    engine.train(recipe, dataset, run)
    record = run.metrics("val")[-1]
    assert list(record["networks"]) == ["mean", "teacher"]
    saved = checkpoint.newest(run.checkpoints)
    assert saved.predictor == ["student", "teacher"]
    predictor, weights = make_predictor(saved, "cpu"), saved.model_state()
    for name, network in zip(saved.predictor, predictor.networks, strict=True):
        for key, value in network.state_dict().items():
            assert torch.equal(value, weights[f"{name}.{key}"])
    matrix = torch.zeros(6, 6, dtype=torch.int64)
    for image, mask in (read_pair(sample, dataset.coding) for sample in dataset.val):
        matrix = add_confusion(matrix, predictor.predict(image).long(), mask.long())
    assert scores(matrix).miou == record["miou"]


def test_hardness_is_one_minus_easiness(start):
    prepared = start(engine={"log_every": 1})
    engine.train(*prepared)
    rows = list(prepared[2].hardness())
    for record in prepared[2].metrics("train"):
        hardness = [h for step, _, h in rows if step == record["step"]]
        assert len(hardness) == 2
        assert sum(hardness) / 2 == pytest.approx(1 - record["easiness"], abs=1e-4)


def test_the_best_checkpoint_is_the_best(start, monkeypatch):
    miou = iter([0.2, 0.5, 0.5, 0.4])
    evaluate = engine.evaluate

    def scripted(*args: Any, **kwargs: Any) -> Any:
        best = Scores(miou=next(miou), iou=(0.0,) * 6, accuracy=0.0)
        return dict.fromkeys(evaluate(*args, **kwargs), best)

    monkeypatch.setattr(engine, "evaluate", scripted)
    prepared = start(engine={"eval_every": 1, "save_every": 4})
    engine.train(*prepared)
    run = prepared[2]
    assert run.best()["step"] == 2  # the earlier of equals
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best-00000002", "step-00000004"]


def test_a_checkpoint_knows_all_that_prediction_needs(start):
    recipe, dataset, run = start(model={"mean": [0.4, 0.5, 0.6]})
    engine.train(recipe, dataset, run)
    saved = checkpoint.newest(run.checkpoints)
    assert saved.recipe == recipe.to_dict()
    assert saved.classes == dataset.classes
    assert saved.normalization.mean == (0.4, 0.5, 0.6)


def test_a_loss_that_is_not_finite_stops_the_run(start):
    recipe, dataset, run = start(optim={"lr": 1e30}, engine={"log_every": 1, "eval_every": 4, "save_every": 4})
    with pytest.raises(NotFiniteError, match=r"the loss of step [234] is (nan|inf); .*; lower optim.lr") as caught:
        engine.train(recipe, dataset, run)
    assert str(run.path) in str(caught.value)
    assert checkpoint.newest(run.checkpoints) is None  # nothing that is no use is saved


def test_so_does_one_of_a_method_that_measures_no_hardness(start, monkeypatch):
    recipe, dataset, run = start()
    forward = imas.Method.forward

    def spoilt(*args: Any) -> Any:
        losses = forward(*args)
        return replace(losses, total=losses.total * torch.nan, hardness=None)

    monkeypatch.setattr(imas.Method, "forward", spoilt)
    with pytest.raises(NotFiniteError, match=r"the loss of step 1 is nan; its images are labeled \S+, \S+; unlabeled "):
        engine.train(recipe, dataset, run)


def test_a_method_without_unlabeled_images_loads_none(start, monkeypatch):
    seen = []
    make_batch = stepping.make_batch
    monkeypatch.setattr(stepping, "make_batch", lambda loaded, *rest: seen.append(loaded) or make_batch(loaded, *rest))
    prepared = start("supervised")
    engine.train(*prepared)
    assert {len(loaded.weak) for loaded in seen} == {0}
    assert list(prepared[2].hardness()) == []
    assert prepared[2].metrics("train")[0]["images_per_step"] == 2


def test_methods_start_alike_and_see_the_same_labels(start, monkeypatch):
    """Same seed: same initial weights, same labeled batches in the same order."""
    built, batches = [], []
    make_batch = stepping.make_batch

    def spy_build(*args: Any) -> Any:
        method = build_method(*args)
        built.append({key: value.clone() for key, value in method.student.state_dict().items()})
        return method

    monkeypatch.setattr(setup, "build_method", spy_build)
    monkeypatch.setattr(
        stepping, "make_batch", lambda loaded, *rest: batches.append(loaded) or make_batch(loaded, *rest)
    )
    for method in ("supervised", "imas"):
        engine.train(*start(method, name=method))
    one, other = built
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert len(batches) == 8
    for first, second in zip(batches[:4], batches[4:], strict=True):
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.label, second.label)


def test_a_vision_transformer_trains_on_crops_of_any_size(start):
    options = {"patch_size": 16, "dynamic_img_size": True, "embed_dim": 24, "num_heads": 2}
    options |= {"decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8}
    model = {"architecture": "dpt", "encoder": "tu-vit_small_patch14_dinov2", "options": options}
    recipe, dataset, run = start(model=model, data={"crop": 37}, engine={"steps": 2, "log_every": 1})
    before = build_method(recipe, dataset.classes)
    engine.train(recipe, dataset, run)
    assert steps(run, "train") == [1, 2]
    after = checkpoint.newest(run.checkpoints).model_state()
    trained = [name for name, parameter in before.named_parameters() if parameter.requires_grad]
    assert any(".encoder." in name for name in trained)
    assert not any(torch.equal(after[name], before.get_parameter(name)) for name in trained)


def test_another_seed_is_another_run(start):
    runs = [start(name=f"{seed}", engine={"seed": seed}) for seed in (0, 1)]
    for prepared in runs:
        engine.train(*prepared)
    assert runs[0][2].metrics("train")[0]["loss"] != runs[1][2].metrics("train")[0]["loss"]
    assert list(runs[0][2].hardness()) != list(runs[1][2].hardness())


def test_low_precision_agrees_with_fp32(start):
    """The first step starts from the same weights, so its hardness and losses differ by rounding alone."""
    loose = {"threshold": 0.2}  # most pixels count, so that a few that round to the other side matter little
    runs = {}
    for precision in ("fp32", "bf16"):
        prepared = start(name=precision, method=loose, engine={"steps": 2, "log_every": 1, "precision": precision})
        engine.train(*prepared)
        runs[precision] = prepared[2]
    full, low = runs["fp32"], runs["bf16"]
    first, second = (run.metrics("train")[0] for run in (full, low))
    assert first["labeled"] != second["labeled"]  # it does compute in bf16
    assert second["labeled"] == pytest.approx(first["labeled"], rel=0.02)
    for (_, name, one), (_, same, other) in zip(list(full.hardness())[:2], list(low.hardness())[:2], strict=True):
        assert name == same
        assert other == pytest.approx(one, abs=0.02)
    stored = checkpoint.newest(low.checkpoints).model_state()
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float32}


def test_environment(start, monkeypatch):
    _, dataset, _ = start()
    monkeypatch.setattr("sys.argv", ["/usr/bin/semiseg", "train", "a b.yaml"])
    described = environment.describe(dataset, Runtime("cpu"))
    assert json.loads(json.dumps(described)) == described
    assert described["command"] == ["semiseg", "train", "a b.yaml"]
    assert described["machine"].keys() == {"system", "cpu", "threads", "gpus"}
    assert described["machine"]["threads"] == torch.get_num_threads()
    assert described["labels"]["labeled"] == 6
    assert described["precision"] == {"used": "fp32", "reason": "set by engine.precision", "device": "cpu"}
    assert described["classes"] == {
        "names": ["ground", "disc", "box", "star", "ring", "cloth"],
        "colors": [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]],
        "background": 0,
    }


def test_a_published_partition_is_named(start, monkeypatch):
    _, dataset, _ = start()
    digest = environment.labels(dataset)["partition"]
    monkeypatch.setitem(partitions._PUBLISHED, digest, "Scenes 6")
    assert environment.labels(dataset)["published"] == "Scenes 6"


def test_no_commit_is_known_of_an_installed_package(monkeypatch):
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", missing)
    assert environment.commit() is None


def test_the_logs_are_on_the_disk_before_the_checkpoint_that_relies_on_them(start, monkeypatch):
    """After a power failure there is no checkpoint whose records are missing."""
    happened: list[str] = []
    save, synced, log = checkpoint.save, Run.sync, Run.log
    monkeypatch.setattr(Run, "log", lambda run, record: happened.append("written") or log(run, record))
    monkeypatch.setattr(Run, "sync", lambda run: happened.append("synced") or synced(run))
    monkeypatch.setattr(checkpoint, "save", lambda *a, **k: happened.append("saved") or save(*a, **k))
    engine.train(*start(engine={"steps": 4, "eval_every": 2, "save_every": 2}))
    assert happened.count("saved") >= 3
    assert all(before == "synced" for before, now in pairwise(happened) if now == "saved")
