"""The commands that the documentation gives, with the programs that people have."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from semiseg.engine import checkpoint
from semiseg.runs import Run

TORCHRUN = ["torchrun", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
STEPS = 24


@pytest.fixture
def launch(recipe, environ, tmp_path) -> Callable[[list[str]], subprocess.Popen]:
    """launch(TORCHRUN) -> the program as it trains a recipe into `run`."""
    engine = {"steps": STEPS, "batch_size": 2, "log_every": 1, "eval_every": STEPS, "save_every": 5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe("imas", engine=engine)))

    def launch(program: list[str]) -> subprocess.Popen:
        first, *options = program
        command = [
            str(Path(sys.executable).with_name(first)),
            *options,
            "-m",
            "semiseg",
            "train",
            "recipe.yaml",
            "--out",
            "run",
        ]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return launch


def test_the_page_on_reliability_gives_this_command():
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text(encoding="utf-8")
    assert f"\n{' '.join(TORCHRUN)} -m semiseg train " in page
    assert f"`{' '.join(ACCELERATE[:5])} -m semiseg train ...`" in page


def process(parent: int, rank: int) -> int:
    """Id of the process of this rank that a launcher started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ, stat = (folder / "environ").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[1] == str(parent) and f"\0RANK={rank}\0".encode() in environ:
            return int(folder.name)
    raise AssertionError("not there")


def killed(program: subprocess.Popen, run: Run) -> int:
    """Kills one of the two processes of torchrun; returns the step of the last checkpoint."""
    while not (run.exists() and len(run.metrics("train")) > 6):
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    os.kill(process(program.pid, 1), signal.SIGKILL)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 1
    said = err.count("semiseg: lost another process of this run; the same command goes on from the last checkpoint\n")
    assert said == 1, err
    done = checkpoint.newest(run.checkpoints).step
    assert 5 <= done < STEPS
    return done


def test_torchrun(launch, tmp_path):
    killed(launch(TORCHRUN), Run(tmp_path / "run"))


def test_accelerate_starts_what_torchrun_starts(monkeypatch):
    import torch.distributed.run as torchrun  # here: takes a second, which all that collect tests would wait for
    from accelerate.commands import accelerate_cli

    command = ["-m", "semiseg", "train", "recipe.yaml", "--out", "run"]
    started: list[argparse.Namespace] = []
    monkeypatch.setattr(torchrun, "run", started.append)
    monkeypatch.setattr(sys, "argv", [*ACCELERATE, *command])
    accelerate_cli.main()
    (its,), expected = started, torchrun.parse_args([*TORCHRUN[1:], *command])
    for name in ("training_script", "training_script_args", "module", "nproc_per_node", "max_restarts"):
        assert getattr(its, name) == getattr(expected, name), name


@pytest.mark.soak
def test_torchrun_and_accelerate(launch, tmp_path):
    """One of torchrun's processes is killed; with accelerate, the same run goes on."""
    run = Run(tmp_path / "run")
    done = killed(launch(TORCHRUN), run)
    program = launch(ACCELERATE)
    out, err = program.communicate(timeout=600)
    assert (program.returncode, err) == (0, "")
    assert out.count("mIoU, last") == 1
    told = [(event["event"], event["step"], event.get("processes")) for event in run.events()]
    assert told == [("started", 0, 2), ("resumed", done, 2)]
    assert [record["step"] for record in run.metrics("train")] == list(range(1, STEPS + 1))


def test_processes_part_before_python_is_taken_down(environ, tmp_path):
    """Threads of gloo that let go of a tensor after that abort a process that did all its work."""
    program = (
        "import atexit, torch.distributed as dist\n"
        "atexit.register(lambda: print('still one of a group:', dist.is_initialized()))\n"
        "from semiseg.engine.runtime import Runtime\n"
        "for _ in range(2):\n"
        "    print('one of a group:', Runtime('cpu').accelerator.num_processes, dist.is_initialized())\n"
    )
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environ | group, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["one of a group: 1 True"] * 2 + ["still one of a group: False"]
