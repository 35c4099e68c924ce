"""States of run directories that are made by hand."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from semiseg.engine import lock, state
from semiseg.engine.lock import Lock
from semiseg.runs import Run

CONFIG = """data:
  layout: folder
  steps: 5
model:
  name: unet
method:
  name: imas
  threshold: 0.3
engine:
  seed: 3
  steps: 100
"""
LABELS = {"labeled": 4, "unlabeled": 16, "val": 2, "partition": "abc", "published": None}


@pytest.fixture
def made(tmp_path: Path):
    """made("name", records, events) -> a run directory."""

    def made(name: str, records: tuple[dict, ...] = (), events: tuple[dict, ...] = ()) -> Run:
        run = Run(tmp_path / name)
        run.start(CONFIG, {"labels": LABELS}, ["a"])
        run.event("started", 0)
        for record in records:
            run.log(record)
        for event in events:
            run.event(**event)
        return run

    return made


def train(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.0}


def val(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "val", "step": step, "miou": 0.5, "iou": [0.25, 0.75], **more}


def left(run: Run, **changes: object) -> None:
    """Leaves the lock file of a process that is gone, or is on another machine."""
    holder = {"host": lock.socket.gethostname(), "process": os.getpid(), "born": "1", "since": "yesterday"}
    run.lock.write_text(json.dumps(holder | changes))


STOPPED = {"event": "stopped", "step": 7, "reason": "run: stopped by SIGTERM after step 7"}
FAILED = {"event": "stopped", "step": 7, "reason": "a.png: cannot be read"}


@pytest.mark.parametrize(
    ("records", "events", "kind", "why", "done"),
    [
        ((), (), "stopped", "", 0),
        ((train(5),), (STOPPED,), "stopped", "", 7),
        ((train(5),), (STOPPED, {"event": "advice", "step": 7}), "stopped", "", 7),
        ((train(5),), (FAILED,), "failed", "a.png: cannot be read", 7),
        ((train(5),), (FAILED, {"event": "advice", "step": 9}), "failed", "a.png: cannot be read", 7),
        ((train(5),), (FAILED, {"event": "resumed", "step": 7}), "stopped", "", 7),
        ((train(5),), ({"event": "failed", "step": 6, "reason": "out of memory"},), "failed", "out of memory", 6),
        ((), ({"event": "not finite", "step": 3, "loss": "nan"},), "failed", "the loss of step 3 was nan", 0),
        ((train(99), val(99)), (), "stopped", "", 99),
        ((train(100),), (), "stopped", "", 100),  # its last evaluation is left
        ((train(100), val(100)), (), "finished", "", 100),
        ((train(100), val(100)), (STOPPED,), "finished", "", 100),
    ],
)
def test_a_run_that_no_process_trains(made, records, events, kind, why, done):
    found = state.read(made("run", records, events))
    assert (found.kind, found.why, found.done) == (kind, why, done)
    assert (found.method, found.labeled, found.images, found.steps) == ("imas", 4, 20, 100)
    assert abs(time.time() - found.changed.timestamp()) < 60


def test_scores_of_each_network(made):
    both = {"teacher": {"miou": 0.5}, "student": {"miou": 0.25}}
    assert state.read(made("none")).scores == {}
    assert state.read(made("one", (val(5), train(6)))).scores == {"": {"miou": 0.5, "iou": [0.25, 0.75]}}
    found = state.read(made("two", (val(5), val(10, networks=both)))).scores
    assert [*found.items()] == [*both.items()]


def test_a_process_that_trains(made):
    run = made("run", (train(100), val(100)))  # it saves its last checkpoint
    holds = "import sys; from semiseg.engine.lock import Lock; from semiseg.runs import Run; from pathlib import Path\n"
    holds += "with Lock(Run(Path(sys.argv[1]))) as held:\n  held.acquire(); print(flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert (state.read(run).kind, state.read(run).why) == ("running", "")
        process.stdin.close()
    assert state.read(run).kind == "finished"


def test_a_process_that_is_gone_without_a_word(made):
    run = made("run", (train(5),))
    left(run)
    found = state.read(run)
    assert (found.kind, found.why) == (
        "failed",
        f"process {os.getpid()} on {lock.socket.gethostname()} (since yesterday) has ended without a word",
    )
    left(made("complete", (val(100),)))
    assert state.read(Run(run.path.with_name("complete"))).kind == "finished"


def test_a_process_on_another_machine(made):
    run = made("run", (train(5),))
    left(run, host="elsewhere")
    assert (state.read(run).kind, state.read(run).why) == ("running", "on elsewhere")
    os.utime(run.lock, (time.time() - 90,) * 2)
    assert state.read(run).kind == "failed"


def test_to_look_does_not_release_the_lock_of_this_process(made):
    run = made("run")
    tries = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with Lock(run) as held:
        held.acquire()
        assert state.read(run).kind == "running"
        taken = subprocess.run([sys.executable, "-c", tries, str(run.lock)], capture_output=True, text=True)
        assert "BlockingIOError" in taken.stderr
    assert state.read(run).kind == "stopped"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.yaml", "method: [", "config.yaml: method: is not YAML"),
        ("config.yaml", "data:\n  a: 1\n", "config.yaml: has no section method"),
        ("config.yaml", "method:\n  a: 1\nengine:\n  steps: 1\n", r"run: is damaged \(KeyError: 'name'\)"),
        ("config.yaml", "method:\n  name: a\nengine:\n  steps: many\n", r"run: is damaged \(ValueError"),
        ("environment.json", "{", r"environment.json: is damaged"),
        ("environment.json", "{}", r"run: is damaged \(KeyError: 'labels'\)"),
        ("metrics.jsonl", '{"kind": "val"}\n', r"run: is damaged \(KeyError"),
        ("metrics.jsonl", "x\n", r"metrics.jsonl: is damaged"),
        ("events.jsonl", "{}\n", r"run: is damaged \(KeyError"),
    ],
)
def test_a_broken_run_says_its_fault(made, file, content, says):
    run = made("run")
    (run.path / file).write_text(content)
    found = state.read(run)
    assert found.kind == "broken"
    with pytest.raises(ValueError, match=says):
        raise ValueError(found.why)


def test_a_missing_file_is_a_fault(made):
    run = made("run")
    run.config.unlink()
    assert "config.yaml: cannot be read" in state.read(run).why


def test_runs_are_found_and_other_folders_are_not(made, tmp_path):
    names = ["b", "a", "compare/imas/seed-1", "compare/imas/seed-0"]
    for name in names:
        made(name)
    foreign = tmp_path / "hydra"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("x: 1")
    (foreign / "metrics.jsonl").write_text("")
    (tmp_path / "a/checkpoints/step-00000001").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)  # a circle
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b").rename(tmp_path / ".hidden/b")
    (tmp_path / "shown").symlink_to(tmp_path / ".hidden/b")
    found = [run.path.relative_to(tmp_path).as_posix() for run in state.find(tmp_path)]
    assert found == ["a", "compare/imas/seed-0", "compare/imas/seed-1", "shown"]
    assert [run.path for run in state.find(tmp_path / "a")] == [tmp_path / "a"]


def test_to_look_is_fast_and_needs_no_torch(made, tmp_path):
    records = tuple(record for step in range(1, 6) for record in (train(step), val(step)))
    for number in range(20):
        made(f"run-{number}", records)
    looks = (
        "import sys; sys.argv[1:] = ['runs', sys.argv[1]]; from semiseg import cli\n"
        "try: cli.main()\nfinally: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", looks, str(tmp_path)], capture_output=True, text=True)
    *lines, torch_is_there = shown.stdout.splitlines()
    assert (len(lines), torch_is_there) == (21, "False"), shown.stderr
