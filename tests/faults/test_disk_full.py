"""No room on the disk: one line that names the file, nothing half-written, and after tidying up the run goes on.

The kernel refuses to let a file grow (RLIMIT_FSIZE) in the middle of a write: that needs no privileges.
"""

import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import pytest
from conftest import TRAIN

TOO_LARGE = "File too large"


def full_from(where: str, call: int, room: int = 20) -> Callable[[], None]:
    """From the `call`-th call of a function on no file may grow beyond `room` bytes."""
    return lambda: harness.at(where, call, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room,) * 2))


def full_for_a_log(file: str, call: int) -> Callable[[], None]:
    """There is room for half of the `call`-th text that goes into a log; everything else can be written."""
    calls = 0

    def around(append: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
        def limited(path: Path, text: str) -> None:
            nonlocal calls
            calls += path.name == file
            if path.name != file or calls != call:
                append(path, text)
                return
            with harness.no_file_longer_than(path.stat().st_size + len(text) // 2):
                append(path, text)

        return limited

    return lambda: harness.wrap("semiseg.runs._append", around)


def assert_one_line(ended: harness.Ended, *words: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("semiseg: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert [word for word in words if word not in ended.err] == [], ended.err


@pytest.mark.parametrize(
    ("save", "room", "last"),
    [
        (3, 100_000, 5),  # there are others
        (1, 400_000, 0),  # the first one
    ],
)
def test_a_checkpoint(here, semiseg, whole, save, room, last):
    folder = here()
    ended = semiseg(TRAIN, full_from("semiseg.engine.checkpoint.save", save, room))
    assert_one_line(ended, "run/checkpoints/", "cannot be written", TOO_LARGE)
    assert f"step-{last:08d}, is whole" in ended.err or last == 0
    assert ended.err.count("is whole") == (last > 0)
    assert harness.newest_step(folder / "run") == last
    assert [path.name for path in folder.rglob(".*")] == []
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


@pytest.mark.parametrize(
    ("file", "call", "done"),
    [("metrics.jsonl", 7, 8), ("hardness.csv", 3, 5), ("events.jsonl", 1, 0)],
)
def test_a_log(here, semiseg, whole, file, call, done):
    folder = here()
    ended = semiseg(TRAIN, full_for_a_log(file, call))
    says_so = f"; step {done} is saved; the same command goes on\n" if done else TOO_LARGE
    assert_one_line(ended, f"run/{file}: cannot be written ({TOO_LARGE})", says_so)
    assert harness.newest_step(folder / "run") == done
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []
    assert [event["event"] for event in harness.Run(folder / "run").events()][-1] == "resumed" if done else "started"


def test_everything_at_once(here, semiseg, whole):
    """Neither the record, nor the checkpoint after it, nor events.jsonl can be written."""
    folder = here()
    assert_one_line(
        semiseg(TRAIN, full_from("semiseg.engine.log.Log.flush", 4)),
        "run/hardness.csv: cannot be written (File too large); step 6 is not saved\n",
    )
    assert harness.newest_step(folder / "run") == 5
    assert_one_line(semiseg(TRAIN, full_from("semiseg.runs.Run.rewind", 1)), "run/events.jsonl: cannot be written")
    assert harness.newest_step(folder / "run") == 5
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_the_start_of_a_run(here, semiseg, whole):
    folder = here()
    files = ("config.yaml", "environment.json", "unlabeled.txt", None, None, "hardness.csv")
    for number, file in enumerate(files, 1):
        if file is None:  # these are empty at first
            continue
        ended = semiseg(TRAIN, full_from("semiseg.runs._write", number, 10))
        assert_one_line(ended, f"run/{file}: cannot be written ({TOO_LARGE})")
        assert not (folder / "run" / "config.yaml").exists()
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_settings_that_changed(here, semiseg, whole):
    folder = here()
    stop = partial(harness.signal_itself, signal.SIGTERM)
    assert semiseg(TRAIN, lambda: harness.at("semiseg.engine.step.make_batch", 3, stop)).code == 143
    before = (folder / "run/config.yaml").read_text()
    ended = semiseg(f"{TRAIN} --set data.workers=1", full_from("semiseg.runs._write", 1, 100))
    assert_one_line(ended, f"run/config.yaml: cannot be written ({TOO_LARGE})")
    assert (folder / "run/config.yaml").read_text() == before
    assert semiseg(f"{TRAIN} --set data.workers=1").code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_what_is_printed(here, semiseg, whole):
    """Standard output goes to a file on a full disk, e.g. a log file of a shell. Only the printed lines are lost."""
    folder = here()

    def prepare() -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        harness.at("semiseg.engine.progress.ProgressBar.on_scores", 1, lambda: os.dup2(full, 1))

    assert semiseg(TRAIN, prepare).code != 0
    assert harness.newest_step(folder / "run") == 4
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


@pytest.mark.parametrize("call", [1, 2, 4])  # a mask, an overlay, the second image's overlay
def test_predictions(here, semiseg, trained, scenes, call):
    folder = here()

    def around(save: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def limited(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            with harness.no_file_longer_than(60 if calls == call else -1):
                return save(*args, **kwargs)

        return limited

    ended = semiseg(
        f"predict {trained} {scenes / 'images/val'} --out masks",
        lambda: harness.wrap("PIL.Image.Image.save", around),
    )
    files = ["0000.png", "0000_overlay.png", "0001.png", "0001_overlay.png"]
    assert_one_line(ended, f"masks/{files[call - 1]}", TOO_LARGE)
    assert sorted(path.name for path in (folder / "masks").iterdir()) == files[: call - 1]


def test_the_picture_of_the_demo(here, semiseg, scenes):
    folder = here()

    def prepare() -> None:
        from semiseg.report import sheet

        block = sheet.Block(("image",), [[scenes / "images/val/0000.png"]])
        harness.wrap("semiseg.demo.main", lambda _: lambda *_: sheet.write(Path("demo.png"), [block]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    assert_one_line(semiseg("demo", prepare), "demo.png", TOO_LARGE)
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
