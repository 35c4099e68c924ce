"""From a run to the next labels, each command as the one before names it."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from semiseg.data import load
from semiseg.recipe.load import load_recipe


def photographs(folder: Path) -> None:
    """Fourteen photographs of 64 x 48 px with a bright square; eight masks of 0 and 255."""
    for number in range(14):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 90, size=(48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        top, left = rng.integers(4, 20, size=2)
        mask[top : top + 20, left : left + 24] = 255
        image[mask > 0] += 150
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"photos/{number:02}.png")
        (folder / "labels").mkdir(exist_ok=True)
        if number < 8:
            Image.fromarray(mask).save(folder / f"labels/{number:02}.png")


def next_command(text: str, start: str) -> str:
    found = re.search(rf"{start}(?:: | )semiseg (.*)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


def test_rank_correct_update_train(semiseg, here):
    photographs(here)
    assert semiseg("init out --images photos --masks labels --classes ground,square --hours 0.02 --yes").code == 0
    assert semiseg("train out --set engine.steps=2 --set engine.eval_every=1").code == 0
    ranked = semiseg("rank runs/out photos --out ranked --count 4")
    assert (ranked.code, ranked.err) == (0, "")
    assert "8 of 14 images are labeled already and are not ranked" in ranked.out
    assert "4 images ranked in ranked/ranking.csv; look at ranked/ranking.html" in ranked.out
    command = next_command(ranked.out, "then:")
    untouched = semiseg(command)
    assert (untouched.code, len(untouched.err.splitlines())) == (2, 1)
    assert "predictions that nobody has changed" in untouched.err
    corrected = sorted(Path("ranked/annotations").glob("[0-9]*.json"))
    assert len(corrected) == 4
    before = load(load_recipe(Path("out")).data)
    for path in corrected[:2]:
        content = json.loads(path.read_text())
        corners = [[10, 10], [30, 10], [30, 30], [10, 30]]
        content["shapes"] = [{"label": "square", "points": corners, "shape_type": "polygon"}]
        path.write_text(json.dumps(content))
    updated = semiseg(command)
    assert (updated.code, updated.err) == (0, "")
    assert "2 labels taken" in updated.out
    after = load(load_recipe(Path("out")).data)
    assert len(after.labeled) == len(before.labeled) + 2
    assert after.val == before.val
    command = next_command(updated.out, "the next command")
    assert command == f"train {here}/out --out runs/out-2"
    trained = semiseg(f"{command} --set engine.steps=2 --set engine.eval_every=1")
    assert trained.code == 0
    assert f"{len(after.labeled)} labeled, 4 unlabeled, {len(after.val)} validation images" in trained.out
    accepted = semiseg("init out --update --masks ranked/masks --accept")
    assert accepted.code == 2  # corrected LabelMe files differ from the predicted masks of the same images
    assert "differs from the label" in accepted.err
    again = semiseg("rank runs/out-2 photos --out ranked2 --by random --seed 1")
    assert again.code == 0
    assert "10 of 14 images are labeled already" in again.out


def test_wrong_turns_are_one_line(semiseg, here, trained, contents):
    photographs(here)
    before = contents(here)
    run = shlex.quote(str(trained))
    for words, says in (
        ("rank nowhere photos --out ranked", "is not a run directory"),
        (f"rank {run} nowhere --out ranked", "there is no such image"),
        (f"rank {run} photos --out photos/ranked", "is inside photos"),
        (f"rank {run} photos --out labels", "exists already and is not empty"),
        (f"rank {run} photos --out ranked --by size", "choose of hardness"),
        (f"rank {run} photos --out ranked --seed 1", "with --by random only"),
        ("init out", "--images: name the folder"),
        ("init out --images photos --accept", "with --update only"),
        ("init out --update --labelme labels --images photos", "--images: has no effect with --update"),
        ("init out --update --labelme labels --hours 2", "--hours: has no effect with --update"),
        ("init out --update --labelme labels", "is no folder that semiseg init made"),
    ):
        done = semiseg(words)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done
        assert says in done.err
        assert contents(here) == before
