import os
import shutil
from pathlib import Path

import pytest

from semiseg.errors import UserError
from semiseg.report.reading import read


def test_seeds_of_one_recipe_are_one_group(made, tmp_path):
    for name, method, seed in (
        ("imas/seed-0", "imas", 0),
        ("imas/seed-1", "imas", 1),
        ("supervised/seed-0", "supervised", 0),
    ):
        made(name, method=method, seed=seed)
    groups = read([tmp_path / "runs"])
    assert {group.name: [each.seed for each in group.members] for group in groups} == {
        "supervised": [0],
        "imas": [0, 1],
    }


def test_other_recipes_are_other_groups_with_names_of_their_own(made):
    paths = [made("a/seed-0").path, made("b/seed-0", threshold=0.5).path, made("c/imas").path, made("d/imas").path]
    # c and d are the same recipe with the same seed as a: they are not its seeds
    assert [group.name for group in read(paths)] == ["a", "c/imas", "d/imas", "b"]


def test_a_run_is_read_once(made, monkeypatch):
    run = made("imas")
    monkeypatch.chdir(run.path.parent)
    (group,) = read([Path("imas"), run.path])
    assert len(group.members) == 1


def test_notes_say_what_is_missing(made):
    assert read([made("complete").path])[0].first.notes == ("no checkpoint",)
    early, blank = made("early", done=20, pictures=False), made("blank", done=0)
    (early.checkpoints / "step-00000020").mkdir(parents=True)
    assert read([early.path])[0].first.notes == (
        "not complete: 20 of 40 steps are recorded",
        "no pictures: an earlier semiseg made it, or the folder pictures was removed",
    )
    assert "no evaluation yet" in read([blank.path])[0].first.notes


def test_a_line_that_is_being_written_does_not_count(made):
    run = made("imas")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert read([run.path])[0].first.done == 40


def test_pictures_are_of_a_member_that_has_some(made, tmp_path):
    made("imas/seed-0", seed=0, pictures=False)
    made("imas/seed-1", seed=1)
    assert read([tmp_path / "runs"])[0].first.seed == 1


def test_bad_folders_are_one_line(made, tmp_path):
    with pytest.raises(UserError, match=r"empty: has no run"):
        read([tmp_path / "empty"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match=r"foreign"):
        read([foreign])
    (foreign / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"foreign"):
        read([foreign])
    with pytest.raises(UserError, match=r"runs/other: has other classes \(cat, dog .*write a report of each"):
        read([made("imas").path, made("other", classes=["cat", "dog"]).path])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.jsonl", "no json\n", r"metrics\.jsonl: is damaged"),
        ("metrics.jsonl", '{"kind": "train"}\n', r"damaged \(KeyError: 'step'\)"),
        ("metrics.jsonl", '{"kind": "val", "step": 5, "miou": 0.1, "iou": [0.5]}\n', "not one IoU for each of 2"),
        ("config.yaml", "engine: {}\nmethod: {}\n", r"damaged \(KeyError: 'steps'\)"),
        ("config.yaml", "engine: 3\n", "damaged"),
        ("environment.json", "{}", r"names no classes"),
        ("pictures/index.json", "{", r"index\.json: is damaged"),
    ],
)  # fmt: skip
def test_damaged_files_are_one_line(made, file, content, says):
    run = made("imas")
    (run.path / file).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read([run.path])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_line(made):
    run = made("imas")
    (run.path / "metrics.jsonl").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        read([run.path])


def test_a_run_of_an_earlier_semiseg_is_read(made):
    run = made("old")
    shutil.rmtree(run.pictures)
    found = read([run.path])[0].first
    assert found.pictures is None
    assert len(found.val) == 4
