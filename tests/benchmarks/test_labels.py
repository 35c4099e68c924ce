"""The study of chosen labels: which images each rule adds, and the rows that it makes. Training is only pretended."""

from pathlib import Path

import comparisons
import labels
import pytest
import yaml

from semiseg.report.comparison import Comparison, Result, Row


@pytest.fixture
def study(recipe, tmp_path, monkeypatch) -> labels.Study:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    made = labels.Study(tmp_path / "recipe.yaml", [], "base=imas", "supervised", 2, tmp_path / "out")
    made.trained = []

    def compare(method, seed, out, settings):
        made.trained.append((method, seed, out.name, settings))
        result = Result(last=0.5 + seed / 100, best=0.6, iou=(0.5,), step_s=0.1, memory_mb=1.0, parameters=3)
        row = Row(method, {seed: result}, {})
        protocol = {"labeled images": 6 if out.name == "none" else 8, "partition": f"{out.name} {seed}"}
        return Comparison((row,), ("sky",), protocol, {"commit": ("a",)})

    def rank(request, console):
        made.requests.append(request)
        request.out.mkdir(parents=True)
        chosen = request.images[3:1:-1]
        rows = [f"{path},{number},0.5,hard" for number, path in enumerate(chosen, 1)]
        (request.out / labels.TABLE).write_text("\n".join(["file,rank,hardness,why", *rows, ""]))

    made.requests = []
    monkeypatch.setattr(made, "compare", compare)
    monkeypatch.setattr(labels, "rank", rank)
    return made


def test_a_rule_moves_its_images_from_the_unlabeled_to_the_labeled(study):
    before = [sample.name for sample in study.dataset.unlabeled]
    study.train("hardness", 1)
    (base, then), (request,) = study.trained, study.requests
    assert base == ("base=imas", 1, "base", [])
    assert then[:3] == ("supervised", 1, "hardness")
    assert request.run == study.out / "base/base/seed-1"
    assert (request.count, request.by, request.seed) == (2, "hardness", None)
    assert list(request.images) == [sample.image for sample in study.dataset.unlabeled]
    lists = {setting.partition("=")[0]: Path(setting.partition("=")[2]).read_text().split() for setting in then[3]}
    assert lists["data.labeled"] == [*(sample.name for sample in study.dataset.labeled), before[3], before[2]]
    assert lists["data.unlabeled"] == [*before[:2], *before[4:]]


def test_a_ranking_that_is_there_is_not_made_again(study):
    study.train("random", 2)
    study.train("random", 2)
    (request,) = study.requests
    assert (request.by, request.seed) == ("random", 2)


def test_without_labels_nothing_is_ranked(study):
    study.train("none", 0)
    assert [each[2] for each in study.trained] == ["none"]
    assert study.requests == []


def test_one_comparison_with_a_row_for_each_rule(study):
    results = [study.train(rule, seed) for seed in (0, 1) for rule in ("none", "random", "margin")]
    found = comparisons.joined(results, "random")
    assert [row.name for row in found.rows] == ["random", "none", "margin"]
    assert [sorted(row.results) for row in found.rows] == [[0, 1]] * 3
    assert found.rows[1].results[1].last == 0.51
    assert found.protocol == {"labeled images": 8, "partition": "of its own for each row and seed"}
    assert found.made == {"commit": ("a",)}
