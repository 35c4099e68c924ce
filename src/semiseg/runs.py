"""The run directory: everything that a run leaves behind, as files that other programs can read.

config.yaml        the complete recipe; itself a valid recipe
environment.json   versions, machine, command, commit, labels and partition hash, classes with their colors
metrics.jsonl      one line a record: {"kind": "train" | "val", "step": ..., ...}; steps count completed steps
events.jsonl       one line each: {"event": "started" | "resumed" | "stopped" | "skipped" ..., "step": ..., "time": ...}
hardness.csv       step,index,hardness of every unlabeled image that was looked at (iMAS, Fig. 3c)
unlabeled.txt      name of unlabeled image `index`, one a line, from 0
checkpoints/       step-NNNNNNNN (newest ones, resumable), best-NNNNNNNN
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from semiseg.errors import UserError
from semiseg.files import sync


@dataclass(frozen=True)
class Run:
    """One run directory. Creating the object touches nothing on disk."""

    path: Path

    @property
    def config(self) -> Path:
        """The complete recipe."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def start(self, config: str, environment: dict[str, Any], unlabeled: Iterable[str]) -> None:
        """Makes a new run directory, or completes one whose start was cut off.

        Raises:
            UserError: the directory exists and holds something already, or cannot be written; then the same start can
                be tried again.
        """
        aside = _aside(self.config)
        if self.path.exists() and any(self.path.iterdir()) and (self.exists() or not aside.exists()):
            raise UserError(f"{self.path}: exists already and is not empty; name another run directory with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        _write(aside, self.config, config)  # first: where it is without its name, a start was cut off
        write_atomically(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
        write_atomically(self.path / "unlabeled.txt", "".join(f"{name}\n" for name in unlabeled))
        for name, text in (("metrics.jsonl", ""), ("events.jsonl", ""), ("hardness.csv", "step,index,hardness\n")):
            write_atomically(self.path / name, text)
        aside.replace(self.config)  # last: where it is, the run was started

    def change(self, config: str) -> None:
        """Replaces the recipe by one that gives the same result: from another disk, with other workers."""
        write_atomically(self.config, config)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    def open(self) -> "Run":
        """This run, if there is one.

        Raises:
            UserError: there is none.
        """
        if not self.exists():
            raise UserError(f"{self.path}: is not a run directory (it has no config.yaml); name one that train made")
        return self

    def environment(self) -> dict[str, Any]:
        """What stands in environment.json."""
        with _reading(self.path / "environment.json") as path:
            return json.loads(path.read_text(encoding="utf-8"))

    def log(self, record: dict[str, Any]) -> None:
        """Appends a record to the metrics."""
        _append(self.path / "metrics.jsonl", json.dumps(record) + "\n")

    def log_hardness(self, rows: Iterable[tuple[int, int, float]]) -> None:
        """Appends (step, index, hardness) rows to the hardness history."""
        lines = (f"{step},{index},{hardness:.4f}\n" for step, index, hardness in rows)
        _append(self.path / "hardness.csv", "".join(lines))

    def event(self, event: str, step: int, **details: Any) -> None:
        """Appends to the diary what happened after `step` completed steps. It is never rewound."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _append(self.path / "events.jsonl", json.dumps({"event": event, "step": step, "time": now, **details}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The diary."""
        with _reading(self.path / "events.jsonl") as path, path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in _whole(file)]

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, in the order of their steps."""
        with _reading(self.path / "metrics.jsonl") as path, path.open(encoding="utf-8") as file:
            return [record for line in _whole(file) if (record := json.loads(line))["kind"] == kind]

    def unlabeled(self) -> list[str]:
        """Names of the unlabeled images."""
        with _reading(self.path / "unlabeled.txt") as path:
            return path.read_text(encoding="utf-8").splitlines()

    def hardness(self) -> Iterator[tuple[int, str, float]]:
        """(step, image name, hardness) over the course of training."""
        names = self.unlabeled()
        with _reading(self.path / "hardness.csv") as path, path.open(encoding="utf-8") as file:
            next(file)
            for line in _whole(file):
                step, index, hardness = line.split(",")
                yield int(step), names[int(index)], float(hardness)

    def sync(self) -> None:
        """Returns when the logs are on the disk: a checkpoint relies on them."""
        for name in ("metrics.jsonl", "hardness.csv"):
            with _naming(self.path / name):
                sync(self.path / name)

    def rewind(self, step: int) -> None:
        """Drops what was logged after `step` completed steps, so that a resumed run holds no step twice."""
        with _reading(self.path / "metrics.jsonl") as path:
            _cut(path, lambda line: json.loads(line)["step"] <= step)
        with _reading(self.path / "hardness.csv") as path:
            _cut(path, lambda row: row.startswith(b"step") or int(row.split(b",")[0]) <= step)

    def last(self) -> dict[str, Any] | None:
        """The newest validation record."""
        return next(iter(self.metrics("val")[-1:]), None)

    def best(self) -> dict[str, Any] | None:
        """The validation record with the highest mIoU, the earlier of equals."""
        return max(self.metrics("val"), key=lambda record: (record["miou"], -record["step"]), default=None)


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or nothing: aside, synced, then renamed.

    Raises:
        UserError: it cannot be written; what was there before is as it was.
    """
    aside = _aside(path)
    try:
        _write(aside, path, text)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _write(aside: Path, path: Path, text: str) -> None:
    """Writes what is to be the content of `path`, and waits until it is on the disk."""
    with _naming(path), aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _append(path: Path, text: str) -> None:
    """Adds whole lines. Half a line at the end, from a process that died or found the disk full, goes first."""
    _cut(path, lambda line: True)
    with _naming(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def _cut(path: Path, keeps: Callable[[bytes], bool]) -> None:
    """Ends a file after its last whole line that `keeps`; of lines in the order of their steps those before it stay.

    The file is read from its end, so that the length of what stays is no matter, and nothing is written, so that a full
    disk is none either.
    """
    with _naming(path), path.open("rb+") as file:
        end = next((end for end, line in _backwards(file) if keeps(line)), 0)
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)


def _backwards(file: BinaryIO, block: int = 1 << 16) -> Iterator[tuple[int, bytes]]:
    """Each whole line and where it ends, from the last one to the first."""
    start, held = file.seek(0, os.SEEK_END), b""  # `held` follows `start`; of its first line there may be more before
    while start:
        size = min(block, start)
        start = file.seek(start - size)
        held = file.read(size) + held
        *lines, half = held.split(b"\n")
        end = start + len(held) - len(half)
        for line in reversed(lines[1:] if start else lines):
            yield end, line
            end -= len(line) + 1
        held = lines[0] + b"\n" if lines else half


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A failed write says which file it was: errors of an open file (disk full) do not."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """A file that is not what semiseg wrote there is a user's error, not a bug."""
    try:
        yield path
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, RecursionError, StopIteration) as error:
        raise UserError(
            f"{path}: is damaged ({type(error).__name__}: {error}); put back what semiseg wrote there, or train anew"
        ) from error


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """The lines but for a last one that is still being written, or was when the process died."""
    return (line for line in lines if line.endswith("\n"))
