import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageOps
from rich.console import Console

import semiseg
from semiseg import api, data
from semiseg.data.dataset import MaskCoding
from semiseg.data.masks import read_mask
from semiseg.data.read import read_image
from semiseg.engine.setup import build_method
from semiseg.metrics import add_confusion, scores
from semiseg.recipe.load import load_recipe, validate
from semiseg.recipe.recipe import Recipe
from semiseg.runs import Run
from semiseg.scenes import CLASSES
from semiseg.types import ClassTable


def test_the_five_lines(tmp_path, monkeypatch, recipe, scenes):
    """Those of the package's own documentation."""
    lines = [line for line in semiseg.__doc__.splitlines()[1:] if line]
    assert lines[0] == "import semiseg"
    assert len(lines) == 5
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe(engine={"steps": 1})))
    shutil.copytree(scenes / "images" / "val", "photos")
    names: dict = {}
    exec("\n".join(lines), names)
    assert names["run"] == Run(Path("runs/first"))
    assert names["scores"].miou == names["run"].last()["miou"]
    assert len(list(Path("masks").iterdir())) == 9  # two for each image, and the legend
    label = names["predictor"].predict(read_image(Path("photos/0000.png")))
    assert label.shape == (32, 32)
    assert label.dtype == torch.uint8


def test_public_names():
    assert set(semiseg.__all__) == {"Run", "UserError", "evaluate", "export", "load", "predict", "train"}
    assert all(getattr(semiseg, name).__doc__ for name in semiseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        semiseg.trane  # noqa: B018


def test_import_does_not_wait_for_torch():
    code = "import sys, semiseg; semiseg.Run, semiseg.UserError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_from_values(tmp_path, recipe):
    validated = validate(recipe(), "recipe")
    console = Console(file=io.StringIO(), width=200)
    run = api.train(validated, str(tmp_path / "run"), ["engine.steps=1", "engine.seed=5"], console)
    loaded = load_recipe(run.config)
    assert (loaded.engine.steps, loaded.engine.seed) == (1, 5)  # settings on top are no silent leftovers
    assert "6 labeled, 8 unlabeled, 4 validation images" in console.file.getvalue()


def test_a_warm_up_of_the_whole_run_is_noted(tmp_path, recipe):
    """E.g. because only engine.steps was lowered: the learning rate stays far below optim.lr."""
    changes = ["optim.warmup_steps=3", "method.copy_steps=1"]
    console = Console(file=io.StringIO(), width=200)
    for steps in (1, 4):
        api.train(validate(recipe(), "recipe"), tmp_path / str(steps), [f"engine.steps={steps}", *changes], console)
    notes = [line for line in console.file.getvalue().splitlines() if "lasts the whole run" in line]
    assert [note.partition(" lasts")[0] for note in notes] == [
        "note: optim.warmup_steps 3",
        "note: method.copy_steps 1",
    ]


def test_train_by_name(tmp_path, monkeypatch, scenes):
    """Of a recipe that comes with semiseg. Its data.root is `photos`, below the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes, "photos")
    settings = ["engine.steps=1", "engine.batch_size=2", "engine.precision=fp32", "data.crop=32", "data.workers=0"]
    model = "model={architecture: unet, encoder: tu-test_efficientnet, weights: null}"
    run = semiseg.train("folder", out="run", overrides=[*settings, model])
    loaded = load_recipe(run.config)
    assert (loaded.data.root, loaded.method.threshold) == (Path("photos"), 0.9)
    assert run.last()["step"] == 1
    with pytest.raises(semiseg.UserError, match=r"^foldr: there is no such recipe \(did you mean folder\?\)"):
        semiseg.train("foldr", out="other")


def test_train_is_silent_unless_told(tmp_path, recipe, capsys):
    api.train(validate(recipe(engine={"steps": 1}), "recipe"), tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_evaluate(trained):
    counted = []
    scores = api.evaluate(trained, device="cpu", on_image=lambda *count: counted.append(count))
    last = Run(trained).last()
    assert (scores.miou, scores.accuracy, list(scores.iou)) == (last["miou"], last["accuracy"], last["iou"])
    assert counted == [(n, 4) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluate_computes_in_the_precision_of_the_run(tmp_path, recipe, monkeypatch, precision):
    values = recipe("supervised", engine={"steps": 1, "precision": precision})
    run = api.train(validate(values, "recipe"), tmp_path / "run")
    seen = []
    evaluate = api.evaluate_network
    monkeypatch.setattr(api, "evaluate_network", lambda *args: seen.append(args[4].precision) or evaluate(*args))
    assert api.evaluate(run.path).miou == run.last()["miou"]
    api.evaluate(run.path, overrides=["engine.precision=fp32"])
    assert seen == [precision, "fp32"]


@pytest.mark.parametrize("override", ["model.encoder=resnet18", "engine.steps=3", "engine.evaluated=1", "optim.lr=1"])
def test_evaluate_refuses_what_has_no_effect(trained, override):
    with pytest.raises(semiseg.UserError, match=r"has no effect|unknown key"):
        api.evaluate(trained, overrides=[override])


def test_load(trained):
    best, last = api.load(trained), api.load(str(trained), "last", "cpu")
    assert best.step == Run(trained).best()["step"]
    assert last.step == 4
    assert best.classes.names == CLASSES
    assert not best.networks[0].training
    assert not any(parameter.requires_grad for parameter in last.networks[0].parameters())  # the teacher


def test_a_run_can_be_used_where_its_weights_file_is_gone(tmp_path, recipe):
    values = recipe(engine={"steps": 1})
    method = build_method(validate(values, "recipe"), ClassTable.of(CLASSES))
    torch.save(method.student.net.encoder.state_dict(), tmp_path / "encoder.pth")
    values["model"]["weights"] = str(tmp_path / "encoder.pth")
    run = api.train(validate(values, "recipe"), tmp_path / "run")
    (tmp_path / "encoder.pth").unlink()
    assert api.load(run.path).step == 1
    assert api.evaluate(run.path).miou == run.last()["miou"]


def test_a_run_can_be_moved(tmp_path, trained):
    moved = shutil.copytree(trained, tmp_path / "elsewhere")
    assert api.evaluate(moved).miou == Run(trained).last()["miou"]


def test_a_checkpoint_is_enough_by_itself(tmp_path, trained, scenes):
    """A checkpoint from somebody else: modules that its recipe names are not imported."""
    (best,) = (trained / "checkpoints").glob("best-*")
    alone = shutil.copytree(best, tmp_path / "theirs")
    state = json.loads((alone / "state.json").read_text())
    state["recipe"]["method"]["name"] = "antigravity.evil"
    state["recipe"]["data"] |= {"layout": "antigravity.evil", "root": "/nowhere"}
    (alone / "state.json").write_text(json.dumps(state))
    image = read_image(scenes / "images/val/0000.png")
    assert torch.equal(api.load(alone).predict(image), api.load(trained).predict(image))
    assert not any(name.startswith("antigravity") for name in sys.modules)
    assert (state["format"], state["recipe"]["model"]["encoder"]) == (4, "tu-test_efficientnet")
    assert state["classes"]["names"] == list(CLASSES)


@pytest.mark.parametrize("val_long_side", ["same", None, 48])
def test_a_prediction_is_resized_as_an_evaluation(tmp_path, recipe, scenes, val_long_side):
    """The masks that predict writes have the mIoU that training logged."""
    sizes = {"long_side": 16, "val_long_side": val_long_side}
    run = api.train(validate(recipe(engine={"steps": 1}, data=sizes), "recipe"), tmp_path / "run")
    predictor = api.load(run.path)
    assert predictor.long_side == (16 if val_long_side == "same" else val_long_side)
    matrix = torch.zeros(6, 6, dtype=torch.int64)
    for name in (f"{number:04}.png" for number in range(4)):
        mask = read_mask(scenes / "masks/val" / name, MaskCoding(6)).long()
        matrix = add_confusion(matrix, predictor.predict(read_image(scenes / "images/val" / name)).long(), mask)
    assert scores(matrix).miou == run.last()["miou"] == api.evaluate(run.path).miou


@pytest.mark.parametrize(
    ("sizes", "long_side", "white"),
    [
        ({"long_side": 32}, 32, None),  # a checkpoint of a version without val_long_side and white
        ({"long_side": None, "white": 4095}, None, 4095),
        ({"long_side": 32, "val_long_side": "same"}, 32, None),
        ({"long_side": 32, "val_long_side": None}, None, None),
        ({"long_side": None, "val_long_side": 48}, 48, None),
    ],
)
def test_a_checkpoint_says_how_images_are_read_and_resized(tmp_path, trained, sizes, long_side, white):
    (best,) = (trained / "checkpoints").glob("best-*")
    alone = shutil.copytree(best, tmp_path / "theirs")
    state = json.loads((alone / "state.json").read_text())
    del state["recipe"]["data"]["val_long_side"], state["recipe"]["data"]["white"]
    state["recipe"]["data"] |= sizes
    (alone / "state.json").write_text(json.dumps(state))
    predictor = api.load(alone)
    assert (predictor.long_side, predictor.white) == (long_side, white)


@pytest.mark.parametrize("section", ["model", "data", "engine"])
@pytest.mark.parametrize(
    "value", [None, [], {"encoder": 3, "long_side": "x", "evaluate": 1}, {"val_long_side": 1}, {"white": 1}]
)
def test_a_checkpoint_without_a_usable_recipe(tmp_path, trained, section, value):
    (best,) = (trained / "checkpoints").glob("best-*")
    alone = shutil.copytree(best, tmp_path / "theirs")
    state = json.loads((alone / "state.json").read_text())
    state["recipe"][section] = value
    (alone / "state.json").write_text(json.dumps(state))
    with pytest.raises(semiseg.UserError, match="theirs: has no readable recipe"):
        api.load(alone)


# What may change between the parts of a run, and what may not.


def test_a_run_goes_on_from_another_disk_with_other_workers(tmp_path, recipe, scenes):
    values = recipe(engine={"steps": 2, "save_every": 1, "keep_checkpoints": 2})
    run = api.train(validate(values, "recipe"), tmp_path / "run")
    shutil.rmtree(run.checkpoints / "step-00000002")
    moved = shutil.copytree(scenes, tmp_path / "moved")
    values["data"] |= {"root": str(moved), "workers": 1, "on_unreadable": "skip"}
    api.train(validate(values, "recipe"), run.path)
    assert load_recipe(run.config).data.root == moved  # so that evaluate finds the images
    (changed,) = (event for event in run.events() if event["event"] == "changed")
    assert [setting.split(":")[0] for setting in changed["settings"]] == [
        "data.on_unreadable",
        "data.root",
        "data.workers",
    ]


def test_a_run_without_its_checkpoints_keeps_its_records(tmp_path, trained, recipe):
    """Somebody has removed the checkpoints to save space; only the best one, without optimizer, is kept."""
    run = Run(shutil.copytree(trained, tmp_path / "run"))
    for path in run.checkpoints.glob("step-*"):
        shutil.rmtree(path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(semiseg.UserError, match=r"run: has records of 4 steps and no checkpoint to go on from; put "):
        api.train(validate(recipe(), "recipe"), run.path)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("gone", ["images/train/0009.png", "masks/train/0000.png"])
def test_a_run_does_not_go_on_with_other_images(tmp_path, recipe, scenes, gone):
    root = shutil.copytree(scenes, tmp_path / "scenes")
    lists = {"labeled": None, "unlabeled": None, "val": None}
    values = recipe(engine={"steps": 1}, data={"root": str(root), **lists})
    run = api.train(validate(values, "recipe"), tmp_path / "run")
    before = run.config.read_bytes()
    (root / gone).unlink()
    with pytest.raises(
        semiseg.UserError, match=r"run: holds a run on other images than .*scenes has now.*; put them back .* --out"
    ):
        api.train(validate(values, "recipe"), run.path)
    assert run.config.read_bytes() == before


def test_a_run_does_not_go_on_with_other_validation_images(moved):
    """As many as before: its scores would be of two lists, and the best checkpoint chosen among them."""
    run, recipe = moved
    images, masks = (recipe.data.root / kind / "val" for kind in ("images", "masks"))
    for folder in (images, masks):
        (folder / "0003.png").rename(folder / "0009.png")
    listed = recipe.data.root / "splits/val.txt"
    listed.write_text(listed.read_text().replace("0003", "0009"))
    with pytest.raises(semiseg.UserError, match=r"run: holds a run on other validation images than .*scenes has now;"):
        api.train(recipe, run.path)
    environment = run.environment()
    del environment["labels"]["val_partition"]  # a run of an earlier semiseg
    (run.path / "environment.json").write_text(json.dumps(environment))
    (run.path / "masks.json").unlink()
    api.train(recipe, run.path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_run_does_not_go_on_with_other_masks(moved, part):
    """Somebody has corrected a mask: steps before and after it would learn, or evaluations measure, two data sets."""
    run, recipe = moved
    listed = (recipe.data.root / f"splits/{'labeled' if part == 'train' else 'val'}.txt").read_text().split()[-1]
    mask = recipe.data.root / f"masks/{listed}.png"
    again = Image.open(mask)
    again.save(mask, compress_level=1)  # another file that shows the same
    api.train(recipe, run.path)
    again.paste(2, (0, 0, 9, 9))
    again.save(mask)
    with pytest.raises(
        semiseg.UserError,
        match=rf"run: holds a run on other masks than .* has now \(1 changed, e.g. of {listed}\); put them back",
    ):
        api.train(recipe, run.path)
    mask.write_bytes(b"broken")  # this is what data.on_unreadable is for
    if part == "train":
        api.train(recipe, run.path)


def test_a_run_does_not_go_on_with_a_mask_whose_objects_have_moved(moved):
    """As many pixels of each class as before, elsewhere. A run of an earlier semiseg does not know where they were."""
    run, recipe = moved
    listed = (recipe.data.root / "splits/labeled.txt").read_text().split()[0]
    mask = recipe.data.root / f"masks/{listed}.png"
    ImageOps.mirror(Image.open(mask)).save(mask)
    with pytest.raises(semiseg.UserError, match=rf"holds a run on other masks than .*\(1 changed, e.g. of {listed}\)"):
        api.train(recipe, run.path)
    known = json.loads((run.path / "masks.json").read_text())
    earlier = {
        kind: {name: digest.partition("-")[0] for name, digest in masks.items()} for kind, masks in known.items()
    }
    (run.path / "masks.json").write_text(json.dumps(earlier))
    api.train(recipe, run.path)
    Image.open(mask).point(lambda value: 1).save(mask)
    with pytest.raises(semiseg.UserError, match="holds a run on other masks than"):
        api.train(recipe, run.path)


CHANGED = {  # what a user does to the names in classes.txt, and what the message says
    "swapped": (lambda names: [names[0], names[2], names[1], *names[3:]], "1: {1} -> {2}; 2: {2} -> {1}"),
    "added": (lambda names: [*names, "new"], "6: none -> new"),
    "removed": (lambda names: names[:-1], "5: {5} -> none"),
    "renamed": (lambda names: [names[0], "disk", *names[2:]], "1: {1} -> disk"),
    "all but one new": (lambda names: [names[0], *"abcde"], "1: {1} -> a; .*; 1 more"),
}


@pytest.fixture
def moved(tmp_path, trained, scenes, recipe) -> tuple[Run, Recipe]:
    """A copy of the complete run, and its recipe for a copy of its data."""
    root = shutil.copytree(scenes, tmp_path / "scenes")
    run = Run(shutil.copytree(trained, tmp_path / "run"))
    return run, validate(recipe(data={"root": str(root)}), "recipe")


def test_a_run_does_not_go_on_with_exchanged_colors(moved):
    """They exchange the classes of masks that store colors."""
    run, recipe = moved
    colors = [f"#{bytes(color).hex()}" for color in run.environment()["classes"]["colors"]]
    colors[1:3] = colors[2:0:-1]
    lines = [f"{name} {color}\n" for name, color in zip(CLASSES, colors, strict=True)]
    (recipe.data.root / "classes.txt").write_text("".join(lines))
    says = f"{colors[2]}: {CLASSES[1]} -> {CLASSES[2]}; {colors[1]}: {CLASSES[2]} -> {CLASSES[1]}"
    with pytest.raises(semiseg.UserError, match=rf"a run of other classes than .* has now \({says}\); put them back"):
        api.train(recipe, run.path)


@pytest.mark.parametrize("named_by", ["environment", "checkpoint"])
@pytest.mark.parametrize("kind", CHANGED)
def test_a_run_does_not_go_on_with_other_classes(moved, kind, named_by):
    run, recipe = moved
    if named_by == "checkpoint":  # a run of an earlier semiseg
        environment = run.environment()
        del environment["classes"]
        (run.path / "environment.json").write_text(json.dumps(environment))
    before = run.config.read_bytes()
    change, says = CHANGED[kind]
    (recipe.data.root / "classes.txt").write_text("".join(f"{name}\n" for name in change(list(CLASSES))))
    where = r"run: holds a run of other classes than .*scenes/classes.txt \(data.classes\) has now"
    with pytest.raises(semiseg.UserError, match=rf"{where} \({says.format(*CLASSES)}\); put them back .*--out"):
        api.train(recipe, run.path)
    assert run.config.read_bytes() == before


def test_a_run_goes_on_with_classes_of_other_colors(moved):
    run, recipe = moved
    (recipe.data.root / "classes.txt").write_text(
        "".join(f"{name} #11223{index}\n" for index, name in enumerate(CLASSES))
    )
    api.train(recipe, run.path)
    assert load_recipe(run.config).data.root == recipe.data.root


def test_predict_counts(trained, scenes, tmp_path):
    counted = []
    number = api.predict(trained, scenes / "images", tmp_path / "out", on_image=lambda *count: counted.append(count))
    assert number == 18
    assert counted == [(n, 18) for n in range(1, 19)]


def test_partitions(recipe, tmp_path, scenes):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    written = api.partitions(str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), [5, 0.5])
    assert [path.name for path in written] == [
        "val.txt", "labeled_3.txt", "unlabeled_3.txt", "labeled_5.txt", "unlabeled_5.txt"
    ]  # fmt: skip
    dataset = data.load(load_recipe(tmp_path / "recipe.yaml").data)
    train = sorted(sample.name for sample in dataset.labeled + dataset.unlabeled)
    for labeled, unlabeled in (written[1:3], written[3:]):  # no training image is lost, with a mask or without
        assert sorted(labeled.read_text().split() + unlabeled.read_text().split()) == train
    everything = api.partitions(tmp_path / "recipe.yaml", tmp_path / "all", [6], overrides=["data.labeled=null"])
    assert everything[1].read_text() == (scenes / "splits" / "labeled.txt").read_text()


def test_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert api.folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert not (tmp_path / "new").exists()
    assert api.folder(tmp_path) == tmp_path
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(semiseg.UserError, match=r"file: is a file; name a folder with --out"):
            api.folder(path)
