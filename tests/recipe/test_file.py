import re
from pathlib import Path

import pytest

from semiseg.errors import UserError
from semiseg.recipe import file as recipe_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_data_come_first_and_the_authors_settings_last():
    names = list(recipe_file.shipped())
    assert names[0] == "folder"
    rest = names[1:]
    assert rest == sorted(rest, key=lambda name: (name.startswith("official/"), name))
    assert {"camvid-cpu", "voc", "official/voc", "official/cityscapes"} < {*rest}


def test_a_file_is_found_before_a_name():
    shipped = recipe_file.shipped()["official/voc"]
    assert recipe_file.find(Path("official/voc")) == recipe_file.find(Path("./official//voc")) == shipped
    Path("official/voc").mkdir(parents=True)
    assert recipe_file.find(Path("official/voc")) == shipped  # a folder is no recipe
    Path("official/voc").rmdir()
    Path("official/voc").write_text("data: {}")
    assert recipe_file.find(Path("official/voc")) == Path("official/voc")
    assert recipe_file.read(Path("official/voc")) == {"data": {}}


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("voc", "voc"),
        ("official/voc", "official-voc"),
        ("./official/voc", "official-voc"),
        ("my/own.v2.yaml", "own.v2"),
    ],
)
def test_what_a_run_is_called(recipe, name):
    Path("my").mkdir()
    Path("my/own.v2.yaml").write_text("data: {}")
    assert recipe_file.run_name(Path(recipe)) == name


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("foldr", " (did you mean folder?)"),
        ("folder.yaml", " (did you mean folder?)"),
        ("voc.yaml", " (did you mean voc?)"),
        ("nothing.yaml", ""),
    ],
)
def test_close_names_are_told(name, close):
    both = rf"^{name}: there is no such recipe{re.escape(close)}; "
    with pytest.raises(UserError, match=both + "name a file, or one that `semiseg recipes` lists$"):
        recipe_file.read(Path(name))
    with pytest.raises(UserError, match=both + "`semiseg recipes` lists them$"):
        recipe_file.text(name)


def test_a_recipe_is_written_to_a_new_file_alone():
    recipe_file.write("voc", Path("my.yaml"))
    assert Path("my.yaml").read_text() == recipe_file.text("voc")
    Path("my.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"^my.yaml: exists already; name another file with --out$"):
        recipe_file.write("voc", Path("my.yaml"))
    assert Path("my.yaml").read_text() == "mine"
