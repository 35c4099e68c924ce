"""docs/results.md is what its command writes from the committed comparisons."""

import json

import comparisons
import pytest

from semiseg.report.comparison import Comparison, Result, Row
from semiseg.report.comparison_files import as_values, from_values


def test_the_page_is_up_to_date():
    assert comparisons.PAGE.read_text(encoding="utf-8") == comparisons.page(comparisons.FOLDER)


def test_sections_are_in_the_order_of_their_numbers():
    heads = [line[3:] for line in comparisons.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    titles = {
        path: json.loads(path.read_text(encoding="utf-8")).get("title") for path in comparisons.FOLDER.glob("*.json")
    }
    numbers = {title: int(path.stem.partition("-")[0]) for path, title in titles.items() if title}
    found = [numbers[head] for head in heads if head in numbers]
    assert found == sorted(found)
    assert len(found) == len(numbers)


def test_a_section_by_hand():
    run = {"last": 0.5, "best": 0.6, "iou": [0.5, None], "step_s": 0.25}
    comparison = {
        "classes": ["sky", "tree"],
        "protocol": {
            "labeled images": 3, "unlabeled images": 4, "validation images": 5, "validation list": "val.txt",
            "partition": "ab", "steps": 10, "batch size": 2,
        },
        "made": {"commit": ["abc"], "precision": ["fp32"], "machine": ["a CPU"]},
        "rows": [
            {"name": "first", "runs": {"0": run}, "last": {"mean": 0.5, "deviation": None}, "gain": None,
             "best": {"mean": 0.6, "deviation": None}, "lost": {"mean": 0.0}},
            {"name": "other", "runs": {"0": run, "1": run}, "last": {"mean": 0.52, "deviation": 0.01},
             "best": {"mean": 0.6, "deviation": 0.0}, "gain": {"mean": 0.02, "half": 0.13}, "lost": {"mean": 0.5}},
            {"name": "not run", "runs": {}, "last": None, "best": None, "gain": None, "lost": None},
        ],
    }  # fmt: skip
    lines = comparisons.section({"title": "T", "text": "Why.", "comparison": comparison}).splitlines()
    assert lines[:3] == ["## T", "", "Why."]
    assert lines[6:9] == [
        "| `first` | 0 | 50.0 | 60.0 |  | 0.0 | 0.25 | 50.0 | - |",
        "| `other` | 0, 1 | 52.0 ± 1.0 | 60.0 ± 0.0 | +2.0 ± 13.0 | 0.5 | 0.25 | 50.0 | - |",
        "",
    ]


def test_committed_comparisons_name_no_place_on_a_machine():
    for path in comparisons.FOLDER.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/home" not in text
        assert "/root" not in text
        assert path.name == comparisons.GOALS or json.loads(text)["comparison"]["rows"]


def made(steps: int, commit: str, **rows: dict[int, float]) -> Comparison:
    def result(miou: float) -> Result:
        return Result(last=miou, best=miou, iou=(miou, None), step_s=0.1, memory_mb=5.0, parameters=7)

    found = tuple(Row(name, {seed: result(miou) for seed, miou in runs.items()}, {}) for name, runs in rows.items())
    return Comparison(found, ("sky", "tree"), {"steps": steps}, {"commit": (commit,)})


def test_a_comparison_becomes_itself_again():
    comparison = made(10, "a", first={0: 0.5, 1: 0.25}, other={0: 0.75})
    assert from_values(json.loads(json.dumps(as_values(comparison)))) == comparison


def test_new_rows_and_seeds_are_added_and_a_run_again_replaces_the_earlier_one():
    earlier = made(10, "a", first={0: 0.5, 2: 0.25}, other={0: 0.75})
    new = made(10, "b", third={0: 0.1}, first={0: 0.6, 1: 0.3})
    found = comparisons.merged(earlier, new)
    lasts = {row.name: {seed: result.last for seed, result in row.results.items()} for row in found.rows}
    assert lasts == {"first": {0: 0.6, 1: 0.3, 2: 0.25}, "other": {0: 0.75}, "third": {0: 0.1}}
    assert list(found.rows[0].results) == [0, 1, 2]
    assert found.made == {"commit": ("a", "b")}


def test_comparisons_of_other_protocols_are_not_added():
    with pytest.raises(ValueError, match="another steps"):
        comparisons.merged(made(10, "a", first={0: 0.5}), made(20, "a", first={1: 0.5}))


def test_a_second_command_adds_to_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparisons, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(comparisons, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(comparisons, "page", lambda folder: "the page")

    def add(comparison: Comparison, *words: str) -> None:
        (tmp_path / "comparison.json").write_text(json.dumps(as_values(comparison)))
        monkeypatch.setattr("sys.argv", ["comparisons.py", "add", "one", str(tmp_path), *words])
        comparisons.main()

    with pytest.raises(SystemExit):
        add(made(10, "a", first={0: 0.5}), "--title", "T")
    assert "write its --text" in capsys.readouterr().err
    add(made(10, "a", first={0: 0.5}), "--title", "T", "--text", "Why.")
    add(made(10, "b", first={1: 0.5}), "--text", "Still why.")
    values = json.loads((tmp_path / "results/one.json").read_text())
    assert (values["title"], values["text"]) == ("T", "Still why.")
    assert list(values["comparison"]["rows"][0]["runs"]) == ["0", "1"]
    with pytest.raises(SystemExit):
        add(made(20, "b", first={1: 0.5}))
    assert "another steps" in capsys.readouterr().err


def test_goals_by_hand():
    first = made(10, "a", weak={0: 0.5, 1: 0.4}, best={0: 0.6, 1: 0.6}, ours={0: 0.7, 1: 0.64})
    second = made(10, "a", weak={0: 0.3}, ours={0: 0.2})
    values = {name: {"comparison": as_values(one)} for name, one in (("one", first), ("two", second))}
    packs = {
        "cells": {"comparison": "one", "recommended": "ours", "best supervised": "best", "weak": "weak"},
        "tiles": {"comparison": "two", "recommended": "ours", "best supervised": "weak"},
    }
    lines = comparisons.goals(packs, values).splitlines()
    assert lines == [
        "| pack | recommended | - best supervised | - weak | lost |",
        "| --- | --- | --- | --- | --- |",
        "| cells | `ours`, 2 seeds | +7.0 ± 38.1 | +22.0 ± 25.4 | +0.0 |",
        "| tiles | `ours`, 1 seeds | -10.0 |  | +0.0 |",
        "| mean | | -1.5 (2 packs) | +22.0 (1 packs) | |",
    ]
