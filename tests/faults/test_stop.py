"""`semiseg stop` and `semiseg runs`, with trainings in processes of their own."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from conftest import TRAIN

from semiseg.engine import lock

LATER = " --set engine.steps=100000 --set engine.eval_every=100000 --set engine.save_every=100000"


def test_a_training_is_stopped_and_gone_on_with(here, semiseg):
    folder = here()
    training = harness.Command(TRAIN + LATER)
    harness.until(lambda: harness.steps_logged(folder / "run") >= 3)
    listed = semiseg("runs .").out
    assert "running" in listed
    assert "run  " in listed
    stopped = semiseg("stop run")
    assert (stopped.code, stopped.err) == (0, "")
    ended = training.wait()
    assert ended.code == 128 + signal.SIGTERM
    done = harness.newest_step(folder / "run")
    assert 3 <= done < 100000
    asked, said = stopped.out.splitlines()
    assert asked.startswith(f"run: asked process {training.pid} on ")
    goes_on = "train run/config.yaml --out run"
    assert said == f"run: stopped at step {done} of 100000, saved; go on: semiseg {goes_on}"
    assert f"{done}/100000" in semiseg("runs .").out
    again = semiseg("stop run")
    assert (again.code, again.out) == (
        0,
        f"run: is not running (at step {done} of 100000); go on: semiseg {goes_on}\n",
    )
    on = harness.Command(goes_on, lambda: harness.at("semiseg.engine.step.make_batch", 4, alone))
    ended = on.wait()
    assert f"after step {done + 4}, which is saved" in ended.err


def alone() -> None:
    harness.signal_itself(signal.SIGTERM)


def test_it_waits_for_the_step_that_is_being_taken(here, semiseg):
    folder = here()

    def waits() -> None:
        harness.at("semiseg.engine.step.make_batch", 7, lambda: harness.until((folder / "go").exists))

    training = harness.Command(TRAIN, waits)
    harness.until(lambda: harness.newest_step(folder / "run") == 5)
    harness.until(lambda: '"step": 6' in (folder / "run" / "metrics.jsonl").read_text())
    stopping = harness.Command("stop run", lambda: harness.wrap("semiseg.engine.stop.time.sleep", goes))
    assert "stopped at step 7 of 12, saved" in stopping.wait().out
    assert training.wait().code == 128 + signal.SIGTERM


def goes(sleep: Callable[[float], None]) -> Callable[[float], None]:
    """Lets the training take its step once `stop` waits for it."""

    def sleeping(seconds: float) -> None:
        Path("go").touch()
        sleep(seconds)

    return sleeping


def test_a_finished_run_and_no_run(here, semiseg):
    here()
    assert semiseg(TRAIN).code == 0
    said = semiseg("stop run")
    assert (said.code, said.out) == (0, "run: is finished already (step 12 of 12)\n")
    said = semiseg("stop elsewhere")
    assert (said.code, "is not a run directory" in said.err) == (2, True)
    said = semiseg("runs elsewhere")
    assert (said.code, "there is no such folder" in said.err) == (2, True)
    said = semiseg("runs --watch .")
    assert (said.code, said.err) == (2, "semiseg: --watch: needs a terminal; leave it out\n")


def left(folder, **changes) -> None:
    here, process = socket.gethostname(), os.getpid()
    holder = {"host": here, "process": process, "born": lock._born(process), "since": "today"}
    (folder / "run" / "train.lock").write_text(json.dumps(holder | changes))


def test_a_training_that_it_cannot_stop(here, semiseg, monkeypatch):
    folder = here()
    assert semiseg(f"{TRAIN} --set engine.steps=1").code == 0
    left(folder, host="elsewhere", process=12)
    said = semiseg("stop run")
    assert said.err == (
        "semiseg: run: process 12 on elsewhere (since today) trains it; give this command on that machine\n"
    )
    assert said.code == 2
    left(folder)  # this process would end
    said = semiseg("stop run")
    assert (said.code, "does not wait for requests" in said.err, said.err.count("\n")) == (2, True, 1)

    def refuses() -> None:
        def kill(process: int, signum: int) -> None:
            raise PermissionError

        harness.wrap("semiseg.engine.stop.os.kill", lambda _: kill)
        harness.wrap("semiseg.engine.stop._handles", lambda _: lambda *_: True)

    said = semiseg("stop run", refuses)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "belongs to" in said.err
    assert "only this user can stop it" in said.err


def test_an_error_in_a_step_is_shown(here, semiseg):
    here()

    def fails() -> None:
        def raises() -> None:
            raise RuntimeError("out of memory")

        harness.at("semiseg.engine.step.make_batch", 7, raises)

    assert semiseg(TRAIN, fails).code == 2
    listed = semiseg("runs .").out.splitlines()
    assert "failed" in listed[1]
    assert listed[2] == "run: out of memory"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_is_shown(here, semiseg, signum):
    here()
    semiseg(TRAIN, lambda: harness.at("semiseg.engine.step.make_batch", 7, lambda: harness.signal_itself(signum)))
    listed = semiseg("runs .").out
    assert ("failed" in listed, "has ended without a word" in listed) == (signum == signal.SIGKILL,) * 2
    assert ("stopped" in listed) == (signum == signal.SIGTERM)
