"""The stages of ST++."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from semiseg import api, data
from semiseg.data.pseudo import as_unlabeled, counts_of_labels, read_reliability, write_reliability
from semiseg.engine import checkpoint
from semiseg.engine.pseudo_label import reliability
from semiseg.errors import UserError
from semiseg.recipe.load import load_recipe, validate
from semiseg.runs import Run
from semiseg.self_train import first_stage, self_train

STEPS = 7
PLAIN = {"scales": (1.0,), "flip": False}


@pytest.fixture(scope="module")
def planned(recipe):
    """A recipe of st_pp that has no pseudo-labels yet."""
    values = recipe("st_pp", engine={"steps": STEPS, "save_every": 5, "eval_every": STEPS})
    del values["data"]["pseudo"]
    return validate(values, "recipe")


@pytest.fixture(scope="module")
def staged(planned, tmp_path_factory) -> Path:
    """The three stages of that recipe. Not to be changed."""
    out = tmp_path_factory.mktemp("staged")
    runs = self_train(planned, out, **PLAIN)
    assert {name: run.path for name, run in runs.items()} == {f"stage-{n}": out / f"stage-{n}" for n in (1, 2, 3)}
    return out


def label(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(digit) for digit in row] for row in rows], dtype=torch.uint8)


def test_reliability_by_hand():
    """Class 2 is in neither prediction."""
    last, other = label("000", "110"), label("001", "100")
    # class 0: 3 px in both, 5 in one or both; class 1: 1 px in both, 3 in one or both
    assert reliability([other], last, 3) == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert reliability([other, last], last, 3) == pytest.approx(((3 / 5 + 1 / 3) / 2 + 1) / 2)


def test_a_list_of_reliability_survives(tmp_path):
    write_reliability(tmp_path / "r.csv", [("b", 0.5), ("a,'x", 0.25), ("c", 0.75), ("a", 0.5)])
    assert (tmp_path / "r.csv").read_text().splitlines()[:2] == ["image,reliability", "c,0.750000"]
    assert read_reliability(tmp_path / "r.csv") == [("c", 0.75), ("a", 0.5), ("b", 0.5), ("a,'x", 0.25)]
    for text in ("image\nx,0.5\n", "", "image,reliability\na,b,c\n"):
        (tmp_path / "r.csv").write_text(text)
        with pytest.raises(UserError, match="is no list of reliability"):
            read_reliability(tmp_path / "r.csv")


def test_every_stage_is_a_run_of_its_own(staged, planned):
    first, second, third = (Run(staged / f"stage-{number}") for number in (1, 2, 3))
    assert all(run.last()["step"] == STEPS for run in (first, second, third))
    methods = [load_recipe(run.config).method_name for run in (first, second, third)]
    assert methods == ["supervised", "st_pp", "st_pp"]
    counts = [run.environment()["labels"] for run in (first, second, third)]
    assert [(each["labeled"], each.get("pseudo_labeled", 0), each["unlabeled"]) for each in counts] == [
        (6, 0, 8),
        (6, 4, 4),
        (6, 8, 0),
    ]
    assert len({each["partition"] for each in counts}) == 1  # pseudo-labels are no labels
    changed = load_recipe(third.config).to_dict()
    assert changed.pop("data") | {"pseudo": None} == planned.to_dict()["data"]
    assert {key: value for key, value in changed.items() if key != "engine"} == {
        key: value for key, value in planned.to_dict().items() if key not in ("data", "engine")
    }


def test_the_first_stage_sees_labeled_images_as_the_recipe_does(recipe):
    labels = {"labeled": {"pool": "jitter"}, "labeled_loss": {"class_weights": "inverse_sqrt"}}
    base = validate(recipe("st_pp", method=labels), "recipe")
    assert (first_stage(base).method_name, first_stage(base).of_labels) == ("supervised", base.of_labels)
    assert base.of_labels.keys() == labels.keys()


def test_checkpoints_at_thirds_of_the_first_stage_are_kept(staged):
    kept = [each.step for each in checkpoint.resumable(staged / "stage-1/checkpoints")]
    assert kept == [3, 6, 7]
    assert [each.step for each in checkpoint.resumable(staged / "stage-2/checkpoints")] == [7]


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).with_suffix("").as_posix(): np.array(Image.open(path))
        for path in folder.rglob("*.png")
    }


def test_masks_and_their_order_are_those_of_the_networks(staged, planned):
    pool = data.load(planned.data).unlabeled
    predictor = api.load(staged / "stage-1", "best")
    course = [api.load(each.path) for each in checkpoint.resumable(staged / "stage-1/checkpoints")]
    wanted, found = {}, masks(staged / "pseudo-1")
    assert found.keys() == {sample.name for sample in pool}
    for sample in pool:
        image = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).permute(2, 0, 1)
        assert (found[sample.name] == predictor.predict(image).numpy()).all()
        *earlier, last = (each.predict(image) for each in course)
        wanted[sample.name] = reliability(earlier, last, len(predictor.classes))
    listed = read_reliability(staged / "pseudo-1/reliability.csv")
    assert dict(listed) == pytest.approx(wanted, abs=1e-6)
    assert [value for _, value in listed] == sorted((value for _, value in listed), reverse=True)


def test_a_stage_does_not_go_on_with_other_pseudo_labels(staged):
    """Somebody has removed those of before, and other flips or scales have made new ones."""
    mask = min((staged / "pseudo-2").rglob("*.png"))
    before = mask.read_bytes()
    try:
        Image.open(mask).point(lambda value: 3).save(mask)
        with pytest.raises(UserError, match=r"stage-3: holds a run on other masks than .*pseudo-2 has now \(1 changed"):
            api.train(load_recipe(staged / "stage-3/config.yaml"), staged / "stage-3")
    finally:
        mask.write_bytes(before)


def test_the_second_stage_learns_the_reliable_half_and_the_third_gets_the_rest_anew(staged):
    best = [name for name, _ in read_reliability(staged / "pseudo-1/reliability.csv")][:4]
    config = load_recipe(staged / "stage-2/config.yaml").data
    assert (config.pseudo, config.pseudo_share) == (staged / "pseudo-1", 0.5)
    assert sorted(sample.name for sample in data.load(config).labeled if sample.pseudo) == sorted(best)
    first, second = masks(staged / "pseudo-1"), masks(staged / "pseudo-2")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in best)
    predictor = api.load(staged / "stage-2")
    for sample in data.load(config).unlabeled:
        image = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).permute(2, 0, 1)
        assert (second[sample.name] == predictor.predict(image).numpy()).all()
    assert not (staged / "pseudo-2/reliability.csv").exists()


def test_the_same_call_changes_nothing(staged, planned, tmp_path, contents):
    before = contents(staged)
    self_train(planned, staged, **PLAIN)
    assert contents(staged) == before
    with pytest.raises(UserError, match=r"pseudo-1/\S+png: exists already, and is of another network or other options"):
        self_train(planned, staged, scales=(1.0, 2.0), flip=False)
    with pytest.raises(UserError, match=r"stage-2: holds a run of another recipe \(data.pseudo_share: 0.5 -> 0.25\)"):
        self_train(planned, staged, **PLAIN, share=0.25)
    assert contents(staged) == before


def results(folder: Path) -> dict[str, object]:
    tensors = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("model.safetensors")}
    return tensors | {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("pseudo-*/**/*.*")}


@pytest.mark.parametrize(("place", "call"), [
    ("semiseg.engine.pseudo_label.save_image", 3),  # of the first masks
    ("semiseg.engine.step.Stepper.take", STEPS + 3),  # in the second stage
])  # fmt: skip
def test_an_interrupted_call_goes_on(staged, planned, tmp_path, interrupted, place, call):
    with interrupted(place, call):
        self_train(planned, tmp_path / "out", **PLAIN)
    self_train(planned, tmp_path / "out", **PLAIN)
    found, wanted = results(tmp_path / "out"), results(staged)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_masks_of_unlabeled_images_are_never_read(planned, scenes, staged, tmp_path):
    """They are no masks at all here."""
    root = shutil.copytree(scenes, tmp_path / "scenes")
    names = (root / "splits/unlabeled.txt").read_text().split()
    spoiled = [path for name in names for path in root.glob(f"masks/**/{Path(name).name}.png")]
    for path in spoiled:
        path.write_bytes(b"no mask")
    out = tmp_path / "out"
    changes = [f"data.root={root}"]
    self_train(planned, out, changes, **PLAIN)
    assert {**results(out)}.keys() == results(staged).keys()
    assert [name for name, content in results(staged).items() if results(out)[name] != content] == []


@pytest.mark.parametrize(("changes", "share", "says"), [
    (["method={name: supervised}"], 0.5, "supervised has no stages"),
    (["data.pseudo=x"], 0.5, "makes the pseudo-labels itself"),
    (["engine.steps=2"], 0.5, "thirds"),
    ([], 0.0, "is no share"),
    ([], 0.1, "less than one of 8"),
    ([], 1.0, "leaves no image for stage 3"),
])  # fmt: skip
def test_what_cannot_be_done_is_told_before_the_first_stage(planned, tmp_path, changes, share, says):
    with pytest.raises(UserError, match=says):
        self_train(planned, tmp_path / "out", changes, share=share)
    assert not (tmp_path / "out").exists()


# pseudo-labels of any run


def test_a_run_without_earlier_checkpoints_has_no_reliability(trained, tmp_path):
    assert api.pseudo_label(trained, tmp_path / "masks") == (8, False)
    assert len(masks(tmp_path / "masks")) == 8
    values = yaml.safe_load((trained / "config.yaml").read_text())
    values["data"] |= {"pseudo": str(tmp_path / "masks"), "pseudo_share": 0.5}
    with pytest.raises(UserError, match=r"data.pseudo_share: there is no .*reliability.csv; .*engine.keep_every"):
        data.load(validate(values, "recipe").data)


def test_a_mask_of_somebody_else_stays(trained, tmp_path):
    name = Run(trained).unlabeled()[0]
    (path := tmp_path / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already, and is of another network"):
        api.pseudo_label(trained, tmp_path)
    assert path.read_bytes() == before


def test_flips_and_scales_are_used(staged, tmp_path):
    api.pseudo_label(staged / "stage-1", tmp_path, flip=True, scales=(0.5, 1.0))
    plain, mean = masks(staged / "pseudo-1"), masks(tmp_path)
    assert any((plain[name] != mean[name]).any() for name in plain)


def test_only_settings_of_data_may_change(trained, tmp_path):
    with pytest.raises(UserError, match=r"engine\.steps=3: has no effect on pseudo-labels"):
        api.pseudo_label(trained, tmp_path, overrides=["engine.steps=3"])
    assert [*tmp_path.iterdir()] == []


# what a method gets


def test_images_with_pseudo_labels_become_the_pool(recipe, pseudo):
    dataset = data.load(validate(recipe("st_pp"), "recipe").data)
    pool = as_unlabeled(dataset)
    assert len(dataset.labeled) == 14
    counted = replace(dataset, class_counts=tuple({0: number} for number in range(14)))
    own = tuple({0: number} for number, sample in enumerate(dataset.labeled) if not sample.pseudo)
    assert counts_of_labels(counted) == as_unlabeled(counted).class_counts == own
    assert counts_of_labels(dataset) is None
    assert [sample.pseudo for sample in pool.labeled] == [False] * 6
    assert [sample.pseudo for sample in pool.unlabeled] == [True] * 8
    assert all(sample.mask.is_relative_to(pseudo) for sample in pool.unlabeled)
    with pytest.raises(UserError, match=r"data.pseudo: .*semiseg self-train"):
        as_unlabeled(pool)
