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
    unused = {one.reason.partition(" files")[0].partition(" folders")[0]: one for one in found.unused}
    assert {reason: len(one.files) for reason, one in unused.items()} == {"hidden": 3, ".txt": 1, ".dng": 1}
    assert {one.reason: (len(one.files), one.matters) for one in found.unused if "hidden" in one.reason} == {
        "hidden folders are not searched": (3, True),
        "hidden files are not used": (3, False),
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
    assert "convert" in str(unused)
    assert str(tmp_path / "a.dng") in str(unused)


def test_two_files_of_one_name(tmp_path, write):
    write("a.jpg", b"")
    write("a.png", b"")
    with pytest.raises(UserError, match="has the same name as"):
        scan(tmp_path)
