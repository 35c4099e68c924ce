"""Rankings of the images of a run."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from semiseg import api
from semiseg.errors import UserError
from semiseg.rank import Request, rank
from semiseg.recipe.load import validate


@pytest.fixture
def photos(scenes, tmp_path) -> Path:
    """The eight unlabeled images of the run, copied."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate((scenes / "splits/unlabeled.txt").read_text().split()):
        file = next((scenes / "images").rglob(f"{name}.*"))
        shutil.copy(file, folder / ("deep" if number % 2 else ".") / file.name)
    return folder


def rows(out: Path) -> list[list[str]]:
    with (out / "ranking.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_ranking_is_a_folder(trained, photos, tmp_path):
    out = tmp_path / "ranked"
    found = rank(Request(trained, [photos], out, count=3))
    header, *table = rows(out)
    assert header == ["file", "rank", "hardness", "why"]
    assert [row[1] for row in table] == ["1", "2", "3"]
    assert [row[0] for row in table] == [str(row.item.file) for row in found.rows]
    assert all(Path(row[0]).is_file() for row in table)
    assert all(re.match(r"two networks of the run agree on \d+% of the pixels", row[3]) for row in table)
    names = {row.item.below.as_posix() for row in found.rows}
    written = [path for path in (out / "annotations").rglob("*.json") if ".parts" not in path.parts]
    assert {path.relative_to(out / "annotations").with_suffix("").as_posix() for path in written} == names | {"coco"}
    assert all((out / "masks" / f"{name}.png").is_file() for name in names)
    assert len(json.loads((out / "annotations/coco.json").read_text())["images"]) == 3
    page = (out / "ranking.html").read_text()
    assert page.count("<figure>") == 3
    assert page.count("data:image/jpeg;base64,") == 6
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # no other file
    for row in found.rows:
        content = json.loads((out / "annotations" / f"{row.item.below}.json").read_text())
        beside = out / "annotations" / f"{row.item.below}.json"
        assert (beside.parent / content["imagePath"]).samefile(row.item.file)
    again = rank(Request(trained, [photos], tmp_path / "again", count=3))
    assert [row.item for row in again.rows] == [row.item for row in found.rows]


def test_the_hardest_image_is_first(trained, photos, tmp_path):
    """The values stand in the table as the networks of the checkpoint give them."""
    found = rank(Request(trained, [photos], tmp_path / "a", by="entropy", count=8))
    assert {row.item.file for row in found.rows} == {*photos.rglob("*.png"), *photos.rglob("*.jpg")}
    factor = [1.0, 2.0]  # a weak class at most doubles a value
    values = [row.value for row in found.rows]
    assert values[0] * factor[1] >= max(values)
    margins = rank(Request(trained, [photos], tmp_path / "b", by="margin", count=8))
    assert all(0 <= row.value <= 1 for row in margins.rows)
    assert "differ by" in margins.rows[0].why
    assert rows(tmp_path / "b")[0][2] == "margin"


def test_random_depends_on_the_seed_alone(trained, photos, tmp_path):
    orders = [
        [row.item.name for row in rank(Request(trained, [photos], tmp_path / str(k), 8, "random", seed)).rows]
        for k, seed in enumerate((0, 0, None, 1))
    ]
    assert orders[0] == orders[1] == orders[2] != orders[3]
    assert sorted(orders[0]) == sorted(orders[3])


def test_near_duplicates_are_left_out(trained, photos, scenes, tmp_path):
    first = sorted(photos.glob("*.*"))[0]
    for number in range(2):
        with Image.open(first) as image:
            pixels = image.convert("RGB")
            pixels.putpixel((number, 0), (1, 2, 3))
            pixels.save(photos / f"copy{number}.png")
    labeled = (scenes / "splits/labeled.txt").read_text().split()[0]
    shutil.copy(next((scenes / "images").rglob(f"{labeled}.*")), photos / "known.png")
    found = rank(Request(trained, [photos], tmp_path / "ranked", count=20))
    names = [row.item.name for row in found.rows]
    same = {first.name, "copy0.png", "copy1.png"}
    assert len(same.intersection(names)) == 1
    assert "known.png" not in names
    left = next(row.why for row in found.rows if row.item.name in same)
    assert re.search("near-duplicates? left out", left)
    drawn = rank(Request(trained, [photos], tmp_path / "random", count=20, by="random"))
    assert same <= {row.item.name for row in drawn.rows}  # nothing but chance


def test_images_for_tests_are_not_ranked(trained, scenes, tmp_path):
    """No training uses them, so labels of them would be for nothing."""
    root = shutil.copytree(scenes, tmp_path / "scenes")
    (root / "images/test").mkdir()
    name = (root / "splits/unlabeled.txt").read_text().split()[0]
    file = next((root / "images").rglob(f"{name}.*"))
    file = file.rename(root / "images/test" / file.name)
    lists = [f"data.{key}=null" for key in ("labeled", "unlabeled", "val")]
    found = rank(
        Request(trained, [root / "images"], tmp_path / "a", 20, "random", overrides=(f"data.root={root}", *lists))
    )
    assert file not in [row.item.file for row in found.rows]
    with pytest.raises(UserError, match="all 1 images are for tests; name images"):
        rank(Request(trained, [file], tmp_path / "b", overrides=(f"data.root={root}", *lists)))


def test_labeled_images_are_not_ranked(trained, scenes, tmp_path):
    found = rank(Request(trained, [scenes / "images"], tmp_path / "ranked", count=20, by="random"))
    assert {row.item.below.as_posix() for row in found.rows} == {*(scenes / "splits/unlabeled.txt").read_text().split()}
    labeled = [
        next((scenes / "images").rglob(f"{name}.*"))
        for kind in ("labeled", "val")
        for name in (scenes / f"splits/{kind}.txt").read_text().split()
    ]
    with pytest.raises(UserError, match="all 10 images are labeled already; name images"):
        rank(Request(trained, labeled, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_one_network_has_no_hardness(recipe, photos, tmp_path, capsys):
    from rich.console import Console

    run = api.train(validate(recipe("supervised"), "recipe"), tmp_path / "run").path
    with pytest.raises(UserError, match="--by hardness: needs two networks"):
        rank(Request(run, [photos], tmp_path / "ranked", by="hardness"))
    found = rank(Request(run, [photos], tmp_path / "ranked", count=2), Console(width=400))
    assert found.by == "entropy"
    assert "has one network, so hardness cannot be computed; entropy is used" in capsys.readouterr().out
    assert rows(tmp_path / "ranked")[0][2] == "entropy"


def test_an_unfinished_run_is_used_as_it_is(recipe, photos, tmp_path, interrupted, capsys):
    from rich.console import Console

    plain = validate(recipe("cps", engine={"steps": 6}), "recipe")
    with interrupted("semiseg.engine.step.make_batch", 5):
        api.train(plain, tmp_path / "run")
    found = rank(Request(tmp_path / "run", [photos], tmp_path / "ranked", count=2), Console(width=400))
    assert found.by == "hardness"  # of two networks of equal rank
    says = capsys.readouterr().out
    assert re.search(r"the run is not complete \(\d of 6 steps\); its newest checkpoint is used", says)


def test_a_ranking_is_replaced_only_on_demand(trained, photos, tmp_path, contents):
    out = tmp_path / "ranked"
    request = Request(trained, [photos], out, count=2, by="random")
    rank(request)
    before = contents(out)
    with pytest.raises(UserError, match="holds a ranking already"):
        rank(request)
    assert contents(out) == before
    again = Request(trained, [photos], out, 2, "random", 1, overwrite=True)
    found = rank(again)
    assert len([path for path in (out / "annotations").rglob("*.json") if ".parts" not in path.parts]) == 3
    corrected = out / "annotations" / f"{found.rows[0].item.below}.json"
    corrected.write_text(corrected.read_text().replace('"version":"5.5.0"', '"version":"5.6.0"'))
    before = contents(out)
    with pytest.raises(UserError, match="was changed or added after the ranking was written"):
        rank(again)
    assert contents(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already and is not empty"):
        rank(Request(trained, [photos], tmp_path / "other", overwrite=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run": Path("nowhere")}, "is not a run directory"),
        ({"images": [Path("nowhere")]}, "there is no such image"),
        ({"count": 0}, "--count 0"),
        ({"by": "size"}, "choose of hardness, entropy, margin, random"),
        ({"seed": 3}, "with --by random only"),
        ({"overrides": ["engine.steps=3"]}, "has no effect on a ranking"),
    ],
)
def test_wrong_requests_write_nothing(trained, photos, tmp_path, contents, changes, says):
    before = contents(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        rank(Request(**{"run": trained, "images": [photos], "out": tmp_path / "ranked"} | changes))
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_run_without_a_checkpoint(trained, photos, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet; train it first"):
        rank(Request(tmp_path / "run", [photos], tmp_path / "ranked"))


def test_files_of_one_name_need_their_folder(trained, photos, tmp_path):
    file = sorted(photos.glob("*.*"))[0]
    shutil.copy(file, photos / "deep" / file.name)
    with pytest.raises(UserError, match="would have the same outputs"):
        rank(Request(trained, [file, photos / "deep" / file.name], tmp_path / "ranked"))
