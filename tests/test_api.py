import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import semiseg
from semiseg import api, config
from semiseg.data.read import read_image
from semiseg.data.scenes import CLASSES
from semiseg.engine.recipe import build_method
from semiseg.runs import Run
from semiseg.types import ClassTable


def test_the_five_lines(tmp_path, monkeypatch, recipe, scenes):
    """Those of the package's own documentation."""
    lines = [line for line in semiseg.__doc__.splitlines()[1:] if line]
    assert lines[0] == "import semiseg"
    assert len(lines) == 5
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe(engine={"steps": 1})))
    shutil.copytree(scenes / "images" / "val", "photos")
    names: dict = {}
    exec("\n".join(lines), names)
    assert names["run"] == Run(Path("runs/first"))
    assert names["scores"].miou == names["run"].last()["miou"]
    assert len(list(Path("masks").iterdir())) == 8
    label = names["predictor"].predict(read_image(Path("photos/0000.png")))
    assert label.shape == (32, 32)
    assert label.dtype == torch.uint8


def test_public_names():
    assert set(semiseg.__all__) == {"Run", "UserError", "evaluate", "load", "predict", "train"}
    assert all(getattr(semiseg, name).__doc__ for name in semiseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        semiseg.trane  # noqa: B018


def test_import_does_not_wait_for_torch():
    code = "import sys, semiseg; semiseg.Run, semiseg.UserError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_from_values(tmp_path, recipe):
    validated = config.validate(recipe(), "recipe")
    console = Console(file=io.StringIO(), width=200)
    run = api.train(validated, str(tmp_path / "run"), ["engine.steps=1", "engine.seed=5"], console)
    loaded = config.load(run.config)
    assert (loaded.engine.steps, loaded.engine.seed) == (1, 5)  # settings on top are no silent leftovers
    assert "6 labelled, 8 unlabelled, 4 validation images" in console.file.getvalue()


def test_train_is_silent_unless_told(tmp_path, recipe, capsys):
    api.train(config.validate(recipe(engine={"steps": 1}), "recipe"), tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_evaluate(trained):
    counted = []
    scores = api.evaluate(trained, device="cpu", on_image=lambda *count: counted.append(count))
    last = Run(trained).last()
    assert (scores.miou, scores.accuracy, list(scores.iou)) == (last["miou"], last["accuracy"], last["iou"])
    assert counted == [(n, 4) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluate_computes_in_the_precision_of_the_run(tmp_path, recipe, monkeypatch, precision):
    values = recipe("supervised", engine={"steps": 1, "precision": precision})
    run = api.train(config.validate(values, "recipe"), tmp_path / "run")
    seen = []
    evaluate = api.evaluate_network
    monkeypatch.setattr(api, "evaluate_network", lambda *args: seen.append(args[4].precision) or evaluate(*args))
    assert api.evaluate(run.path).miou == run.last()["miou"]
    api.evaluate(run.path, overrides=["engine.precision=fp32"])
    assert seen == [precision, "fp32"]


@pytest.mark.parametrize("override", ["model.encoder=resnet18", "engine.steps=3", "engine.evaluated=1", "optim.lr=1"])
def test_evaluate_refuses_what_has_no_effect(trained, override):
    with pytest.raises(semiseg.UserError, match=r"has no effect|unknown key"):
        api.evaluate(trained, overrides=[override])


def test_load(trained):
    best, last = api.load(trained), api.load(str(trained), "last", "cpu")
    assert best.step == Run(trained).best()["step"]
    assert last.step == 4
    assert best.classes.names == CLASSES
    assert not best.network.training
    assert not any(parameter.requires_grad for parameter in last.network.parameters())  # the teacher


def test_a_run_can_be_used_where_its_weights_file_is_gone(tmp_path, recipe):
    values = recipe(engine={"steps": 1})
    method = build_method(config.validate(values, "recipe"), ClassTable.of(CLASSES))
    torch.save(method.student.net.encoder.state_dict(), tmp_path / "encoder.pth")
    values["model"]["weights"] = str(tmp_path / "encoder.pth")
    run = api.train(config.validate(values, "recipe"), tmp_path / "run")
    (tmp_path / "encoder.pth").unlink()
    assert api.load(run.path).step == 1
    assert api.evaluate(run.path).miou == run.last()["miou"]


def test_a_run_can_be_moved(tmp_path, trained):
    moved = shutil.copytree(trained, tmp_path / "elsewhere")
    assert api.evaluate(moved).miou == Run(trained).last()["miou"]


def test_predict_counts(trained, scenes, tmp_path):
    counted = []
    number = api.predict(trained, scenes / "images", tmp_path / "out", on_image=lambda *count: counted.append(count))
    assert number == 18
    assert counted == [(n, 18) for n in range(1, 19)]


def test_partitions(recipe, tmp_path, scenes):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    written = api.partitions(str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), [5, 0.5])
    assert [path.name for path in written] == [
        "labeled_3.txt", "unlabeled_3.txt", "labeled_5.txt", "unlabeled_5.txt"
    ]  # fmt: skip
    everything = api.partitions(tmp_path / "recipe.yaml", tmp_path / "all", [6], overrides=["data.labeled=null"])
    assert everything[0].read_text() == (scenes / "splits" / "labeled.txt").read_text()


def test_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert api.folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert not (tmp_path / "new").exists()
    assert api.folder(tmp_path) == tmp_path
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(semiseg.UserError, match=r"file: is a file; name a folder with --out"):
            api.folder(path)
