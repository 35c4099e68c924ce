"""Comparisons over seeds: statistics by hand, and which runs may stand in one table."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from semiseg.errors import UserError
from semiseg.report import comparison, comparison_files
from semiseg.runs import Run

RECIPE = {
    "data": {"layout": "folder", "root": "data", "val": "val.txt"},
    "model": {"architecture": "unet", "encoder": "resnet18"},
    "method": {"name": "supervised"},
    "optim": {"lr": 0.1},
    "engine": {"steps": 20, "batch_size": 2, "seed": 0, "precision": "fp32", "evaluate": {"mode": "whole"}},
}
ENVIRONMENT = {
    "commit": "abc",
    "machine": {"cpu": "a CPU", "threads": 2, "gpus": []},
    "precision": {"used": "fp32"},
    "labels": {"labeled": 3, "unlabeled": 5, "val": 2, "partition": "1e66", "val_partition": "3b21"},
    "classes": {"names": ["sky", "tree"]},
    "trained_parameters": 2_000_000,
}


def changed(values: dict, path: str, value: object) -> dict:
    section, _, key = path.partition(".")
    return values | ({section: values[section] | {key: value}} if key else {section: value})


@pytest.fixture
def run(tmp_path):
    """run(folder, seed, last) -> a run directory of 20 steps with evaluations after 10 and 20."""

    def run(folder: str, seed: int, last: float | None, recipe: dict = RECIPE, environment: dict = ENVIRONMENT,
            iou: tuple = (0.5, 0.005), best: float = 0.0) -> Run:  # fmt: skip
        made = Run(tmp_path / folder / f"seed-{seed}")
        made.start(yaml.safe_dump(changed(recipe, "engine.seed", seed)), environment, [])
        pace = {"images_per_step": 4, "images_per_second": 8.0, "peak_memory_mb": 100 + seed}
        made.log({"kind": "train", "step": 10, **pace})
        made.log({"kind": "val", "step": 10, "miou": best, "iou": [best, None]})
        if last is not None:
            made.log({"kind": "train", "step": 20, **pace})
            made.log({"kind": "val", "step": 20, "miou": last, "iou": list(iou)})
        return made

    return run


def test_statistics_by_hand(run):
    """Gains 2, 4, 3 points: mean 3, deviation 1, half interval 4.303 / sqrt(3)."""
    runs = {
        "first": [run("first", seed, last) for seed, last in ((0, 0.50), (1, 0.60), (2, 0.55))],
        "other": [run("other", seed, last, best=0.9) for seed, last in ((2, 0.58), (0, 0.52), (1, 0.64))],
    }
    first, other = comparison.read(runs).rows
    assert list(other.results) == [0, 1, 2]
    assert (first.spread("last").mean, first.spread("last").deviation) == pytest.approx((0.55, 0.05))
    assert (other.spread("best").mean, other.spread("best").deviation) == pytest.approx((0.9, 0))
    gain = other.gain(first)
    assert (gain.mean, gain.half) == pytest.approx((0.03, 0.01 * 4.303 / 3**0.5))
    assert (other.spread("lost").mean, other.spread("step_s").mean, other.spread("memory_mb").mean) == (1, 0.5, 101)
    assert other.spread("parameters").mean == 2_000_000
    assert other.class_iou(1).mean == pytest.approx(0.005)


@pytest.mark.parametrize(("pixels", "lost"), [((5, 7), 1), ((5, 0), 0)])
def test_a_class_that_no_validation_mask_shows_is_not_lost(run, pixels, lost):
    """It has an IoU of 0 as soon as the network predicts it somewhere."""
    made = run("a", 0, 0.25, iou=(0.5, 0.0))
    made.pictures.mkdir()
    confusion = [[pixels[0], 0], [pixels[1], 0]]
    (made.pictures / "index.json").write_text(json.dumps({"networks": {"student": {"confusion": confusion}}}))
    found = comparison.read({"a": [made]})
    assert found.rows[0].results[0].lost == lost
    assert comparison_files.from_values(json.loads(comparison_files.to_json(found))) == found


def test_many_seeds_have_the_interval_of_thirty_degrees_of_freedom():
    differences = [0.0, 1.0] * 20
    found = comparison.Interval.of(differences)
    assert found.half == pytest.approx(2.042 * 0.50637 / 40**0.5, rel=1e-4)


def test_only_pairs_and_complete_runs_count(run):
    runs = {
        "first": [run("first", 0, 0.5), run("first", 1, 0.1), run("first", 4, 0.1)],
        "other": [run("other", 0, 0.6), run("other", 1, None), run("other", 3, 0.9)],
        "later": [Run(Path("no/such/seed-0"))],  # not started
    }
    found = comparison.read(runs)
    first, other, later = found.rows
    assert (later.spread("last"), later.gain(first)) == (None, None)
    assert "not counted: later, not started" in comparison_files.notes(found)
    assert (other.gain(first).mean, other.gain(first).half) == (pytest.approx(0.1), None)
    assert dict(other.unfinished) == {1: 10}
    assert found.seeds == (0, 1, 3, 4)
    assert "not counted: other with seed 1, 10 of 20 steps" in comparison_files.notes(found)


@pytest.mark.parametrize(
    ("recipe", "environment", "says"),
    [
        (
            changed(RECIPE, "engine.steps", 30),
            ENVIRONMENT,
            r"another steps \(30\) than .* \(20\); such runs",
        ),
        (changed(RECIPE, "engine.evaluate", {"mode": "sliding"}), ENVIRONMENT, "another evaluation"),
        (changed(RECIPE, "data.val", "test.txt"), ENVIRONMENT, "another validation list"),
        (changed(RECIPE, "data.long_side", 99), ENVIRONMENT, "another size in evaluation"),
        (changed(RECIPE, "engine.eval_every", 5), ENVIRONMENT, "another steps between evaluations"),
        (RECIPE, changed(ENVIRONMENT, "labels.partition", "2f77"), "another partition"),
        (RECIPE, changed(ENVIRONMENT, "labels.val_partition", "2f77"), "another hash of the validation images"),
        (RECIPE, changed(ENVIRONMENT, "classes.names", ["sky", "road"]), "another classes"),
    ],
)
def test_what_is_not_comparable_stands_in_no_table(run, recipe, environment, says):
    runs = {"first": [run("first", 0, 0.5)], "other": [run("other", 0, 0.6, recipe, environment)]}
    with pytest.raises(UserError, match=says):
        comparison.read(runs)


def test_other_masks_of_the_same_images_stand_in_no_table(run):
    first, other, earlier = (run(name, 0, 0.5) for name in ("first", "other", "earlier"))
    for made, masks in ((first, {"a": "12", "b": "34"}), (other, {"b": "34", "a": "12"})):
        (made.path / "masks.json").write_text(json.dumps({"labels": masks, "pseudo": {made.path.parent.name: "1"}}))
    comparison.read({"first": [first], "other": [other], "earlier": [earlier]})  # an earlier semiseg wrote none
    (other.path / "masks.json").write_text(json.dumps({"labels": {"a": "12", "b": "56"}}))
    with pytest.raises(UserError, match="another hash of the masks"):
        comparison.read({"first": [first], "other": [other]})


def test_masks_whose_objects_have_moved_stand_in_no_table(run):
    digests = {"first": "12-aa", "other": "12-bb", "earlier": "12"}  # an earlier semiseg wrote the first part alone
    made = {name: run(name, 0, 0.5) for name in digests}
    for name, digest in digests.items():
        (made[name].path / "masks.json").write_text(json.dumps({"labels": {"a": digest}, "pseudo": {}}))
    for name in ("first", "other"):
        comparison.read({"earlier": [made["earlier"]], name: [made[name]]})
    with pytest.raises(UserError, match="another hash of the masks' pixels"):
        comparison.read({"first": [made["first"]], "other": [made["other"]]})


def test_a_row_is_one_recipe(run):
    other = changed(RECIPE, "optim.lr", 0.2)
    with pytest.raises(UserError, match=r"another optim\.lr \(0\.2\) than .*may differ in their seed only"):
        comparison.read({"one": [run("one", 0, 0.5), run("one", 1, 0.5, other)]})
    moved = changed(RECIPE, "data.root", "elsewhere")
    assert comparison.read({"two": [run("two", 0, 0.5), run("two", 1, 0.5, moved)]}).seeds == (0, 1)
    with pytest.raises(UserError, match="has seed 0 twice"):
        comparison.read({"one": [run("three", 0, 0.5), run("four", 0, 0.5)]})
    with pytest.raises(UserError, match="no run was started"):
        comparison.read({"one": [Run(Path("no/such"))]})


def test_rows_are_found_below_folders(run, tmp_path):
    for name in ("b", "a"):
        for seed in (0, 1):
            run(name, seed, 0.5)
    alone = run("a", 2, 0.5)
    found = comparison.rows_of([tmp_path / "b", tmp_path])
    assert {name: [one.path.name for one in runs] for name, runs in found.items()} == {
        "b": ["seed-0", "seed-1"],
        "a": ["seed-0", "seed-1", "seed-2"],
    }
    assert list(comparison.with_baseline(found, "a")) == ["a", "b"]
    run("supervised", 0, 0.5)
    assert next(iter(comparison.rows_of([tmp_path]))) == "supervised"
    assert comparison.rows_of([alone.path]) == {"a": [alone]}
    with pytest.raises(UserError, match="has no run"):
        comparison.rows_of([tmp_path / "c"])
    with pytest.raises(UserError, match="choose one of b, a"):
        comparison.with_baseline(found, "c")


def test_runs_that_somebody_has_sorted_by_seed_are_rows_of_their_own(run, tmp_path):
    """Only the stages of ST++ below a folder `seed-N` are one row, their last one."""
    for name in ("seed-7/imas", "seed-7/cps", "st_pp/seed-7/stage-1", "st_pp/seed-7/stage-3"):
        made = run("x", 7, 0.5)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        made.path.rename(tmp_path / name)
    (tmp_path / "x").rmdir()
    found = comparison.rows_of([tmp_path])
    alone = [tmp_path / "seed-7/cps", tmp_path / "seed-7/imas"]
    assert found == {**{str(path): [Run(path)] for path in alone}, "st_pp": [Run(tmp_path / "st_pp/seed-7/stage-3")]}


def test_the_files_say_the_same(run, tmp_path):
    runs = {
        "a_1": [run("first", 0, 0.50), run("first", 1, 0.60)],
        "[b]&%<": [run("other", 0, 0.52), run("other", 1, 0.64)],
    }
    found = comparison.read(runs)
    comparison_files.write(found, tmp_path / "tables")
    first, other = csv.DictReader(io.StringIO((tmp_path / "tables/comparison.csv").read_text()))
    assert (other["name"], other["seeds"], float(other["last mean"])) == ("[b]&%<", "2", pytest.approx(0.58))
    assert float(other["gain over a_1"]) == pytest.approx(0.03)
    assert float(other["gain half interval"]) == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert (first["gain over a_1"], float(first["IoU of tree"])) == ("", pytest.approx(0.005))
    whole = json.loads((tmp_path / "tables/comparison.json").read_text())
    assert whole["rows"][1]["runs"]["1"]["last"] == 0.64
    assert (whole["protocol"]["steps"], whole["rows"][0]["gain"]) == (20, None)
    latex = (tmp_path / "tables/comparison.tex").read_text()
    assert (
        r"{[}b]\&\%$<$ & 2 & 58.0 $\pm$ 8.5 & 58.0 $\pm$ 8.5 & +3.0 $\pm$ 12.7 & 1.0 & 0.500 & 100 & 2000000 \\"
        in latex
    )
    assert r"a\_1 & 2" in latex
    text = (tmp_path / "tables/comparison.txt").read_text()
    assert "+3.0 ± 12.7" in text
    assert "3 labeled and 5 unlabeled images (partition 1e66)" in text


def test_a_terminal_of_80_columns_shows_every_number(run):
    runs = {
        "supervised": [run("first", seed, 0.5 + seed / 10) for seed in (0, 1)],
        "imas:loss=standard:strong={pool: jitter}": [run("other", seed, 0.123456 + seed / 7) for seed in (0, 1)],
    }
    page = Console(width=80)
    with page.capture() as captured:
        page.print(comparison_files.text(comparison.read(runs)))
    assert "…" not in captured.get()
    assert "-35.5 ± " in captured.get()


def test_what_is_no_run_is_said_in_one_line(run, tmp_path):
    good = run("good", 0, 0.5)
    for environment, recipe in (({}, RECIPE), (ENVIRONMENT, {"x": 1}), (ENVIRONMENT, changed(RECIPE, "engine", 3))):
        bad = Run(tmp_path / "bad")
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad/config.yaml").write_text(yaml.safe_dump(recipe))
        (tmp_path / "bad/environment.json").write_text(json.dumps(environment))
        with pytest.raises(UserError, match="bad: is no run of semiseg, or is damaged"):
            comparison.read({"good": [good], "bad": [bad]})


def test_several_precisions_and_networks_are_said(run):
    other = changed(changed(RECIPE, "engine.precision", "bf16"), "model.encoder", "resnet50")
    runs = {
        "one": [run("one", 0, 0.5)],
        "two": [run("two", 0, 0.5, other, changed(ENVIRONMENT, "precision", {"used": "bf16"}))],
    }
    lines = comparison_files.notes(comparison.read(runs))
    assert {"note: several: network", "note: several: precision"} <= set(lines)
    weights = changed(RECIPE, "model.weights", "imagenet")  # a gain over a network without them is theirs
    found = comparison.read({"one": runs["one"], "three": [run("three", 0, 0.5, weights)]})
    assert "note: several: network" in comparison_files.notes(found)
