"""Faults are injected into commands that run in processes of their own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from semiseg.models import build
from semiseg.models.build import Network, Undivided
from semiseg.types import Normalization

sys.path.insert(0, str(Path(__file__).parent))

import harness


def small(_: build.Config, num_classes: int, channels: int = 3) -> Network:
    """What commands in processes of their own train in place of the recipe's network: these tests train 150 times.

    It has batch norm, and its checkpoints are of a few hundred kB.
    """
    encoder = nn.Sequential(nn.Conv2d(channels, 64, 4, 4), nn.BatchNorm2d(64), nn.ReLU())
    body = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU())
    head, larger = nn.Conv2d(128, num_classes, 1), nn.Upsample(scale_factor=4)
    net = Undivided(encoder)
    net.segmentation_head = nn.Sequential(body, head, larger)
    return Network(net, Normalization(), 4)


harness.Command.network = staticmethod(small)

ENGINE = {"steps": 12, "log_every": 3, "eval_every": 4, "save_every": 5}
TRAIN = "train recipe.yaml --out run"


@pytest.fixture(scope="session", autouse=True)
def warm(trained: Path) -> None:
    """Imports and prepares everything once, before other processes are forked from this one."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., dict]) -> Callable[..., Path]:
    """here(data={"workers": 2}) -> an empty current directory with a recipe.yaml: iMAS, 12 steps."""

    def here(method: str = "imas", /, **sections: dict[str, Any]) -> Path:
        sections["engine"] = ENGINE | sections.get("engine", {})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(method, **sections)))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return here


@pytest.fixture
def semiseg() -> Callable[..., harness.Ended]:
    """semiseg("train recipe.yaml", prepare) -> how it ended in a process of its own."""
    return lambda arguments, prepare=lambda: None: harness.Command(arguments, prepare).wait()


@pytest.fixture(scope="session")
def whole(recipe: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of an uninterrupted run of the recipe of `here`."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe("imas", engine=ENGINE)))
    done = harness.Command(f"train {folder / 'recipe.yaml'} --out {folder / 'run'}").wait()
    assert (done.code, done.err) == (0, "")
    return harness.left_behind(folder / "run")
