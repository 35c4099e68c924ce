"""Remembers what was found in files, so that a file is decoded again only if it has changed."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

_VERSION = 2  # of the entries; others are not read


def cache_folder(what: str) -> Path | None:
    """Returns the folder for files of one kind in the user's cache folder; None if there is no home directory."""
    try:
        return user_cache_path("semiseg") / what
    except (OSError, RuntimeError):
        return None


def digest_of(root: Path) -> str:
    """Returns a name for what belongs to a dataset, from the path of its root folder."""
    return hashlib.blake2b(os.fsencode(root.absolute()), digest_size=12).hexdigest()


class Memory:
    """Facts about the files of one dataset, kept in the user's cache folder.

    A fact is valid while the size of its file and the time of its last change stay the same. A cache folder that cannot
    be read or written means that all is found again.

    Args:
        root: the dataset's root folder.
    """

    def __init__(self, root: Path) -> None:
        folder = cache_folder("files")
        self.path: Path | None = folder / f"{digest_of(root)}.json" if folder else None
        self.known: dict[str, Any] = self._read()
        self.changed = False

    def recall(self, path: Path, what: str, find: Callable[[], Any]) -> Any:
        """Returns the fact `what` about a file, as plain values. Calls `find` if it is unknown or outdated."""
        try:
            state = path.stat()
        except OSError:
            return find()
        key, version = f"{what}:{path.absolute()}", [state.st_size, state.st_mtime_ns]
        entry = self.known.get(key)
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == version:
            return entry[1]
        fact = find()
        self.known[key], self.changed = [version, fact], True
        return fact

    def keep(self) -> None:
        """Writes what was found to the disk."""
        if self.path is None or not self.changed:
            return
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"version": _VERSION, "known": self.known}), encoding="utf-8")
            aside.replace(self.path)
        except OSError:
            with suppress(OSError):
                aside.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        known = content.get("known") if isinstance(content, dict) and content.get("version") == _VERSION else None
        return known if isinstance(known, dict) else {}
