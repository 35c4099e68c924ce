"""An image that becomes unreadable during the run, or was unreadable from the start."""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import pytest
from conftest import TRAIN

from semiseg import data
from semiseg.augment.views import Views
from semiseg.data.loader import train_loader
from semiseg.recipe.load import load_recipe

SKIP = f"{TRAIN} --set data.on_unreadable=skip"
BROKEN = "not a readable image (damaged, cut off or no image at all); replace or remove it"
Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def delete(path: Path) -> None:
    path.unlink()


@pytest.fixture
def photos(here, scenes) -> Callable[..., Path]:
    """photos(data={"workers": 1}) -> the folder of scenes, a copy, of the recipe in the current directory."""

    def photos(**sections: dict[str, Any]) -> Path:
        root = here(**sections) / "photos"
        sections["data"] = sections.get("data", {}) | {"root": str(root)}
        here(**sections)
        return Path(shutil.copytree(scenes, root))

    return photos


def when(step: int, *damages: Callable[[], None]) -> Callable[[], None]:
    """Something happens to the images when `step` steps are taken and a run's process is in the next one."""
    return lambda: harness.at("semiseg.engine.step.make_batch", step + 1, lambda: [damage() for damage in damages])


def due(root: Path, steps: range, labeled: bool = False) -> list[str]:
    """Names of the images that the steps will read, counted from 0."""
    recipe = load_recipe(root.parent / "recipe.yaml")
    dataset = data.load(recipe.data)
    loader = train_loader(dataset, recipe.data, Views(), batch_size=2, seed=0, start=steps.start, num_steps=steps.stop)
    samples = dataset.labeled if labeled else dataset.unlabeled
    turns = [(batch.labeled_index if labeled else batch.index).tolist() for batch in loader]
    return [samples[index].name for turn in turns for index in turn]


@pytest.mark.parametrize(
    ("folder", "labeled", "damage", "says"),
    [
        ("images", False, delete, "no such file"),
        ("masks", True, cut, BROKEN),
    ],
)
def test_it_stops_with_the_path_and_goes_on_once_mended(photos, semiseg, whole, folder, labeled, damage, says):
    root = photos()
    broken = root / folder / f"{due(root, range(6, 7), labeled)[0]}.png"
    name = broken.relative_to(root / folder).with_suffix("").as_posix()
    first = next(step for step in range(4, 7) if name in due(root, range(step, step + 1), labeled))
    sound = broken.read_bytes()
    ended = semiseg(TRAIN, when(3, lambda: damage(broken)))
    assert ended.code == 2
    assert ended.err == f"semiseg: {broken}: {says}; step {first} is saved; the same command goes on\n"
    assert harness.newest_step(root.parent / "run") == first
    again = semiseg(TRAIN)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert name in again.err
    broken.write_bytes(sound)
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(root.parent / "run"), whole) == []


def test_skipped_it_is_counted_and_named(photos, semiseg):
    root = photos()
    name = due(root, range(6, 7))[0]
    reads = [due(root, range(step, step + 1)).count(name) for step in range(12)]
    broken = root / "images" / f"{name}.png"
    ended = semiseg(SKIP, when(3, lambda: delete(broken)))
    assert (ended.code, ended.err) == (0, "")
    run = harness.Run(root.parent / "run")
    counts, before = {}, 0
    for record in run.metrics("train"):
        counts[record["step"]] = sum(reads[max(before, 4) : record["step"]])
        assert record.get("skipped", 0) == counts[record["step"]]
        before = record["step"]
    assert sum(counts.values()) > 0
    events = [event for event in run.events() if event["event"] == "skipped"]
    assert [event["step"] for event in events] == [step for step, count in counts.items() if count]
    assert all(len(event["files"]) == 1 and event["files"][0].startswith(f"{broken}: ") for event in events)
    assert "cannot be read and were skipped" in ended.out


def test_a_run_that_was_stopped_goes_on_without_it(photos, semiseg):
    root = photos()
    cut_off = partial(cut, root / "images" / f"{due(root, range(6, 7))[0]}.png")
    assert semiseg(TRAIN, when(3, cut_off)).code == 2
    stopped_at = harness.newest_step(root.parent / "run")
    assert stopped_at >= 4
    assert semiseg(SKIP).code == 0
    assert harness.newest_step(root.parent / "run") == 12
    changed = [event for event in harness.Run(root.parent / "run").events() if event["event"] == "changed"]
    assert changed[0]["step"] == stopped_at
    assert "on_unreadable" in changed[0]["settings"][0]


def test_skipping_is_the_same_with_loader_processes_and_after_an_interruption(photos, semiseg):
    """Broken from the start. The record of steps 7 and 8 counts what was skipped before and after it was stopped."""
    root = photos()
    unlabeled, labeled = due(root, range(6, 7)), due(root, range(6, 7), labeled=True)
    cut(root / "images" / f"{unlabeled[0]}.png")
    cut(root / "images" / f"{labeled[0]}.png")
    cut(root / "masks" / f"{labeled[1]}.png")
    ended = semiseg(SKIP.replace("run", "undisturbed"))
    assert (ended.code, ended.err) == (0, "")
    assert "Images that cannot be read and are skipped: 3" in " ".join(ended.out.split())
    expected = harness.left_behind(root.parent / "undisturbed")
    assert {record["step"]: record.get("skipped") for record in expected["train"]}[8] >= 3

    with_workers = f"{SKIP} --set data.workers=2"
    stop = partial(harness.signal_itself, signal.SIGTERM)
    assert semiseg(with_workers, lambda: harness.at("semiseg.engine.step.make_batch", 7, stop)).code == 143
    assert semiseg(with_workers).code == 0
    assert harness.differences(harness.left_behind(root.parent / "run"), expected) == []


@pytest.mark.parametrize(("folder", "command"), [("images", SKIP), ("masks", TRAIN)])
def test_a_validation_image_is_never_skipped(photos, semiseg, whole, folder, command):
    root = photos()
    broken = root / folder / "val/0002.png"
    sound = broken.read_bytes()
    ended = semiseg(command, when(3, lambda: cut(broken)))
    assert (ended.code, ended.err) == (2, f"semiseg: {broken}: {BROKEN}; step 4 is saved; the same command goes on\n")
    broken.write_bytes(sound)
    assert semiseg(command).code == 0
    assert harness.differences(harness.left_behind(root.parent / "run"), whole) == []


def test_when_all_are_gone_it_stops(photos, semiseg, whole):
    root = photos(data={"workers": 1})
    files = [root / "images" / f"{name}.png" for name in (root / "splits/unlabeled.txt").read_text().split()]
    sound = {file: file.read_bytes() for file in files}
    ended = semiseg(SKIP, when(3, *(partial(delete, file) for file in files)))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"data.unlabeled: {len(files)} images in a row cannot be read; the last: {root}/images/train/" in ended.err
    saved = harness.newest_step(root.parent / "run")
    assert f"; step {saved} is saved" in ended.err
    assert 4 <= saved <= 7
    for file, content in sound.items():
        file.write_bytes(content)
    assert semiseg(SKIP).code == 0
    assert harness.differences(without_skips(harness.left_behind(root.parent / "run")), whole) == []


def without_skips(left: dict[str, Any]) -> dict[str, Any]:
    left["train"] = [{key: value for key, value in record.items() if key != "skipped"} for record in left["train"]]
    return left


@pytest.mark.parametrize(
    ("broken", "code"), [("images/train/0003.png", 0), ("masks/train/0003.png", 0), ("images/val/0001.png", 2)]
)
def test_what_is_broken_before_the_first_step(photos, semiseg, broken, code):
    root = photos(engine={"steps": 1})
    cut(root / broken)
    ended = semiseg(TRAIN)
    assert (ended.code, ended.err) == (2, f"semiseg: {root / broken}: {BROKEN}\n")
    assert not (root.parent / "run").exists()
    ended = semiseg(SKIP)
    assert ended.code == code
    assert ended.err == ("" if code == 0 else f"semiseg: {root / broken}: {BROKEN}\n")
