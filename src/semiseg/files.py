"""Files: text is read within limits, pictures are written whole or not at all, writes can be waited for."""

import os
from pathlib import Path

from PIL import Image

from semiseg.errors import UserError


def read_text(path: Path, what: str, most: int) -> str:
    """The text of a file that exists, read so that it can neither be waited for nor fill the memory.

    Args:
        path: of the file.
        what: it should be, for the message.
        most: bytes that it may hold.

    Raises:
        UserError: it is a folder, a device or a pipe, holds more, or is no UTF-8 text.
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


def save_image(image: Image.Image, path: Path) -> None:
    """Writes a PNG: aside, then renamed.

    Raises:
        UserError: there is no space or no permission.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        image.save(aside, "PNG")
        aside.replace(path)
    except OSError as error:  # Pillow's errors name no file
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
