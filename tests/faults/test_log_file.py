"""What a log file or a pipe shows of a run under way: each line at once, not only when a buffer is full."""

import signal

import harness
import pytest
from conftest import TRAIN

from semiseg.engine import progress


@pytest.mark.parametrize("call", [1, 3])  # before the step is shown
def test_each_line_is_there_at_once(here, semiseg, monkeypatch, call):
    """A process that is killed writes no buffer any more."""
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    here(engine={"log_every": 100, "eval_every": 100, "save_every": 100})
    step, kill = "semiseg.engine.progress.ProgressBar.on_step", lambda: harness.signal_itself(signal.SIGKILL)
    ended = semiseg(TRAIN, lambda: harness.at(step, call, kill))
    assert (ended.code, ended.err) == (137, "")
    shown = [line for line in ended.out.splitlines() if line.startswith("run: ")]
    assert [line.partition("  ")[0] for line in shown] == [f"run: step {step} of 12" for step in range(1, call)]
    assert all(" img/s  0:00:" in line and line.endswith(" left") for line in shown)
    assert "checking the data: 17 of 18 images" in ended.out
