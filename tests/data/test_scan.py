import pytest

from semiseg.data.scan import scan
from semiseg.errors import UserError


@pytest.fixture
def untidy(tmp_path, write):
    for name in (
        "a.jpg", "b/c.PNG", "d.jfif", ".DS_Store", "._a.jpg", "b/Thumbs.db", ".ipynb_checkpoints/a-checkpoint.jpg",
        "b/@eaDir/c.PNG/thumb.jpg", "__MACOSX/a.jpg", "notes.txt", "e.dng", "masks/a.png",
    ):  # fmt: skip
        write(name, b"")
    return tmp_path


def test_every_file_is_used_or_counted(untidy):
    found = scan(untidy, without=untidy / "masks")
    assert list(found.images) == ["a", "b/c", "d"]
    assert {one.what: (len(one.files), one.matters) for one in found.unused} == {
        "hidden folders, not searched": (3, True),
        "hidden files, not used": (3, False),
        ".txt files, not used": (1, True),
        ".dng files, not used": (1, True),
    }
    everything = {path for path in untidy.rglob("*") if path.is_file()}
    listed = {path for one in found.unused for path in one.files} | {*found.images.values()}
    assert all({path, *path.parents} & listed or untidy / "masks" in path.parents for path in everything)


def test_a_folder_may_be_left_out_only_if_it_is_below(untidy):
    assert list(scan(untidy / "masks", without=untidy).images) == ["a"]
    assert list(scan(untidy / "masks", without=untidy / "masks").images) == ["a"]


def test_an_unused_kind_says_what_to_do(tmp_path, write):
    write("a.dng", b"")
    (unused,) = scan(tmp_path).unused
    assert str(unused) == (
        f".dng files, not used: 1, {tmp_path / 'a.dng'}; if they are photographs or masks, convert them to JPEG or PNG"
    )


def test_a_kind_that_something_can_be_installed_for(tmp_path, write, monkeypatch):
    monkeypatch.setattr("semiseg.data.scan.SUFFIXES", frozenset({".jpg"}))
    monkeypatch.setattr("semiseg.data.scan.MISSING", {".heic": "pip install X"})
    write("a.HEIC", b"")
    write("b.heic", b"")
    (unused,) = scan(tmp_path).unused
    assert str(unused) == f".heic files, not used: 2, e.g. {tmp_path / 'a.HEIC'}; to read them: pip install X"


def test_two_files_of_one_name(tmp_path, write):
    write("a.jpg", b"")
    write("a.png", b"")
    with pytest.raises(UserError, match="has the same name as"):
        scan(tmp_path)
