"""The studies: each row is a possible recipe, and only what is missing is trained. Training is only pretended."""

import json
from pathlib import Path

import comparisons
import pytest
import studies
import yaml

from semiseg.compare import plan
from semiseg.recipe.load import changes_of_result, load_recipe
from semiseg.report.comparison import Comparison, Result, Row
from semiseg.report.comparison_files import as_values

RESULT = Result(last=0.5, best=0.6, iou=(0.5,), step_s=0.1, memory_mb=1.0, parameters=3)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_each_row_is_a_possible_recipe_of_its_own(name):
    study = studies.STUDIES[name]
    recipe = load_recipe(Path(f"small/{study.pack}"), study.settings)
    planned = [plan(recipe, entry, 0) for entry in study.entries]
    if study.images:  # only their images differ
        assert [entry.name for entry in study.entries] == list(study.images)
        return
    for number, one in enumerate(planned):
        assert all(changes_of_result(one, other) for other in planned[:number])


def test_the_adaptations_are_switched_on_one_at_a_time():
    entries = studies.STUDIES["11-adaptations-wbc"].entries
    on = [{change for change in entry.changes if change.endswith("=adaptive")} for entry in entries[:5]]
    loss, intensity, pairs = (f"method.{key}=adaptive" for key in ("loss", "intensity", "pairs"))
    assert on == [set(), {loss}, {intensity}, {pairs}, {loss, intensity, pairs}]


def made(*names: str, seeds: tuple[int, ...] = (0,)) -> Comparison:
    rows = tuple(Row(name, dict.fromkeys(seeds, RESULT), {}) for name in names)
    made = {"commit": ("a",), "precision": ("fp32",), "machine": ("a CPU",)}
    protocol = {
        "labeled images": 3, "unlabeled images": 4, "validation images": 5, "validation list": "val.txt",
        "partition": "ab", "steps": 10, "batch size": 2,
    }  # fmt: skip
    return Comparison(rows, ("sky",), protocol, made)


@pytest.fixture
def small(tmp_path, monkeypatch) -> list[tuple]:
    """A study of two rows and three seeds, and a list of what is trained."""
    study = studies.Study("T", "Why.", "wbc", ("supervised", "mine=imas:threshold=0.5"), ("engine.steps=10",))
    monkeypatch.setattr(studies, "STUDIES", {"small": study})
    monkeypatch.setattr(comparisons, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(comparisons, "PAGE", tmp_path / "results.md")
    trained = []

    def compare(recipe, entries, seeds, out, settings, *others):
        names = [entry.name for entry in entries]
        trained.append((recipe, names, list(seeds), settings))
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.json").write_text(json.dumps(as_values(made(*names, seeds=tuple(seeds)))))

    monkeypatch.setattr(studies.comparing, "compare", compare)
    return trained


def test_only_what_is_missing_is_trained(small, tmp_path, monkeypatch, capsys):
    comparisons.store("small", made("supervised"), "T", "Why.")
    monkeypatch.setattr("sys.argv", ["studies.py"])
    studies.main()
    assert capsys.readouterr().out == "small: 5 of 6 runs are missing. T\n"
    studies.train("small", Path("/packs"), tmp_path / "runs")
    settings = [f"data.root={Path('/packs/wbc')}", "engine.steps=10"]
    assert small == [
        ("small/wbc", ["mine"], [0], settings),
        ("small/wbc", ["supervised", "mine"], [1, 2], settings),
    ]
    stored = comparisons.stored("small")
    assert {row.name: [*row.results] for row in stored.rows} == {"supervised": [0, 1, 2], "mine": [0, 1, 2]}
    assert "| `mine` | 0, 1, 2 |" in comparisons.PAGE.read_text()
    studies.train("small", Path("/packs"), tmp_path / "runs")
    assert len(small) == 2


@pytest.fixture
def of_images(small, recipe, tmp_path, monkeypatch) -> list[tuple]:
    """A study whose rows have their own images, of six labeled and eight unlabeled ones; a list of what is trained."""
    images = {"few": studies.Images(), "half": studies.Images(unlabeled=0.5), "all": studies.Images(studies.ALL)}
    study = studies.Study("T", "Why.", "wbc", tuple(f"{row}=imas" for row in images), images=images)
    monkeypatch.setattr(studies, "STUDIES", {"images": study})
    pretended = studies.comparing.compare

    def compare(*args):
        pretended(*args)
        return comparisons.read(args[3] / "comparison.json")

    monkeypatch.setattr(studies.comparing, "compare", compare)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    recipes = {Path("small/wbc"): tmp_path / "recipe.yaml"}
    monkeypatch.setattr(studies, "load_recipe", lambda path, settings: load_recipe(recipes[path], ()))
    return small


def test_rows_with_their_own_images_stand_in_one_table(of_images, tmp_path):
    studies.train("images", Path("/packs"), tmp_path / "runs")
    rows = ["few", "half", "all"]
    assert [(names, seeds) for _, names, seeds, _ in of_images] == [([row], [0, 1, 2]) for row in rows]
    numbers = []
    for _, (row,), _, settings in of_images:
        lists = dict(setting.removeprefix("data.").split("=") for setting in settings[1:])
        assert lists["labeled"] == str(tmp_path / "runs/images" / row / "labeled.txt")
        read = {kind: [] if path == "null" else Path(path).read_text().split() for kind, path in lists.items()}
        assert not {*read["labeled"]} & {*read["unlabeled"]}
        numbers.append((len(read["labeled"]), len(read["unlabeled"])))
    assert numbers == [(6, 8), (6, 4), (14, 0)]
    stored = comparisons.stored("images")
    assert {row.name: [*row.results] for row in stored.rows} == {row: [0, 1, 2] for row in rows}
    assert stored.protocol["labeled images"] == "as named"


def test_rows_that_are_complete_are_kept_when_a_later_one_fails(of_images, tmp_path, monkeypatch):
    pretended = studies.comparing.compare

    def compare(*args):
        if args[1][0].name == "half":
            raise RuntimeError("one training failed")
        return pretended(*args)

    monkeypatch.setattr(studies.comparing, "compare", compare)
    with pytest.raises(RuntimeError):
        studies.train("images", Path("/packs"), tmp_path / "runs")
    assert [row.name for row in comparisons.stored("images").rows] == ["few"]


def test_a_number_of_labels_is_that_of_a_list(tmp_path, monkeypatch):
    asked = []

    def load(path, settings):
        asked.extend(settings)
        raise RuntimeError("that is enough")

    monkeypatch.setattr(studies, "load_recipe", load)
    with pytest.raises(RuntimeError):
        studies.image_lists(studies.STUDIES["14-labels-tile"], studies.Images(48), tmp_path, ["a=b"])
    assert asked == ["a=b", "data.labeled=splits/labeled_48.txt", "data.unlabeled=splits/unlabeled_48.txt"]


def test_when_the_time_is_over_nothing_more_is_trained(small, tmp_path):
    studies.train("small", Path("/packs"), tmp_path / "runs", until=0.0)
    assert small == []


def test_what_was_complete_before_a_failure_is_kept(small, tmp_path, monkeypatch):
    pretended = studies.comparing.compare

    def fails(*args):
        pretended(*args)
        raise RuntimeError("one training failed")

    monkeypatch.setattr(studies.comparing, "compare", fails)
    with pytest.raises(RuntimeError):
        studies.train("small", Path("/packs"), tmp_path / "runs")
    assert [row.name for row in comparisons.stored("small").rows] == ["supervised", "mine"]
