"""The study of cheaper hardness, on a run of four steps on drawn scenes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cheaper_hardness
import common
import pytest
import torch

from semiseg import api, data
from semiseg.augment.views import Views
from semiseg.data.loader import train_loader
from semiseg.engine import checkpoint
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.recipe.load import load_recipe, validate
from semiseg.runs import Run


@pytest.fixture(scope="module")
def followed(recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its checkpoints after 2 and 4 steps, in both of which some images are easier than others."""
    values = recipe(engine={"keep_checkpoints": 2}, method={"threshold": 0.25}, optim={"lr": 0.06})
    return api.train(validate(values, "recipe"), tmp_path_factory.mktemp("runs") / "exact")


def words(out: Path, *more: str) -> list[str]:
    return ["--tiny", "--out", str(out), "--threads", str(torch.get_num_threads()), *more]


def study(out: Path, runs: list[Path], root: Path | None = None) -> common.Results:
    results = common.Results(common.arguments("Title.", words(out)))
    cheaper_hardness.measure(results.run, results, runs, root)
    return results


def test_the_rank_correlation_is_the_one_by_hand():
    first, second = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.tensor([2.0, 1.0, 4.0, 3.0, 50.0])
    assert cheaper_hardness.spearman(first, second) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert cheaper_hardness.spearman(first, -first) == pytest.approx(-1)
    assert math.isnan(cheaper_hardness.spearman(first, torch.zeros(5)))


def test_equal_values_share_the_mean_of_their_ranks():
    values = torch.tensor([3.0, 1.0, 3.0, 0.0, 3.0])
    assert cheaper_hardness.ranks(values).tolist() == [3, 1, 3, 0, 3]
    # ranks 0.5 0.5 2 3 and 0 1 2 3: covariance 4.5, variances 4.5 and 5
    found = cheaper_hardness.spearman(torch.tensor([1.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_pairs_are_those_of_each_batch():
    easy = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4])  # 0-3 1-2 in each batch
    other = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.1, 0.4, 0.2, 0.3])  # the same; then 0-1 2-3
    assert cheaper_hardness.pairs_alike(easy, other, 4) == 0.5


@pytest.mark.parametrize("batch", [4, 5])
def test_pairs_by_chance(batch: int):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 2000 * batch, generator=generator).unbind()
    alike = cheaper_hardness.pairs_alike(first, second, batch)
    assert alike == pytest.approx(cheaper_hardness.by_chance(batch), abs=0.02)


def test_full_size_against_itself_is_the_same(followed: Run):
    recipe = load_recipe(followed.config)
    dataset = data.load(recipe.data)
    views = list(train_loader(dataset, recipe.data, Views(), batch_size=2, seed=1, start=0, num_steps=4))
    observer = cheaper_hardness.Observer(recipe, dataset.classes, Runtime("cpu"))
    last = checkpoint.read(checkpoint.path_of(followed.checkpoints, "step", 4))
    easy, again = observer.look(last, views), observer.look(last, views)
    exact = cheaper_hardness.EXACT
    assert len(easy[exact].unique()) > 4
    found = cheaper_hardness.agreement(easy[exact], again[exact], 2)
    assert list(found.values()) == [pytest.approx(1), 0, 1]
    for way in ("scale 0.5", "scale 0.25", "teacher alone"):
        assert not torch.equal(easy[exact], easy[way])
    assert {way: len(seconds) for way, seconds in observer.seconds.items()} == dict.fromkeys(cheaper_hardness.WAYS, 8)


def test_every_checkpoint_is_looked_at_and_every_run_has_its_score(followed: Run, trained: Path, tmp_path: Path):
    results = study(tmp_path, [followed.path, trained])
    record = results.record("cheaper_hardness", "title")
    assert common.Record.model_validate_json(common.write(record, results.run).read_text()) == record
    courses = {each.name: {point.size: point.median for point in each.points} for each in record.growth}
    assert list(courses["rank correlation, scale 0.5"]) == [2, 4]
    assert list(courses["rank correlation, checkpoint before"]) == [4]
    easy = courses["mean easiness, student at full size"]
    assert courses["mean absolute difference, checkpoint before"][4] > easy[4] - easy[2] - 1e-6 > 0.1
    assert results.figures["exact, mIoU, last"].median == followed.last()["miou"]
    assert results.figures["observe, scale 0.25"].repeats == 8  # two checkpoints, four batches
    assert record.settings["exact"] == "hardness_scale 1, hardness_every 1, 4 of 4 steps, seed 0"


def test_data_may_have_moved(followed: Run, tmp_path: Path):
    with pytest.raises(UserError, match="gone"):
        study(tmp_path, [followed.path], tmp_path / "gone")


def test_runs_that_cannot_be_studied_are_refused_in_one_line(
    followed: Run, recipe: Callable[..., dict[str, Any]], tmp_path: Path
):
    supervised = api.train(validate(recipe("supervised"), "recipe"), tmp_path / "supervised").path
    for runs, message in (
        ([tmp_path], "not a run directory"),
        ([followed.path, followed.path], "same name"),
        ([supervised], "only imas"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            study(tmp_path, runs)
        assert "\n" not in str(caught.value)


def test_words_of_other_benchmarks_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--repeats"):
        cheaper_hardness.arguments(words(tmp_path, "--run", "a", "--repeats", "3"))
    _, runs, root = cheaper_hardness.arguments(words(tmp_path, "--run", "a", "--run", "b", "--data-root", "c"))
    assert (runs, root) == ([Path("a"), Path("b")], Path("c"))
