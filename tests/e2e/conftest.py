"""semiseg as its user calls it."""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg import cli as command_line
from semiseg import demo


@dataclass(frozen=True)
class Result:
    """What a command left behind: exit code, standard output and standard error, without colors."""

    code: int
    out: str
    err: str


Semiseg = Callable[[str], Result]


@pytest.fixture
def semiseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Semiseg:
    """semiseg("train recipe.yaml") -> its Result, run in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)  # no terminal

    def semiseg(command: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["semiseg", *shlex.split(command)])
        capsys.readouterr()
        code: Any = 0
        try:
            command_line.main()
        except SystemExit as exited:
            code = exited.code or 0
        streams = capsys.readouterr()
        return Result(code, *(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream) for stream in streams))

    return semiseg


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., dict]) -> Path:
    """An empty current directory with a recipe.yaml for the scenes of the session."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    return tmp_path


@pytest.fixture(scope="session")
def small_demo(recipe: Callable[..., dict]) -> Callable[[pytest.MonkeyPatch], None]:
    """small_demo(monkeypatch): few and small scenes, 4 steps, a small network; all else of the demo as it is."""
    original = demo.recipe

    def small(*args: Any, **kwargs: Any) -> dict[str, Any]:
        values = original(*args, **kwargs)
        values["model"] = recipe()["model"]
        values["engine"] |= {"steps": 4, "batch_size": 2, "eval_every": 2, "precision": "fp32"}
        values["data"] |= {"crop": 32, "workers": 0}
        return values

    def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
        changes = {"NUM_TRAIN": 20, "NUM_LABELED": 6, "NUM_VAL": 6, "SIZE_PX": 32, "recipe": small}
        for name, value in changes.items():
            monkeypatch.setattr(demo, name, value)

    return small_demo
