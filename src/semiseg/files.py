"""Safe file access: reads text up to a limit, writes files completely or not at all, waits for the disk."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semiseg.errors import UserError

_MARK, _PIXELS = "semiseg", "semiseg-pixels"
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


def expanded(path: Path) -> Path:
    """Replaces a leading `~` or `~user` by that home directory. A shell does so only at the start of a word.

    Raises:
        UserError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user; write the path of the folder out") from error


def read_text(path: Path, what: str, most: int) -> str:
    """Reads a text file. Refuses what could block the process (a pipe) or fill the memory (a huge file).

    Args:
        path: a path that exists.
        what: what the file should be, for the message.
        most: the largest number of bytes that the file may have.

    Raises:
        UserError: the path is a folder, a device or a pipe, the file is larger than `most`, or it is no UTF-8 text.
    """
    if not path.is_file():
        raise UserError(f"{path}: cannot be read as {what} (a folder, a device or a pipe); name a text file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: cannot be read as {what} (more than {most} bytes); name a text file of a usual size")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as {what} (not UTF-8 text); save it as UTF-8") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write under, then renames it, so that no incomplete file stays behind.

    Raises:
        UserError: there is no space or no permission.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:  # Pillow's errors name no file
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def filling(out: Path) -> Iterator[Path]:
    """Gives a folder to write into, whose files go into the folder `out` if all goes well; it is removed otherwise.

    It lies beside `out`, so relative paths in its files stay right. Files and folders of the same names in `out` are
    replaced; others stay.

    Raises:
        UserError: there is no space or no permission.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        yield work
        work.chmod(0o755)
        out.mkdir(exist_ok=True)
        for path in sorted(work.iterdir()):
            target = out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def save_bytes(content: bytes, path: Path) -> None:
    """Writes a file completely or not at all.

    Raises:
        UserError: there is no space or no permission.
    """
    with replacing(path) as aside:
        aside.write_bytes(content)


def save_image(image: Image.Image, path: Path, mark: str | None = None, fast: bool = False) -> None:
    """Writes a PNG under a temporary name and renames it, so that no incomplete image stays behind.

    Args:
        image: the image.
        path: the file.
        mark: a text that stays in the file, for `mark_of`. Programs that show the image ignore it.
        fast: whether to compress in a seventh of the time, into a file that is larger by a seventh.

    Raises:
        UserError: there is no space or no permission.
    """
    texts = PngInfo()
    if mark is not None:
        texts.add_text(_MARK, mark)
        texts.add_text(_PIXELS, _digest_of_pixels(image))
    with replacing(path) as aside:
        image.save(aside, "PNG", pnginfo=texts, compress_level=2 if fast else 6)


def mark_of(path: Path) -> str | None:
    """Returns the mark with which `save_image` wrote a file; None if it wrote no such file."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_MARK)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # it is no PNG, or a damaged one
        return None


def is_unchanged(path: Path) -> bool:
    """Returns whether the pixels of a PNG are those that `save_image` wrote with a mark.

    Programs that change an image may keep its texts, the mark among them.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_PIXELS) == _digest_of_pixels(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _digest_of_pixels(image: Image.Image) -> str:
    digest = hashlib.blake2b(digest_size=16)
    rows = max(1, 2**24 // image.width)
    for top in range(0, image.height, rows):  # the bytes of a whole image would be in memory twice
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the list of files in a folder, is on the disk.

    Some file systems cannot do that for a folder (CIFS of older Linux, some FUSE). There nothing can be waited for.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Adds the file's name to the error of a failed write: errors of an open file (disk full) do not have it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
