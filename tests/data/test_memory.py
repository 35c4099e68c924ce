import os

import pytest

from semiseg.data.memory import Memory


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recalled(root, path, fact):
    """What a new Memory says of a file; `fact` if it has to look."""
    memory = Memory(root)
    found = memory.recall(path, "kind", lambda: fact)
    memory.keep()
    return found


def test_a_fact_lasts_until_the_file_changes(tmp_path, write):
    path = write("photos/a.png", b"one")
    assert recalled(tmp_path / "photos", path, [1]) == [1]
    assert recalled(tmp_path / "photos", path, [2]) == [1]
    write("photos/a.png", b"three")
    assert recalled(tmp_path / "photos", path, [3]) == [3]
    os.utime(path, ns=(1, 1))
    assert recalled(tmp_path / "photos", path, [4]) == [4]
    assert recalled(tmp_path / "other", path, [5]) == [5]


def test_a_damaged_memory_is_made_anew(tmp_path, write, cache):
    path = write("a.png", b"one")
    for content in (b"{", b"[]", b'{"version": 1, "known": 3}', b'{"version": 1, "known": {"kind:a": 3}}'):
        recalled(tmp_path, path, [1])
        (file,) = cache.rglob("*.json")
        file.write_bytes(content)
        assert recalled(tmp_path, path, [2]) == [2]
        file.unlink()


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, write, cache):
    path = write("a.png", b"one")
    cache.write_bytes(b"a file where the folder should be")
    assert recalled(tmp_path, path, [1]) == [1]
    assert recalled(tmp_path, path, [2]) == [2]
