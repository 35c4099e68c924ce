"""The run directory: everything that a run writes, as files that other programs can read.

config.yaml        the complete recipe; itself a valid recipe
environment.json   versions, machine, command, commit, labels and partition hash, classes with their colors
metrics.jsonl      one line for each record: {"kind": "train" | "val", "step": ..., ...}; steps count completed steps
events.jsonl       one line for each event: {"event": "started" | "resumed" | "stopped" ..., "step": ..., "time": ...}
hardness.csv       step,index,hardness: one line for each unlabeled image of each step (iMAS, Fig. 3c)
unlabeled.txt      names of the unlabeled images, one on each line; the first has index 0
masks.json         names of images with labels and with pseudo-labels, each with a digest of what its mask shows
pictures/          of the newest evaluation: index.json (confusion matrices, what the pictures show) and small pictures
train.lock         who trains here at the moment; only while somebody does
tensorboard/       what TensorBoard shows of the run, if it is used; trackers.json: by which ids other trackers know it
checkpoints/       step-NNNNNNNN (newest ones, resumable), best-NNNNNNNN
"""

import io
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float64

from semiseg.errors import UserError
from semiseg.files import expanded, sync, writing

RESULT_STAGE = "stage-3"  # of the stages of ST++ (`semiseg self-train`), the one whose result counts


def seed_folder(path: Path) -> Path | None:
    """Returns the folder `seed-N` that `semiseg compare` made for a run: its directory, or that of its stages.

    None: it is another run, also one in a folder `seed-N` that somebody has made.

    Example:
        >>> seed_folder(Path("out/imas/seed-0")).name, seed_folder(Path("out/st_pp/seed-0/stage-3")).name
        ('seed-0', 'seed-0')
    """
    folder = path.parent if path.name.startswith("stage-") else path
    return folder if folder.name.startswith("seed-") else None


@dataclass(frozen=True)
class Run:
    """One run directory. Creating the object touches nothing on disk.

    Attributes:
        path: the directory; a leading `~` is replaced by the home directory.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", expanded(self.path))

    @property
    def config(self) -> Path:
        """Returns the path of the complete recipe."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Returns the folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Returns the folder of pictures of the newest evaluation."""
        return self.path / "pictures"

    @property
    def lock(self) -> Path:
        """Returns the path of the file that the process which trains here has locked."""
        return self.path / "train.lock"

    @property
    def command(self) -> str:
        """Returns the command that goes on with this run."""
        return f"semiseg train {shlex.quote(str(self.config))} --out {shlex.quote(str(self.path))}"

    def start(
        self,
        config: str,
        environment: dict[str, Any],
        unlabeled: Iterable[str],
        class_counts: Sequence[Mapping[int, int]] | None = None,
        masks: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Makes a new run directory, or replaces one that holds no results yet.

        Args:
            config: the recipe, as YAML.
            environment: the values of environment.json.
            unlabeled: names of the unlabeled images.
            class_counts: number of pixels of each class in each labeled image, if the run needs them.
            masks: digests of labels and of pseudo-labels, by the names of their images.

        Raises:
            UserError: the directory exists and holds something else, or it cannot be written. After a failed write the
                same start can be tried again.
        """
        self.refuse_other_content()
        aside = _aside(self.config)
        self.path.mkdir(parents=True, exist_ok=True)
        _write(aside, self.config, config)  # written first: alone, it marks an interrupted start
        write_atomically(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
        write_atomically(self.path / "unlabeled.txt", "".join(f"{name}\n" for name in unlabeled))
        if class_counts is not None:
            write_atomically(self.path / "class_counts.json", json.dumps(class_counts) + "\n")
        if masks is not None:
            write_atomically(self.path / "masks.json", json.dumps(masks, indent=0) + "\n")
        for name, text in (("metrics.jsonl", ""), ("events.jsonl", ""), ("hardness.csv", "step,index,hardness\n")):
            write_atomically(self.path / name, text)
        aside.replace(self.config)  # renamed last: it marks a complete start

    def refuse_other_content(self) -> None:
        """Checks that a run can be started here.

        Raises:
            UserError: the directory holds results, or files that are not of a run.
        """
        holds = {*self.path.iterdir()} - {self.lock} if self.path.exists() else set()
        if holds and not (self.is_blank() if self.exists() else _aside(self.config).exists()):
            raise UserError(f"{self.path}: exists already and is not empty; name another run directory with --out")

    def change(self, config: str) -> None:
        """Replaces the recipe by one that gives the same result, e.g. with another data.root or number of workers."""
        write_atomically(self.config, config)

    def exists(self) -> bool:
        """Returns whether a run was started here."""
        return self.config.is_file()

    def is_blank(self) -> bool:
        """Returns whether a run was started here that has neither a record nor a checkpoint: nothing would be lost."""
        metrics = self.path / "metrics.jsonl"
        empty = metrics.is_file() and metrics.stat().st_size == 0
        return self.exists() and empty and not any(self.checkpoints.glob("*-*"))

    def open(self) -> "Run":
        """Returns this run after checking that it exists.

        Raises:
            UserError: there is no run in the directory.
        """
        if not self.exists():
            raise UserError(f"{self.path}: is not a run directory (it has no config.yaml); name one that train made")
        return self

    def environment(self) -> dict[str, Any]:
        """Reads environment.json."""
        with _reading(self.path / "environment.json") as path:
            return json.loads(path.read_text(encoding="utf-8"))

    def log(self, record: dict[str, Any]) -> None:
        """Appends a record to metrics.jsonl."""
        _append(self.path / "metrics.jsonl", json.dumps(record) + "\n")

    def log_hardness(self, rows: Iterable[tuple[int, int, float]]) -> None:
        """Appends (step, index, hardness) rows to hardness.csv."""
        lines = (f"{step},{index},{hardness:.4f}\n" for step, index, hardness in rows)
        _append(self.path / "hardness.csv", "".join(lines))

    def event(self, event: str, step: int, **details: Any) -> None:
        """Appends an event, which happened after `step` completed steps, to events.jsonl. `rewind` keeps all events."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _append(self.path / "events.jsonl", json.dumps({"event": event, "step": step, "time": now, **details}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Reads events.jsonl, in the order in which the events happened."""
        with _reading(self.path / "events.jsonl") as path, path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in _whole(file)]

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """Reads the records of one kind from metrics.jsonl, in the order of their steps."""
        with _reading(self.path / "metrics.jsonl") as path, path.open(encoding="utf-8") as file:
            return [record for line in _whole(file) if (record := json.loads(line))["kind"] == kind]

    def unlabeled(self) -> list[str]:
        """Reads the names of the unlabeled images from unlabeled.txt."""
        with _reading(self.path / "unlabeled.txt") as path:
            return path.read_text(encoding="utf-8").splitlines()

    def class_counts(self) -> tuple[dict[int, int], ...]:
        """Reads the number of pixels of each class in each labeled image, from class_counts.json."""
        with _reading(self.path / "class_counts.json") as path:
            shown = json.loads(path.read_text(encoding="utf-8"))
            return tuple({int(index): int(pixels) for index, pixels in counts.items()} for counts in shown)

    def masks(self, kind: str) -> dict[str, str]:
        """Reads the digests of `labels` or of `pseudo` labels, from masks.json; an earlier semiseg did not write it."""
        if not (self.path / "masks.json").exists():
            return {}
        with _reading(self.path / "masks.json") as path:
            digests = json.loads(path.read_text(encoding="utf-8"))[kind]
            return {str(name): str(digest) for name, digest in digests.items()}

    def hardness(self) -> Iterator[tuple[int, str, float]]:
        """Yields (step, image name, hardness) of the whole training, from hardness.csv."""
        names = self.unlabeled()
        with _reading(self.path / "hardness.csv") as path, path.open(encoding="utf-8") as file:
            next(file)
            for line in _whole(file):
                step, index, hardness = line.split(",")
                yield int(step), names[int(index)], float(hardness)

    def hardness_table(self) -> Float64[np.ndarray, "n 3"]:
        """Reads the whole hardness.csv at once: rows of step, index of the unlabeled image, hardness."""
        images = len(self.unlabeled())
        with _reading(self.path / "hardness.csv") as path:
            content = path.read_bytes()
            rows = content[content.index(b"\n") + 1 : content.rindex(b"\n") + 1]  # whole lines, without the head
            table = np.loadtxt(io.BytesIO(rows), delimiter=",", ndmin=2) if rows else np.empty((0, 3))
            if table.shape[1] != 3 or not np.isin(table[:, 1], np.arange(images)).all():
                raise ValueError("not the step, the index and the hardness of an unlabeled image")
            return table

    def pictures_index(self) -> dict[str, Any] | None:
        """Reads the index of the pictures; None if there is none, e.g. before the first evaluation."""
        if not (self.pictures / "index.json").exists():
            return None
        with _reading(self.pictures / "index.json") as path:
            index = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(index, dict):
                raise TypeError("no mapping")
            return index

    def val_pixels(self) -> list[int] | None:
        """Reads the number of pixels of each class in the validation masks; None if there was no evaluation yet."""
        if (index := self.pictures_index()) is None:
            return None
        with _reading(self.pictures / "index.json"):
            return [sum(row) for row in next(iter(index["networks"].values()))["confusion"]]

    def sync(self) -> None:
        """Waits until the logs are on the disk. A checkpoint relies on them."""
        for name in ("metrics.jsonl", "hardness.csv"):
            with writing(self.path / name):
                sync(self.path / name)

    def rewind(self, step: int) -> None:
        """Removes what was logged after `step` completed steps, so that a resumed run logs no step twice."""
        with _reading(self.path / "metrics.jsonl") as path:
            _cut(path, lambda line: json.loads(line)["step"] <= step)
        with _reading(self.path / "hardness.csv") as path:
            _cut(path, lambda row: row.startswith(b"step") or int(row.split(b",")[0]) <= step)

    def newest(self, *kinds: str) -> dict[str, Any] | None:
        """Returns the newest record of these kinds. It reads the file from its end: long runs take no more time."""
        with _reading(self.path / "metrics.jsonl") as path, path.open("rb") as file:
            records = (json.loads(line) for _, line in _backwards(file))
            return next((record for record in records if record["kind"] in kinds), None)

    def last(self) -> dict[str, Any] | None:
        """Returns the newest validation record."""
        return self.newest("val")

    def best(self) -> dict[str, Any] | None:
        """Returns the validation record with the highest mIoU; of several, the earliest."""
        return max(self.metrics("val"), key=lambda record: (record["miou"], -record["step"]), default=None)


def mean_hardness(table: Float64[np.ndarray, "n 3"]) -> dict[int, float]:
    """Computes the mean hardness of each unlabeled image in the second half of the steps of a table.

    Example:
        >>> mean_hardness(np.array([[1, 0, 0.9], [3, 0, 0.2], [4, 0, 0.4], [4, 7, 1.0]]))
        {0: 0.3, 7: 1.0}
    """
    if not len(table):
        return {}
    late = table[table[:, 0] > table[-1, 0] / 2]
    index = late[:, 1].astype(int)
    count, total = np.bincount(index), np.bincount(index, late[:, 2])
    return {int(image): round(float(total[image] / count[image]), 6) for image in np.flatnonzero(count)}


def write_atomically(path: Path, text: str) -> None:
    """Writes a file completely or not at all: writes a temporary file, waits for the disk, and renames it.

    Raises:
        UserError: the file cannot be written. A file that was there before is unchanged.
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
    """Writes `text` to `aside`, the temporary name of `path`, and waits until it is on the disk."""
    with writing(path), aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _append(path: Path, text: str) -> None:
    """Appends whole lines. First it removes an incomplete last line, left by a dead process or a full disk."""
    _cut(path, lambda line: True)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def _cut(path: Path, keeps: Callable[[bytes], bool]) -> None:
    """Cuts a file after its last whole line for which `keeps` is true.

    Lines are in the order of their steps, so the lines before it are kept, too. The file is read from its end, so the
    time does not depend on how much is kept. Nothing is written, so it works on a full disk.
    """
    with writing(path), path.open("rb+") as file:
        end = next((end for end, line in _backwards(file) if keeps(line)), 0)
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)


def _backwards(file: BinaryIO, block: int = 1 << 16) -> Iterator[tuple[int, bytes]]:
    """Yields each whole line with the position of its end, from the last line to the first."""
    start, held = file.seek(0, os.SEEK_END), b""  # `held` is what follows `start`; its first line may be incomplete
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
def _reading(path: Path) -> Iterator[Path]:
    """Turns the errors of reading a file into a UserError: somebody changed what semiseg wrote there."""
    try:
        yield path
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, RecursionError, StopIteration) as error:
        raise UserError(
            f"{path}: is damaged ({type(error).__name__}: {error}); restore what semiseg wrote there, or train again"
        ) from error


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Returns the complete lines. The last line is incomplete while it is being written or if the process died then."""
    return (line for line in lines if line.endswith("\n"))
