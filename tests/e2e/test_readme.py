"""The commands of the README and of the tutorial work, and the example of an own method. Settings make them small."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semiseg import api

ROOT = Path(__file__).parents[2]
SMALL = {
    "engine.steps": 2, "engine.batch_size": 2, "engine.eval_every": 1, "engine.save_every": 2, "engine.log_every": 1,
    "engine.device": "cpu", "engine.precision": "fp32", "data.crop": 32, "data.long_side": "null", "data.workers": 0,
    "model": "{architecture: unet, encoder: tu-test_efficientnet, weights: null}",
}  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of the sh blocks, in order, continued lines joined, without prompt and comment."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [shlex.join(line) for line in words if line]


def small(command: str) -> str:
    """The command with settings that make it quick; of commands that train."""
    words = shlex.split(command)
    if words[:2] not in (["semiseg", "train"], ["semiseg", "compare"]):
        return command
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    return shlex.join([*words, *settings, *(["--seeds", "0"] if words[1] == "compare" else [])])


FAKE = """# A tool

```sh
make demo
$ semiseg train folder --set data.root=photos   # your own
semiseg predict runs/folder photos/images \\
    --out masks

# then
make test
```

Prose with `semiseg nonsense`.

```python
import semiseg
```

```yaml
semiseg: no command
```

```sh
semiseg methods
```
"""


def test_commands_are_found():
    assert commands(FAKE) == [
        "make demo",
        "semiseg train folder --set data.root=photos",
        "semiseg predict runs/folder photos/images --out masks",
        "make test",
        "semiseg methods",
    ]
    assert blocks(FAKE, "python") == ["import semiseg\n"]
    assert commands("# no commands\n") == []


def test_only_training_is_made_small():
    assert small("semiseg evaluate runs/first") == "semiseg evaluate runs/first"
    words = shlex.split(small("semiseg train a.yaml --out b"))
    assert words[:5] == ["semiseg", "train", "a.yaml", "--out", "b"]
    assert "engine.steps=2" in words


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, scenes: Path) -> Path:
    """A folder as a reader has it: own photographs, a few of them with masks."""
    folder = tmp_path / "readme"
    shutil.copytree(scenes, folder / "photos", ignore=shutil.ignore_patterns("splits"))
    return folder


def test_make_targets_exist(readme):
    targets = [command.split()[1] for command in commands(readme) if command.startswith("make ")]
    assert {"demo", "test"} <= set(targets)  # the two that need nothing installed
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_commands_work(page, place, semiseg, small_demo, monkeypatch):
    monkeypatch.chdir(place)
    small_demo(monkeypatch)
    text = (ROOT / page).read_text(encoding="utf-8")
    called = [command for command in commands(text) if command.startswith("semiseg ")]
    assert any(command.startswith("semiseg train ") for command in called), f"{page} shows no command in ```sh blocks"
    for command in called:
        done = semiseg(small(command).removeprefix("semiseg "))
        assert done.code == 0, f"{command}\n{done.err}"
        assert done.err == ""


def test_python_works(readme, place, monkeypatch):
    (code,) = blocks(readme, "python")
    monkeypatch.chdir(place)
    train = api.train

    def small_train(recipe, out, overrides=(), console=None):
        return train(recipe, out, [*overrides, *(f"{key}={value}" for key, value in SMALL.items())], console)

    monkeypatch.setattr(api, "train", small_train)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_own_method_works(place, semiseg, monkeypatch):
    """The example of docs/own-method.md trains, with its own setting."""
    text = (ROOT / "docs/own-method.md").read_text(encoding="utf-8")
    (code,), (command,) = blocks(text, "python"), commands(text)
    (place / "own").mkdir()
    (place / "own/simple.py").write_text(code)
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)  # `python -m` looks for modules in the current folder
    done = semiseg(small(command.removeprefix("python -m ")).removeprefix("semiseg "))
    for name in ("own", "own.simple"):
        sys.modules.pop(name, None)
    assert (done.code, done.err) == (0, "")
    assert "threshold: 0.9" in (place / "runs/simple/config.yaml").read_text()
    (first, *_) = (place / "runs/simple/metrics.jsonl").read_text().splitlines()
    assert '"unlabeled"' in first
