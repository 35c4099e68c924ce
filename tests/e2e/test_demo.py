import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from semiseg import demo
from semiseg.engine import progress
from semiseg.engine.setup import build_method
from semiseg.percent import percent
from semiseg.recipe.load import differences, load_recipe
from semiseg.runs import Run
from semiseg.types import ClassTable

STEPS = 4  # of small_demo


@pytest.fixture(scope="module")
def shown(tmp_path_factory, small_demo) -> tuple[Path, dict[str, Run], str]:
    """A demo of a few small scenes: the current directory, the runs, and what was printed."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("demo")
        patched.chdir(folder)
        small_demo(patched)
        console = Console(file=io.StringIO(), width=160, color_system=None)
        runs = demo.main(None, 3, console)
        return folder, {name: Run(folder / run.path) for name, run in runs.items()}, console.file.getvalue()


def test_it_prints_a_table(shown):
    _, runs, text = shown
    assert "drawing scenes" not in text  # they were drawn soon
    for line in ("mIoU, last", "mIoU, best (step)", "training, s", "ground", "cloth"):
        assert line in text
    assert [*runs] == ["supervised", "iMAS"]
    for run in runs.values():
        assert percent(run.last()["miou"]) in text
    assert "demo.png" in text


def test_scenes_are_ordinary_files(shown):
    folder, _, _ = shown
    scenes = folder / "semiseg-demo" / "scenes"
    assert len(list((scenes / "images/train").iterdir())) == 20
    assert len(list((scenes / "masks/train").iterdir())) == 6
    assert len((scenes / "splits/labeled.txt").read_text().split()) == 6


def test_the_picture_shows_predictions_and_the_easiest_and_hardest_images(shown):
    folder, runs, _ = shown
    with Image.open(folder / "semiseg-demo" / "demo.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 4 * 160
    assert pixels.shape[0] > 8 * 160
    for run in runs.values():
        for path in (run.path / "predictions").iterdir():
            with Image.open(path) as mask:
                assert (mask.mode, mask.size) == ("P", (32, 32))
    hardness = demo.mean_hardness(runs["iMAS"])
    assert 0 < len(hardness) <= 14
    assert all(0 <= value <= 1 for value in hardness.values())


def test_both_runs_are_alike_but_for_the_method(shown):
    _, runs, _ = shown
    recipes = [load_recipe(run.config) for run in runs.values()]
    changed = differences(*(loaded.to_dict() for loaded in recipes))
    assert {difference.split(".")[0] for difference in changed} == {"method"}
    assert len({run.environment()["labels"]["partition"] for run in runs.values()}) == 1
    assert [run.last()["step"] for run in runs.values()] == [STEPS, STEPS]
    assert [run.metrics("train")[-1]["step"] for run in runs.values()] == [STEPS, STEPS]
    classes = ClassTable.of(["ground", "disc", "box", "star", "ring", "cloth"], 0)
    one, other = (build_method(loaded, classes).student.state_dict() for loaded in recipes)
    assert all(torch.equal(one[key], other[key]) for key in one)  # the same initial weights


def test_every_seed_is_used(shown):
    _, runs, _ = shown
    assert {load_recipe(run.config).engine.seed for run in runs.values()} == {3}


def test_a_second_call_takes_a_new_folder(shown, small_demo, monkeypatch, contents):
    folder, _, _ = shown
    small_demo(monkeypatch)
    monkeypatch.chdir(folder)
    before = contents(folder)
    demo.main(None, 3, Console(quiet=True))
    after = contents(folder)
    assert before.items() <= after.items()
    assert {path.name for path in folder.iterdir()} == {"semiseg-demo", "semiseg-demo-2"}
    for name in ("imas/hardness.csv", "supervised/metrics.jsonl", "demo.png"):
        assert (folder / "semiseg-demo-2" / name).is_file()
    same = "semiseg-demo/imas/hardness.csv", "semiseg-demo-2/imas/hardness.csv"
    assert after[same[0]] == after[same[1]]  # the seed decides everything


def test_the_command(semiseg, small_demo, monkeypatch, tmp_path):
    small_demo(monkeypatch)
    monkeypatch.chdir(tmp_path)
    done = semiseg("demo --out here/it --seed 1")
    assert (done.code, done.err) == (0, "")
    assert Path("here/it/demo.png").is_file()
    assert semiseg("demo --out here/it").code == 2


def test_it_tells_how_far_the_drawing_is(small_demo, monkeypatch, tmp_path):
    small_demo(monkeypatch)
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(demo.api, "train", lambda *_, **__: sys.exit())
    console = Console(file=io.StringIO(), width=160)
    with pytest.raises(SystemExit):
        demo.main(tmp_path / "demo", 3, console)
    drawn = [line for line in console.file.getvalue().splitlines() if line.startswith("drawing scenes")]
    assert drawn[0] == "drawing scenes: 1 of 26 images"
    assert len(drawn) == 25
