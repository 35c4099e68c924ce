"""SIGTERM, Ctrl-C, SIGHUP: the run saves the step, prints one line, and is resumed without a difference."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness
import pytest
from conftest import TRAIN

from semiseg.errors import UserError

ROOT = Path(__file__).parents[2]
SAVED = "semiseg: run: stopped by {} after step {}, which is saved; the same command goes on\n"
AT_ONCE = "semiseg: stopped by {}; the same command goes on\n"


@pytest.fixture(autouse=True)
def _hears_of_its_terminal():
    """Lets trainings hear SIGHUP, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def sending(where: str, call: int, *signals: Callable[[], None]) -> Callable[[], None]:
    return lambda: harness.at(where, call, lambda: [send() for send in signals])


def alone(signum: int) -> Callable[[], None]:
    return lambda: harness.signal_itself(signum)


def group(signum: int) -> Callable[[], None]:
    return lambda: harness.signal_group(signum)


MOMENTS = [  # where, at which call in a process, what is done then; records are due after 3, 4, 5, 6, 8 ...
    # In an evaluation teacher and student predict each of the four images.
    ("semiseg.api.check_files", 1, None),  # before there is anything
    ("semiseg.engine.setup.Stepper", 1, 1),  # before the first step
    ("semiseg.engine.step.make_batch", 1, 2),  # in a step
    ("semiseg.runs.Run.rewind", 1, 3),  # while it is being resumed
    ("semiseg.engine.evaluate.add_confusion", 4, 4),  # in an evaluation; it starts from its first image again
    ("semiseg.engine.checkpoint.save_file", 2, 6),  # while a checkpoint is being written; a step later it stops
    ("semiseg.engine.log.Log.flush", 4, 11),  # while a record is being written
    ("semiseg.engine.evaluate.add_confusion", 8, 12),  # at the last image of the last evaluation
]
IN_A_STEP = [("semiseg.engine.step.make_batch", 7, 7)]
SOME = [
    ("semiseg.engine.step.make_batch", 2, 2),
    ("semiseg.engine.evaluate.add_confusion", 4, 4),
    ("semiseg.engine.step.make_batch", 3, 7),
    ("semiseg.engine.evaluate.add_confusion", 12, 12),
]


@pytest.mark.parametrize(
    ("signum", "send", "workers", "moments"),
    [
        (signal.SIGTERM, alone(signal.SIGTERM), 0, MOMENTS),
        (signal.SIGINT, group(signal.SIGINT), 2, SOME),
        (signal.SIGINT, alone(signal.SIGINT), 0, IN_A_STEP),
        (signal.SIGTERM, group(signal.SIGTERM), 1, IN_A_STEP),  # loader processes die of it
        (signal.SIGHUP, group(signal.SIGHUP), 1, [MOMENTS[0], *IN_A_STEP]),
    ],
    ids=["SIGTERM", "Ctrl-C with loader processes", "SIGINT", "SIGTERM to all", "SIGHUP"],
)
def test_stopped_anywhere_and_gone_on_with(here, semiseg, whole, signum, send, workers, moments):
    folder, name = here(data={"workers": workers}), signum.name
    for where, call, done in moments:
        ended = semiseg(TRAIN, sending(where, call, send))
        said = AT_ONCE.format(name) if done is None else SAVED.format(name, done)
        assert (ended.code, ended.err) == (128 + signum, said), where
        assert "Traceback" not in ended.out
        assert harness.newest_step(folder / "run") == (done or 0), where
    ended = semiseg(TRAIN)
    assert (ended.code, ended.err) == (0, "")
    assert "going on with this run" in ended.out  # also where but the last evaluation is left
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []
    events = [event["event"] for event in harness.Run(folder / "run").events()]
    stops = len([done for _, _, done in moments if done])
    assert [event for event in events if event in ("started", "resumed")] == ["started"] + ["resumed"] * stops
    assert events.count("stopped") == stops


def test_a_second_ctrl_c_stops_at_once(here, semiseg, whole):
    folder = here(data={"workers": 1})
    ctrl_c, a_moment_later = group(signal.SIGINT), partial(time.sleep, 0.1)
    ended = semiseg(TRAIN, sending("semiseg.engine.step.make_batch", 8, ctrl_c, a_moment_later, ctrl_c))
    assert (ended.code, ended.err) == (
        130,
        "semiseg: interrupted; the same command goes on from the last checkpoint\n",
    )
    assert harness.newest_step(folder / "run") == 5
    ended = semiseg(TRAIN, sending("semiseg.engine.step.make_batch", 3, alone(signal.SIGTERM), ctrl_c, ctrl_c))
    assert ended.code == 130
    assert harness.newest_step(folder / "run") == 5
    ended = semiseg(TRAIN, sending("semiseg.engine.checkpoint.save_file", 2, ctrl_c, ctrl_c))
    assert ended.code == 130
    assert harness.newest_step(folder / "run") == 5
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_sigterm_and_then_one_ctrl_c_lose_nothing(here, semiseg):
    folder = here()
    ended = semiseg(TRAIN, sending("semiseg.engine.step.make_batch", 2, alone(signal.SIGTERM), alone(signal.SIGINT)))
    assert (ended.code, ended.err) == (143, SAVED.format("SIGTERM", 2))
    assert harness.newest_step(folder / "run") == 2


@pytest.mark.parametrize(
    ("where", "call"),
    [("semiseg.engine.log.Log.event", 2), ("semiseg.engine.lock.Lock.__exit__", 1), ("semiseg.cli._complain", 1)],
)
def test_a_signal_does_not_hide_an_error(here, semiseg, where, call):
    """As a launcher sends it to all processes when one of them dies."""
    folder = here()

    def prepare() -> None:
        harness.at("semiseg.engine.step.make_batch", 7, fail)
        sending(where, call, alone(signal.SIGTERM))()

    def fail() -> None:
        raise UserError("lost another process")

    ended = semiseg(TRAIN, prepare)
    assert (ended.code, ended.err) == (2, "semiseg: lost another process\n")
    assert harness.newest_step(folder / "run") == 5


def test_under_nohup_a_run_goes_on(here, semiseg, whole):
    folder = here(data={"workers": 1})

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        sending("semiseg.engine.step.make_batch", 7, group(signal.SIGHUP))()

    ended = semiseg(TRAIN, prepare)
    assert (ended.code, ended.err) == (0, "")
    assert "mIoU, last" in ended.out
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_what_cannot_be_saved_is_not_said_to_be(here, semiseg):
    """Stopped while the disk is full."""
    folder = here()

    def prepare() -> None:
        sending("semiseg.engine.step.make_batch", 7, alone(signal.SIGTERM))()
        harness.wrap("semiseg.engine.checkpoint.save", lambda save: full_after_step_5(save))

    def full_after_step_5(save: Callable[..., Path]) -> Callable[..., Path]:
        def saving(*args: object, step: int, **kwargs: object) -> Path:
            with harness.no_file_longer_than(100_000 if step > 5 else -1):
                return save(*args, step=step, **kwargs)

        return saving

    ended = semiseg(TRAIN, prepare)
    assert ended.code == 143
    assert ended.err.count("\n") == 1
    assert "step 7 cannot be saved: run/checkpoints/step-00000007" in ended.err
    assert "step-00000005, is whole" in ended.err
    assert "is saved" not in ended.err
    assert harness.newest_step(folder / "run") == 5


def test_a_process_from_a_terminal(here, semiseg, whole):
    """All of it: a new Python, Ctrl-C to the whole process group during its imports, and then while it trains."""
    folder = here(data={"workers": 2}, engine={"log_every": 1})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}

    def terminal() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "semiseg", *TRAIN.split()],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    command = terminal()
    mapped = Path(f"/proc/{command.pid}/maps")
    if mapped.exists():
        harness.until(lambda: "libtorch" in mapped.read_text())
    os.killpg(command.pid, signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (130, AT_ONCE.format("SIGINT"))
    assert not (folder / "run").exists()

    command = terminal()
    harness.until(lambda: harness.steps_logged(folder / "run") >= 2)
    os.killpg(command.pid, signal.SIGINT)
    _, err = command.communicate(timeout=60)
    step = harness.newest_step(folder / "run")
    assert 2 <= step < 12
    assert (command.returncode, err) == (130, SAVED.format("SIGINT", step))
    with pytest.raises(ProcessLookupError):  # no loader process is left
        os.killpg(command.pid, 0)


def test_a_terminal_that_goes_away(here):
    """The bar is drawn on it, so that printing is an error from then on."""
    folder = here(data={"workers": 1}, engine={"steps": 400, "log_every": 1, "eval_every": 400, "save_every": 400})
    terminal, end = os.openpty()
    command = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" "$@" < "$TTY" > "$TTY" 2>&1', sys.executable, "-m", "semiseg", *TRAIN.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"),
             "TTY": os.ttyname(end), "TERM": "xterm"},
        start_new_session=True,  # so the terminal that it opens first becomes its own
    )  # fmt: skip
    harness.until(lambda: os.read(terminal, 4096) and harness.steps_logged(folder / "run") >= 2)
    os.close(end)
    os.close(terminal)
    assert command.wait(60) == 128 + signal.SIGHUP
    assert 2 <= harness.newest_step(folder / "run") < 400
    assert "SIGHUP" in harness.Run(folder / "run").events()[-1]["reason"]
