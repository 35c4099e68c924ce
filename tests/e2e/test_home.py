"""A `~` that no shell has replaced (--out=~/runs, Python) means the home directory."""

import shutil
from pathlib import Path

import pytest

from semiseg.recipe import file as recipe_file
from semiseg.runs import Run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path) -> Path:
    """A home directory with the recipe and a link to the photographs; the current directory is another one."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.move(here / "recipe.yaml", home / "recipe.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


def test_every_command(semiseg, home, scenes):
    shutil.copytree(scenes / "images/val", home / "photos")
    for command in (
        "train ~/recipe.yaml --out=~/run --set engine.steps=1",
        "train ~/recipe.yaml --out=~/run --set engine.steps=1",
        "evaluate ~/run",
        "predict ~/run ~/photos --out=~/masks",
        "partitions ~/recipe.yaml --size 3 --out=~/lists",
        "recipes folder --out=~/new.yaml",
    ):
        done = semiseg(command)
        assert (done.code, done.err) == (0, ""), command
    assert {path.name for path in home.iterdir()} == {
        "recipe.yaml", "photos", "run", "masks", "lists", "new.yaml",
    }  # fmt: skip
    checkpoint = next((home / "run/checkpoints").glob("best-*")).name
    assert semiseg(f"predict ~/run/checkpoints/{checkpoint} ~/photos --out ~/masks").code == 0
    assert [*Path().iterdir()] == []
    nobody = semiseg("train ~/recipe.yaml --out ~nobody-at-all/run")
    assert nobody.err.startswith("semiseg: ~nobody-at-all/run: there is no such user")


def test_a_run_from_python(home):
    assert Run(Path("~/run")).path == home / "run"
    assert recipe_file.run_name(Path("~/recipe.yaml")) == "recipe"
