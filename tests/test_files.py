import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from semiseg.errors import UserError
from semiseg.files import mark_of, read_text, save_image, sync


def test_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\n".encode())
    assert read_text(path, "a list", most=7) == "é\r\n"
    with pytest.raises(UserError, match=r"a.txt: cannot be read as a list \(more than 6 bytes\)"):
        read_text(path, "a list", most=6)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot be read as a list \(not UTF-8 text\); save it as UTF-8"):
        read_text(tmp_path / "a.txt", "a list", most=9)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a.txt: cannot be read as a list \(a folder, a device or a pipe\)"):
        read_text(tmp_path / "a.txt", "a list", most=9)


def test_a_mark_stays_in_the_file(tmp_path):
    path = tmp_path / "a.png"
    assert mark_of(path) is None
    path.write_text("no image")
    assert mark_of(path) is None
    save_image(Image.new("P", (2, 3)), path)
    assert mark_of(path) is None
    save_image(Image.new("P", (2, 3)), path, "of the test")
    assert mark_of(path) == "of the test"


def test_an_image_takes_its_place_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(Image.new("L", (2, 3), 7), path)
    before = path.read_bytes()

    def full(image, aside, *_, **__):
        Path(aside).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a.png: cannot be written \(No space left on device\)"):
        save_image(Image.new("L", (9, 9)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch, number):
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    sync(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match=os.strerror(number)):  # a file can be synced everywhere
        sync(tmp_path / "a")


def test_a_folder_on_a_failing_disk_is_an_error(tmp_path, monkeypatch):
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)
