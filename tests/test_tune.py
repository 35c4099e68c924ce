"""`semiseg tune`: what it trains, on which images, and the recipe that it writes."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from semiseg import api, cli, queue
from semiseg.augment.pools import CANDIDATES
from semiseg.errors import UserError
from semiseg.losses import LabeledLoss
from semiseg.recipe.load import changes_of_result, dump, load_recipe, validate
from semiseg.runs import Run
from semiseg.tune import tune

SHORT = {"folds": 2, "steps": 2}


@pytest.fixture
def base(recipe):
    return validate(recipe(method={"name": "imas", "threshold": 0.3}, optim={"warmup_steps": 2}), "recipe")


def pretend(job: queue.Job, iou: list[float]) -> None:
    """Writes what a complete training writes."""
    job.run.start(dump(load_recipe(job.recipe)), {}, [])
    job.run.log({"kind": "val", "step": job.steps, "miou": 0.0, "iou": iou})


IOU = {"none": 0.4, "mild": 0.6, "intensity": 0.45, "weights": 0.7}


@pytest.fixture
def trained_jobs(monkeypatch):
    """The names of the jobs in their order. Those of jitter are trained, the others only pretend.

    The IoU of each class is that of the table above, a point more on the second fold; but mild loses the class disc.
    """
    done: list[str] = []

    def work(jobs, console, at_once=1, devices=(), until=None):
        for job in jobs:
            done.append(job.name)
            name, fold = job.name.split(", ")
            if name.endswith("class weights"):
                name = "weights"
            if name == "jitter":
                api.train(job.recipe, job.run.path)
                continue
            iou = [IOU[name] + (0.01 if fold == "fold 2" else 0.0)] * 6
            if name == "mild":
                iou[1] = 0.0
            pretend(job, iou)
        return {}

    monkeypatch.setattr(queue, "work", work)
    return done


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_recipe_is_tuned(base, tmp_path, trained_jobs, monkeypatch, capsys, scenes):
    out = tmp_path / "tuned.yaml"
    found = tune(base, out, **SHORT)
    weighted = [f"mild with class weights, fold {fold}" for fold in (1, 2)]
    assert trained_jobs == [f"{name}, fold {fold}" for fold in (1, 2) for name in CANDIDATES] + weighted

    # folds: the labeled images alone, each measured once
    work = tmp_path / "tuned-tune"
    parts = [{key: lines(work / f"fold-{n}/{key}.txt") for key in ("labeled", "val")} for n in (1, 2)]
    labeled = lines(scenes / "splits/labeled.txt")
    assert sorted(parts[0]["val"] + parts[1]["val"]) == sorted(labeled)
    assert [sorted(part["labeled"] + part["val"]) for part in parts] == [sorted(labeled)] * 2

    # trials differ in the pool alone
    trials = {name: load_recipe(Run(work / name / "fold-2").config) for name in CANDIDATES}
    assert {name: trial.method.labeled for name, trial in trials.items()} == CANDIDATES
    assert {trial.method_name for trial in trials.values()} == {"supervised"}
    trial = trials["jitter"]
    assert all(changes_of_result(trial, each)[1:] == [] for each in trials.values())  # method.labeled alone
    assert (trial.data.labeled, trial.data.val) == tuple(work / f"fold-2/{key}.txt" for key in ("labeled", "val"))
    assert (trial.engine.steps, trial.engine.seed, trial.optim.warmup_steps) == (2, base.engine.seed, 1)

    # the choice: only one image shows a ring, so five classes are measured; with mild four of them have 60 %, then 61 %
    assert (found.choice.name, "is clear" in found.choice.reason) == ("mild", True)
    (mild,) = (line for line in found.report if line.startswith("mild"))
    assert mild.split() == ["mild", "48.4", "±", "0.6", "+7.9", "±", "1.3", "disc"]

    # class weights: they differ from the chosen pool in this alone, and all five classes have 70 %
    weights = load_recipe(Run(work / "mild-with-class-weights" / "fold-2").config)
    assert weights.method.labeled_loss.class_weights == "inverse_sqrt"
    assert len(changes_of_result(trials["mild"], weights)) == 1
    assert found.weights is not None
    assert (found.weights.name, "is clear" in found.weights.reason) == ("class weights", True)
    (line,) = (line for line in found.report if line.startswith("class weights"))
    assert line.split() == ["class", "weights", "70.5", "±", "0.7", "+22.1", "±", "1.3"]

    # the new recipe: that of before with the chosen pool, and the reasons above it
    new, chosen = load_recipe(out), CANDIDATES[found.choice.name]
    assert new == found.recipe
    assert new.method.labeled == chosen
    assert new.method.strong == (chosen or CANDIDATES["mild"])
    assert (new.data, new.model, new.optim, new.engine) == (base.data, base.model, base.optim, base.engine)
    assert new.method.threshold == 0.3
    assert new.method.labeled_loss == weights.method.labeled_loss
    head = [line.removeprefix("# ") for line in lines(out) if line.startswith("#")]
    assert head[0].startswith("imas with ")
    assert found.choice.reason in head
    assert found.weights.reason in head
    assert set(found.report) - {""} <= {*head}
    assert any("over 2 folds of 6 labeled images, 2 steps" in line for line in head)

    # again, from the command line: refused, and with another file all is read and nothing is trained
    with pytest.raises(UserError, match=r"tuned\.yaml: exists already"):
        tune(base, out, **SHORT)
    text = out.read_text()
    out.unlink()
    (tmp_path / "base.yaml").write_text(dump(base))
    monkeypatch.undo()
    monkeypatch.setattr(queue, "_Worker", None)
    words = ["semiseg", "tune", str(tmp_path / "base.yaml"), "--out", str(out), "--folds", "2", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert out.read_text() == text
    shown = capsys.readouterr().out
    assert "8 of 8 runs are complete already" in shown
    assert "2 of 2 runs are complete already" in shown
    assert found.choice.reason in shown
    assert found.weights.reason in shown
    assert f"train it: semiseg train {out}" in shown

    # other folds are not mixed with these; other steps neither
    out.unlink()
    with pytest.raises(UserError, match=r"of other labeled images or folds; remove .*tuned-tune"):
        tune(base, out, folds=3, steps=2)
    with pytest.raises(UserError, match=r"holds a run of another recipe \(.*engine.steps: 2 -> 3\)"):
        tune(base, out, folds=2, steps=3)
    assert not out.exists()

    # other masks neither
    mask = shutil.copytree(scenes, tmp_path / "moved") / "masks" / f"{labeled[0]}.png"
    Image.open(mask).point(lambda value: 1).save(mask)
    with pytest.raises(UserError, match=r"holds a run on other masks than .*moved has now"):
        tune(base, out, [f"data.root={tmp_path / 'moved'}"], **SHORT)


@pytest.mark.parametrize(("best", "strong"), [("none", "mild"), ("jitter", "jitter"), ("intensity", "intensity")])
def test_strong_views_get_the_pool_but_never_none(base, tmp_path, monkeypatch, best, strong):
    def work(jobs, *_, **__):
        for job in jobs:
            pretend(job, [0.9 if job.name.startswith(best) else 0.5] * 6)
        return {}

    monkeypatch.setattr(queue, "work", work)
    found = tune(base, tmp_path / "x.yaml", **SHORT)
    assert found.choice.name == best
    method = load_recipe(tmp_path / "x.yaml").method
    assert (method.labeled, method.strong) == (CANDIDATES[best], CANDIDATES[strong])


@pytest.mark.parametrize(
    ("loss", "trials", "chosen"),
    [
        ({}, "none with class weights", "no class weights"),
        ({"class_weights": "inverse_sqrt"}, "none with no class weights", "no class weights"),
        ({"kind": "ohem"}, None, None),
        ({"class_weights": [1, 2, 3, 4, 5, 6]}, None, None),
    ],
)
def test_class_weights_that_the_recipe_has(recipe, tmp_path, monkeypatch, loss, trials, chosen):
    """All scores are equal, so the mildest is chosen. A loss that is not asked about stays, also in the trials."""
    names = []

    def work(jobs, *_, **__):
        for job in jobs:
            names.append(job.name.partition(",")[0])
            pretend(job, [0.5] * 6)
        return {}

    monkeypatch.setattr(queue, "work", work)
    base = validate(recipe(method={"name": "imas", "labeled_loss": loss}), "recipe")
    found = tune(base, tmp_path / "x.yaml", **SHORT)
    assert {*names} - {*CANDIDATES} == ({trials} if trials else set())
    assert (found.weights.name if found.weights else None) == chosen
    mild = load_recipe(Run(tmp_path / "x-tune" / "mild" / "fold-1").config)
    assert mild.method.labeled_loss == base.method.labeled_loss
    assert found.recipe.method.labeled_loss == (LabeledLoss() if chosen else base.method.labeled_loss)


def test_when_the_time_is_over_nothing_is_written(base, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "_Worker", None)
    assert tune(base, tmp_path / "tuned.yaml", minutes=0.0, **SHORT) is None
    assert [path.name for path in tmp_path.iterdir()] == ["tuned-tune"]


def test_two_in_one_folder(base, tmp_path, another_process_in):
    folder = tmp_path / "tuned-tune"
    with (
        another_process_in(folder) as pid,
        pytest.raises(UserError, match=rf"^{folder}: process {pid} on .* trains here; wait for it"),
    ):
        tune(base, tmp_path / "tuned.yaml", minutes=0.0, **SHORT)


def planned(base, out, monkeypatch, **options) -> list[queue.Job]:
    """The jobs that would be trained."""
    jobs: list[queue.Job] = []
    monkeypatch.setattr(queue, "work", lambda found, *_, **__: jobs.extend(found) or {})
    assert tune(base, out, **options) is None
    return jobs


@pytest.mark.parametrize(("steps", "short"), [(60, 50), (600, 200), (9000, 400)])
def test_trainings_are_short(recipe, tmp_path, monkeypatch, steps, short):
    """A supervised recipe keeps its settings; a share of validation images would contradict their list."""
    values = recipe("supervised", method={"ema_decay": 0.5}, engine={"steps": steps})
    values["data"] |= {"val": None, "val_fraction": 0.3, "labeled": None, "unlabeled": None}
    jobs = planned(validate(values, "recipe"), tmp_path / "x.yaml", monkeypatch)
    assert {job.steps for job in jobs} == {short}
    trial = load_recipe(jobs[0].recipe)
    assert (trial.method.ema_decay, trial.engine.steps, trial.engine.eval_every) == (0.5, short, short)


def few(scenes: Path, recipe, tmp_path: Path, count: int):
    """A recipe with this number of labeled images."""
    names = lines(scenes / "splits/labeled.txt")[:count]
    (tmp_path / "labeled.txt").write_text("\n".join(names))
    return validate(recipe("supervised", data={"labeled": str(tmp_path / "labeled.txt")}), "recipe")


def test_few_images_are_folds_each(scenes, recipe, tmp_path, monkeypatch):
    jobs = planned(few(scenes, recipe, tmp_path, 3), tmp_path / "x.yaml", monkeypatch, folds=2)
    assert len(jobs) == 3 * len(CANDIDATES)
    assert [len(lines(tmp_path / f"x-tune/fold-{n}/labeled.txt")) for n in (1, 2, 3)] == [2, 2, 2]


def test_what_cannot_be_tuned(scenes, recipe, base, tmp_path):
    with pytest.raises(UserError, match=r"^data.labeled: 1 image whose mask shows a class; .* label at least 2$"):
        tune(few(scenes, recipe, tmp_path, 1), tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"^--folds 1: needs at least 2"):
        tune(base, tmp_path / "x.yaml", folds=1)
    with pytest.raises(UserError, match=r"none: there is no such folder"):
        tune(base, tmp_path / "none" / "x.yaml")
    shutil.copytree(scenes, tmp_path / "apart")
    for value, name in enumerate(lines(scenes / "splits/labeled.txt")[:2]):
        mask = next((tmp_path / "apart/masks").rglob(f"{name}.png"))
        Image.new("L", (32, 32), value).save(mask)
    with pytest.raises(UserError, match="no class is in two labeled images"):
        tune(
            few(tmp_path / "apart", recipe, tmp_path, 2), tmp_path / "x.yaml", ["data.root=" + str(tmp_path / "apart")]
        )
    assert not (tmp_path / "x.yaml").exists()


def test_a_failed_training_is_told(base, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "work", lambda jobs, *_, **__: {jobs[1].name: "semiseg: no memory"})
    with pytest.raises(UserError, match="1 of 8 trainings failed; mild, fold 1: semiseg: no memory"):
        tune(base, tmp_path / "x.yaml", **SHORT)
    assert not (tmp_path / "x.yaml").exists()
