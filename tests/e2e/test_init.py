"""From a folder of photographs to predictions, each command as the one before names it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.data.check import check as check_files


def photographs(folder: Path) -> None:
    """Twelve photographs of 64 x 48 px with a bright square; eight masks of 0 and 255."""
    for number in range(12):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 90, size=(48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        top, left = rng.integers(4, 20, size=2)
        mask[top : top + 20, left : left + 24] = 255
        image[mask > 0] += 150
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"photos/{number:02}.jpg")
        if number < 8:
            (folder / "labels").mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / f"labels/{number:02}_mask.png")


@pytest.fixture
def decoded(monkeypatch) -> list[bool]:
    """For each check of the data, whether it decoded every photograph."""
    found = []

    def check(dataset, config, full=True, *more):
        found.append(full)
        return check_files(dataset, config, full, *more)

    monkeypatch.setattr("semiseg.api.check_files", check)
    return found


def test_init_train_predict(semiseg, here, decoded):
    photographs(here)
    done = semiseg("init out --images photos --classes ground,square --hours 0.02 --yes")
    assert (done.code, done.err) == (0, "")
    assert decoded
    assert not any(decoded)  # 10,000 photographs are decoded in a minute: training does that
    assert "as the folder of the masks? yes (the default answer)" in done.out
    assert "0 is ground, 255 is square" in done.out
    command = re.search(r"the next command: semiseg (.*)$", done.out, re.MULTILINE)
    assert command is not None
    assert command[1] == "train out"
    done = semiseg(f"{command[1]} --set engine.steps=2 --set engine.eval_every=1")
    assert (done.code, done.err) == (0, "")
    assert "run directory: runs/out" in done.out
    command = re.search(r"next: semiseg (.*)$", done.out, re.MULTILINE)
    assert command is not None
    done = semiseg(command[1].replace("IMAGES", "photos"))
    assert done.code == 0
    assert len(list(Path("predictions").glob("*.png"))) >= 24


def test_wrong_turns_are_one_line(semiseg, here, contents):
    photographs(here)
    before = contents(here)
    for words in ("--images nowhere", "--images photos --masks photos", "--images labels --masks photos --classes a"):
        done = semiseg(f"init out {words}")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done
        assert contents(here) == before
