"""Looks at all images before the first one is predicted, and says what a user should know before he waits."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from semiseg.data.dataset import Unused
from semiseg.data.read import has_more_pages, read_header
from semiseg.engine.predict_files.inputs import Item
from semiseg.engine.predict_files.raster import MOST
from semiseg.errors import UserError


def look(items: Iterable[Item], on_note: Callable[[Unused], None]) -> None:
    """Looks at the image files, at their headers alone, and calls `on_note` with what was found."""
    files = [item.file for item in items if item.frame is None]
    with ThreadPoolExecutor() as threads:
        paged = [file for file, found in zip(files, threads.map(_has_pages, files), strict=True) if found]
    if paged:
        what = "images with several pages or frames, of which the first one alone is predicted"
        on_note(Unused(what, tuple(paged), "save the others as files of their own"))


def _has_pages(file: Path) -> bool:
    with suppress(UserError):  # a file that cannot be read, or is too large to say
        return read_header(file, most=MOST).may_have_pages and has_more_pages(file)
    return False
