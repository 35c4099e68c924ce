"""One command at a time trains in a run directory."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from semiseg.engine import lock
from semiseg.engine.lock import Lock
from semiseg.errors import UserError
from semiseg.runs import Run

HOLDS = """
import sys
from pathlib import Path
from semiseg.engine.lock import Lock
from semiseg.runs import Run
with Lock(Run(Path(sys.argv[1]))) as held:
    held.acquire()
    print("acquired", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture
def other(run):
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "acquired\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks."""

    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fails)


def left(run: Run, **changes: object) -> None:
    """Leaves the file of a process that was killed."""
    run.path.mkdir(exist_ok=True)
    holder = {"host": lock.socket.gethostname(), "process": os.getpid(), "born": "1", "since": "yesterday"}
    run.lock.write_text(json.dumps(holder | changes))


def test_a_lock_is_there_only_while_it_is_held(run):
    with Lock(run):
        assert not run.path.exists()
    with Lock(run) as held:
        assert held.acquire() is None
        assert json.loads(run.lock.read_text())["process"] == os.getpid()
    assert [*run.path.iterdir()] == []


def test_the_second_is_refused_and_the_first_undisturbed(run, other):
    for _ in range(2):
        with pytest.raises(UserError, match=rf"run: process {other.pid} on .* \(since 20.*\) trains here; .* --out"):
            Lock(run).acquire()
    assert json.loads(run.lock.read_text())["process"] == other.pid
    other.communicate("\n")
    with Lock(run) as held:
        assert held.acquire() is None


def test_the_lock_of_a_killed_process_is_taken_over(run, other):
    os.kill(other.pid, signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now: nobody has waited for it
    with Lock(run) as held:
        assert held.acquire().process == other.pid
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            Lock(run).acquire()


def test_a_child_does_not_keep_the_lock_of_a_killed_process(run, tmp_path):
    """Loader processes live some seconds longer."""
    forks = HOLDS.replace("print", "import os; os.fork() or __import__('time').sleep(60)\n    print")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", forks, str(run.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "acquired\n"
        process.kill()
        process.wait()
        os.killpg(process.pid, 0)  # the child is there
        with Lock(run) as held:
            assert held.acquire().process == process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_of_the_file_system_the_process_decides(run, other):
    with pytest.raises(UserError, match=rf"process {other.pid} on"):
        Lock(run).acquire()
    other.communicate("\n")
    with Lock(run) as held:
        assert held.acquire() is None
        with pytest.raises(UserError, match=rf"process {os.getpid()} on"):
            Lock(run).acquire()


def test_a_process_with_the_same_id_is_another_one(run):
    left(run)  # this process, started at another time
    with Lock(run) as held:
        assert held.acquire().since == "yesterday"


def test_another_machine_is_watched(run, monkeypatch):
    monkeypatch.setattr(lock, "_WATCH_S", 0.2)
    left(run, host="elsewhere", process=12)
    before = run.lock.read_text()
    stop = threading.Event()
    monkeypatch.setattr(lock, "_BEAT_S", 0.02)
    file = os.open(run.lock, os.O_RDWR)
    beats = threading.Thread(target=lock._touch, args=(file, stop))
    beats.start()
    with pytest.raises(
        UserError, match=r"process 12 on elsewhere \(since yesterday\) trains here; .*delete .*train.lock"
    ):
        Lock(run).acquire()
    assert run.lock.read_text() == before
    stop.set()
    beats.join()
    os.close(file)
    with Lock(run) as held:
        assert held.acquire().host == "elsewhere"


def test_the_holder_touches_the_file(run, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.01)
    with Lock(run) as held:
        held.acquire()
        os.utime(run.lock, (1, 1))
        end = time.monotonic() + 10
        while run.lock.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert run.lock.stat().st_mtime > 1


def test_a_file_that_its_holder_removed_is_no_lock(run, monkeypatch):
    """The second has opened the file, then the first removes it."""
    run.path.mkdir()
    run.lock.write_text("")
    original, calls = fcntl.lockf, []

    def lockf(file, how):
        if not calls:
            run.lock.unlink()
        calls.append(file)
        original(file, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with Lock(run) as held:
        held.acquire()
        assert len(calls) == 2
        assert json.loads(run.lock.read_text())["process"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}'])
def test_a_damaged_file_holds_nobody(run, content):
    run.path.mkdir()
    run.lock.write_text(content)
    with Lock(run) as held:
        assert held.acquire() is None


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/run: cannot be written \(Not a directory\)"),
        Lock(Run(tmp_path / "file/run")) as held,
    ):
        held.acquire()
