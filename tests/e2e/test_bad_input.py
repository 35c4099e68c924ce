"""Whatever a user gets wrong: one line that names the file or key and what would work, and nothing is touched."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

Break = Callable[[], object]
TRAIN = "train recipe.yaml"
OWN_LISTS = "--set data.labeled=null --set data.unlabeled=null --set data.val=null"
PREDICT = "predict run photos/images/val --out masks"
PARTITIONS = "partitions recipe.yaml --out lists"


class Bad(NamedTuple):
    """A mistake. The current directory has recipe.yaml, photos (drawn scenes) and run (a complete run of it)."""

    command: str
    says: tuple[str, ...]  # words that the line must have: the file or key, and what would work
    broken: Break = lambda: None  # what is wrong beside the command
    leaves: tuple[str, ...] = ()  # what may be there afterwards that was not: only for what training alone can find


def text(path: str, content: str | bytes) -> Break:
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(path: str, length: int = 300) -> Break:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:length])


def image(path: str, *shape: int, value: int = 0) -> Break:
    return lambda: Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def removed(path: str) -> Break:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def all_of(*breaks: Break) -> Break:
    return lambda: [broken() for broken in breaks]


def black_and_white() -> None:
    """Two classes, and masks of 0 and 255 as drawing programs save them."""
    Path("photos/classes.txt").write_text("no\nyes\n")
    for path in Path("photos/masks").rglob("*.png"):
        mask = np.asarray(Image.open(path)).copy()
        Image.fromarray(((mask > 0) * 255).astype(np.uint8)).save(path)


def no_unlabelled() -> None:
    for path in Path("photos/images/train").iterdir():
        if not (Path("photos/masks/train") / path.name).exists():
            path.unlink()


def in_checkpoints(change: Callable[[Path], object], pattern: str) -> Break:
    return lambda: [change(path) for path in Path("run/checkpoints").glob(pattern)]


def other_weights() -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "other.pth")


BAD = {
    # the recipe
    "missing recipe": Bad("train nothing.yaml", ("nothing.yaml", "no such recipe", "recipes/")),
    "recipe is a folder": Bad("train photos", ("photos", "cannot be read as a recipe")),
    "recipe not YAML": Bad(TRAIN, ("recipe.yaml", "not YAML", "line 2"), text("recipe.yaml", "data:\n  a: b: c\n")),
    "recipe not text": Bad(TRAIN, ("recipe.yaml", "cannot be read as a recipe"), text("recipe.yaml", b"\xff\xfe\0")),
    "empty recipe": Bad(TRAIN, ("recipe.yaml", "data, model, method, optim, engine"), text("recipe.yaml", "")),
    "recipe of one value": Bad(TRAIN, ("recipe.yaml", "data, model, method, optim, engine"), text("recipe.yaml", "3")),
    "section without keys": Bad(TRAIN, ("recipe.yaml", "data", "section"), text("recipe.yaml", "data: photos")),
    "unknown section": Bad(f"{TRAIN} --set dat.root=photos", ("recipe.yaml", "dat", "did you mean data")),
    "unknown key": Bad(f"{TRAIN} --set engine.stepz=3", ("engine.stepz", "unknown key", "did you mean steps")),
    "unknown key far down": Bad(
        f"{TRAIN} --set engine.evaluate.mod=whole", ("engine.evaluate.mod", "did you mean mode")
    ),
    "unknown key of a method": Bad(f"{TRAIN} --set method.tau=0.9", ("method.tau", "unknown key", "confidence")),
    "unknown method": Bad(f"{TRAIN} --set method.name=imass", ("method.name", "imass", "imas", "supervised")),
    "no method": Bad(f"{TRAIN} --set method.name=null", ("method.name", "missing", "imas")),
    "unknown layout": Bad(f"{TRAIN} --set data.layout=coco", ("data.layout", "coco", "folder", "voc", "cityscapes")),
    "no layout": Bad(f"{TRAIN} --set data.layout=null", ("data.layout", "missing", "folder")),
    "no root": Bad(
        TRAIN, ("data.root", "missing"), text("recipe.yaml", "data: {layout: folder}\nmethod: {name: imas}")
    ),
    "unknown encoder": Bad(f"{TRAIN} --set model.encoder=resnet19", ("model.encoder", "resnet19", "resnet50")),
    "unknown timm encoder": Bad(f"{TRAIN} --set model.encoder=tu-resnet19", ("model.encoder", "tu-resnet19", "timm")),
    "unknown architecture": Bad(f"{TRAIN} --set model.architecture=unett", ("model.architecture", "unett", "unet,")),
    "unknown option": Bad(f"{TRAIN} --set model.options.depth=3", ("model.options", "depth")),
    "wrong type": Bad(f"{TRAIN} --set engine.steps=many", ("engine.steps", "integer", "'many'")),
    "a fraction of a step": Bad(f"{TRAIN} --set engine.steps=2.5", ("engine.steps", "integer", "2.5")),
    "out of range": Bad(f"{TRAIN} --set method.confidence=2", ("method.confidence", "less than or equal to 1", "2")),
    "one of several types": Bad(f"{TRAIN} --set data.crop=big", ("data.crop: ", "integer", "'big'")),
    "too few numbers": Bad(f"{TRAIN} --set data.scale=[1]", ("data.scale: ", "more values", "[1]")),
    "no class to ignore": Bad(f"{TRAIN} --set method.ignore_class=99", ("method.ignore_class", "99", "6 classes")),
    "setting that would be ignored": Bad(
        f"{TRAIN} --set method.cutmix_probability=0.5", ("method", "cutmix_probability", "cutmix: standard")
    ),
    "settings that exclude each other": Bad(f"{TRAIN} --set data.val_fraction=0.5", ("data", "val and val_fraction")),
    "sliding without window": Bad(f"{TRAIN} --set engine.evaluate.mode=sliding", ("engine.evaluate", "window")),
    "--set without value": Bad(f"{TRAIN} --set engine.steps", ("--set engine.steps", "engine.steps=100")),
    "--set without section": Bad(f"{TRAIN} --set steps=3", ("--set steps=3", "section.key=value")),
    "--set below a value": Bad(f"{TRAIN} --set engine.steps.x=3", ("--set engine.steps.x=3", "steps is a value")),
    "--set not YAML": Bad(f"{TRAIN} --set 'data.crop=[1'", ("--set data.crop=[1", "not YAML")),
    # weights and machine
    "missing weights": Bad(f"{TRAIN} --set model.weights=no.pth", ("model.weights", "no.pth", "imagenet", "null")),
    "no weights": Bad(f"{TRAIN} --set model.weights=recipe.yaml", ("model.weights", "recipe.yaml cannot be read")),
    "weights of another architecture": Bad(
        f"{TRAIN} --set model.weights=other.pth", ("model.weights", "other.pth", "another architecture"), other_weights
    ),
    "weights that others have": Bad(f"{TRAIN} --set model.weights=lite", ("model.weights", "tf_efficientnet_lite0")),
    "no such device": Bad(f"{TRAIN} --set engine.device=tpu", ("engine.device", "tpu", "cpu")),
    "precision that needs another device": Bad(
        f"{TRAIN} --set engine.precision=fp16 --set engine.device=cpu", ("engine.precision", "fp16", "bf16")
    ),
    # the folders and lists
    "missing data": Bad(f"{TRAIN} --set data.root=nothing", ("data.root", "nothing")),
    "missing images": Bad(f"{TRAIN} --set data.images=jpg", ("data.images", "photos/jpg")),
    "missing masks": Bad(f"{TRAIN} --set data.masks=labels", ("data.masks", "photos/labels")),
    "no images": Bad(
        f"{TRAIN} {OWN_LISTS}",
        ("data.images", "photos/images", "no image"),
        lambda: [path.unlink() for path in Path("photos/images").rglob("*.png")],
    ),
    "no masks": Bad(
        f"{TRAIN} {OWN_LISTS}",
        ("data.masks", "photos/masks"),
        lambda: [path.unlink() for path in Path("photos/masks").rglob("*.png")],
    ),
    "missing list": Bad(f"{TRAIN} --set data.labeled=no.txt", ("photos/no.txt", "data.labeled", "data.root")),
    "missing classes": Bad(TRAIN, ("photos/classes.txt", "data.classes"), removed("photos/classes.txt")),
    "one class": Bad(TRAIN, ("photos/classes.txt", "1 classes", "between 2"), text("photos/classes.txt", "sky")),
    "a class twice": Bad(TRAIN, ("photos/classes.txt", "'sky'", "twice"), text("photos/classes.txt", "sky\nsky\n")),
    "unknown background": Bad(f"{TRAIN} --set data.background=sky", ("data.background", "sky", "ground")),
    "value of no class": Bad(f"{TRAIN} --set 'data.values={{9: 77}}'", ("data.values", "77", "0 to 5")),
    "empty list": Bad(TRAIN, ("photos/splits/val.txt", "data.val", "empty"), text("photos/splits/val.txt", "\n \n")),
    "unknown id": Bad(
        TRAIN, ("photos/splits/labeled.txt:2", "train/000l", "did you mean"),
        text("photos/splits/labeled.txt", "train/0000\ntrain/000l\n"),
    ),
    "an id twice": Bad(
        TRAIN, ("photos/splits/labeled.txt:2", "train/0000", "line 1"),
        text("photos/splits/labeled.txt", "train/0000\ntrain/0000\n"),
    ),
    "an image in two lists": Bad(
        TRAIN, ("data.labeled", "data.val", "train/0001"), text("photos/splits/val.txt", "val/0000\ntrain/0001\n")
    ),
    "no unlabelled image": Bad(
        f"{TRAIN} --set data.unlabeled=null", ("data.unlabeled", "no unlabelled images"), no_unlabelled
    ),
    # the files
    "labelled image without mask": Bad(
        TRAIN, ("data.labeled", "train/0002", "no mask", "photos/masks"), removed("photos/masks/train/0002.png")
    ),
    "validation image without mask": Bad(
        TRAIN, ("data.val", "val/0002", "no mask", "photos/masks"), removed("photos/masks/val/0002.png")
    ),
    "truncated labelled image": Bad(
        TRAIN, ("photos/images/train/0002.png", "not a readable image"), cut("photos/images/train/0002.png")
    ),
    "truncated unlabelled image": Bad(
        TRAIN, ("photos/images/train/0012.png", "not a readable image"), cut("photos/images/train/0012.png")
    ),
    "truncated validation image": Bad(
        TRAIN, ("photos/images/val/0002.png", "not a readable image"), cut("photos/images/val/0002.png")
    ),
    "truncated mask": Bad(
        TRAIN, ("photos/masks/train/0002.png", "not a readable image"), cut("photos/masks/train/0002.png", 60)
    ),
    "several broken files": Bad(
        TRAIN, ("photos/images/train/0001.png", "not a readable image", "2 more"),
        all_of(*(cut(f"photos/images/{name}.png") for name in ("train/0001", "train/0009", "val/0000"))),
    ),
    "text as image": Bad(
        TRAIN, ("photos/images/train/0012.png", "not a readable image"), text("photos/images/train/0012.png", "hello")
    ),
    "mask of another size": Bad(
        TRAIN, ("photos/masks/train/0002.png", "31x32", "32x32"), image("photos/masks/train/0002.png", 32, 31)
    ),
    "mask value outside the table": Bad(
        TRAIN, ("photos/masks/val/0001.png", "99", "0 to 5", "data.values"),
        image("photos/masks/val/0001.png", 32, 32, value=99),
    ),
    "RGB mask": Bad(
        TRAIN, ("photos/masks/train/0002.png", "RGB", "class index"), image("photos/masks/train/0002.png", 32, 32, 3)
    ),
    "black and white masks": Bad(
        f"{TRAIN} --set data.background=null", ("data.values", "photos/masks/", "{255: 1}"), black_and_white
    ),
    "crop that nothing can fill": Bad(f"{TRAIN} --set data.crop=65", ("data.crop", "65", "64 or less")),
    # run directories
    "run of another recipe": Bad(
        f"{TRAIN} --out run --set engine.steps=5", ("run", "engine.steps: 4 -> 5", "another directory")
    ),
    "run directory that is in use": Bad(f"{TRAIN} --out photos", ("photos", "not empty", "--out")),
    "run directory that is a file": Bad(f"{TRAIN} --out recipe.yaml", ("recipe.yaml", "is a file", "--out")),
    "run directory below a file": Bad(f"{TRAIN} --out recipe.yaml/run", ("recipe.yaml", "is a file", "--out")),
    "run with a broken config": Bad(
        f"{TRAIN} --out run", ("run/config.yaml", "not YAML"), text("run/config.yaml", "[")
    ),
    "run with a broken checkpoint": Bad(
        f"{TRAIN} --out run", ("run/checkpoints/step-00000004/model.safetensors", "cannot be read"),
        in_checkpoints(lambda path: path.write_bytes(b"no"), "step-*/model.safetensors"),
    ),
    "evaluate no run": Bad("evaluate photos", ("photos", "not a run directory")),
    "evaluate nothing": Bad("evaluate nothing", ("nothing", "not a run directory")),
    "evaluate without checkpoint": Bad("evaluate run", ("run", "no last checkpoint"), removed("run/checkpoints")),
    "evaluate an unknown checkpoint": Bad("evaluate run --checkpoint first", ("'first'", "best or last")),
    "evaluate on an unknown device": Bad("evaluate run --device gpu", ("--device", "'gpu'", "cuda")),
    "evaluate with other classes": Bad(
        "evaluate run", ("ground, a, b, c, d, e", "disc"), text("photos/classes.txt", "ground\na\nb\nc\nd\ne\n")
    ),
    "evaluate with a setting that has no effect": Bad(
        "evaluate run --set model.encoder=resnet18", ("--set model.encoder=resnet18", "no effect", "engine.evaluate")
    ),
    "evaluate a truncated image": Bad(
        "evaluate run", ("photos/images/val/0002.png", "not a readable image"), cut("photos/images/val/0002.png")
    ),
    "evaluate where the data are gone": Bad("evaluate run", ("data.root", "photos"), removed("photos")),
    "predict with no run": Bad("predict photos photos/images --out masks", ("photos", "not a run directory")),
    "predict with a broken checkpoint": Bad(
        PREDICT, ("run/checkpoints/best-0000000", "model.safetensors", "cannot be read"),
        in_checkpoints(lambda path: path.write_bytes(path.read_bytes()[:99]), "best-*/model.safetensors"),
    ),
    "predict with a checkpoint of another format": Bad(
        PREDICT, ("run/checkpoints/best-0000000", "format 9", "format 1"),
        in_checkpoints(lambda path: path.write_text('{"format": 9}'), "best-*/state.json"),
    ),
    "predict with half a checkpoint": Bad(
        PREDICT, ("run/checkpoints/best-0000000", "not a readable checkpoint"),
        in_checkpoints(Path.unlink, "best-*/state.json"),
    ),
    "predict on an unknown device": Bad(f"{PREDICT} --device gpu", ("--device", "'gpu'", "cuda")),
    "predict an unknown checkpoint": Bad(f"{PREDICT} --checkpoint first", ("'first'", "best or last")),
    "predict nothing": Bad("predict run nothing --out masks", ("nothing", "no such image or folder")),
    "predict a folder without images": Bad("predict run photos/splits --out masks", ("photos/splits", "no images")),
    "predict a text": Bad("predict run recipe.yaml --out masks", ("recipe.yaml", "not a readable image")),
    "predict a folder with a text as image": Bad(
        PREDICT, ("photos/images/val/0003.png", "not a readable image"), text("photos/images/val/0003.png", "hello")
    ),
    "predict over existing masks": Bad(
        PREDICT, ("masks/0002_overlay.png", "exists already", "--out"),
        all_of(lambda: Path("masks").mkdir(), text("masks/0002_overlay.png", "mine")),
    ),
    "predict over the images": Bad(
        "predict run photos/images/val --out photos/images/val", ("photos/images/val/0000.png", "exists already")
    ),
    "predict into a file": Bad("predict run photos/images --out recipe.yaml", ("recipe.yaml", "is a file", "--out")),
    "predict two images of one name": Bad(
        PREDICT, ("photos/images/val/0002", "same name", "rename"),
        lambda: shutil.copy("photos/images/val/0002.png", "photos/images/val/0002.bmp"),
    ),
    "predict an image named like an overlay": Bad(
        PREDICT, ("photos/images/val/0002_overlay.png", "masks/0002_overlay.png", "rename"),
        lambda: shutil.copy("photos/images/val/0002.png", "photos/images/val/0002_overlay.png"),
    ),
    # partitions
    "partition of no image": Bad(f"{PARTITIONS} --size 0", ("--size 0", "number of images", "fraction")),
    "partition of half an image": Bad(f"{PARTITIONS} --size 1.5", ("--size 1.5", "number of images", "fraction")),
    "partition of endless size": Bad(f"{PARTITIONS} --size inf", ("--size inf", "number of images", "fraction")),
    "partition of undefined size": Bad(f"{PARTITIONS} --size nan", ("--size nan", "number of images", "fraction")),
    "partition larger than the pool": Bad(f"{PARTITIONS} --size 2 --size 7", ("7", "between 1 and the 6 images")),
    "partition over an existing list": Bad(
        "partitions recipe.yaml --out photos/splits --size 2", ("photos/splits/unlabeled_2.txt", "exists already"),
        text("photos/splits/unlabeled_2.txt", "mine"),
    ),
    "partition into a file": Bad("partitions recipe.yaml --out recipe.yaml --size 2", ("recipe.yaml", "is a file")),
    "partition with a setting that has no effect": Bad(
        f"{PARTITIONS} --size 2 --set engine.seed=3", ("--set engine.seed=3", "no effect", "data")
    ),
    "partition of broken masks": Bad(
        f"{PARTITIONS} --size 2", ("photos/masks/train/0002.png", "not a readable image"),
        cut("photos/masks/train/0002.png", 60),
    ),
    # demo
    "demo into a folder that is in use": Bad("demo --out photos", ("photos", "not empty", "--out")),
    "demo into a file": Bad("demo --out recipe.yaml", ("recipe.yaml", "is a file", "--out")),
    "demo with a negative seed": Bad("demo --out demo --seed -1", ("seed", "-1")),
    # what only training can find
    "learning rate far too high": Bad(
        f"{TRAIN} --set optim.lr=1.0e+30", ("runs/recipe", "loss", "nan", "optim.lr"), leaves=("runs",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input(semiseg, recipe, scenes, trained, contents, tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes, "photos")
    shutil.copytree(trained, "run")
    values = recipe(data={"root": "photos"})
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    Path("run/config.yaml").write_text(Path("run/config.yaml").read_text().replace(str(scenes), "photos"))
    bad.broken()
    before = contents(tmp_path)
    if not bad.leaves:
        monkeypatch.setattr("semiseg.engine.runtime.Runtime.step", lambda *_: pytest.fail("a step was taken"))

    done = semiseg(bad.command)

    assert done.code == 2
    assert done.err.startswith("semiseg: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert [words for words in bad.says if words not in done.err] == [], done.err
    assert "Traceback" not in done.out + done.err
    after = contents(tmp_path)
    assert before.items() <= after.items()  # nothing is changed or gone
    assert [path for path in after.keys() - before.keys() if not path.startswith(bad.leaves or ("-",))] == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("learn recipe.yaml", "No such command 'learn'"),
        ("train", "Missing argument 'recipe'"),
        ("train recipe.yaml --steps 3", "No such option: --steps"),
        ("predict run photos", "Missing option '--out'"),
        ("partitions recipe.yaml --out lists", "Missing option '--size'"),
        ("partitions recipe.yaml --out lists --size some", "Invalid value for '--size'"),
        ("demo --seed some", "Invalid value for '--seed'"),
    ],
)
def test_a_wrong_command_line_points_to_the_help(semiseg, here, command, says):
    done = semiseg(command)
    assert done.code == 2
    assert says in done.err
    assert "--help" in done.err
    assert "Traceback" not in done.out + done.err
    assert [path.name for path in here.iterdir()] == ["recipe.yaml"]


def test_no_space_or_permission_is_one_line(semiseg, here, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "runs/recipe")

    monkeypatch.setattr("semiseg.runs.Run.start", refuse)
    done = semiseg("train recipe.yaml")
    assert (done.code, done.err) == (2, "semiseg: runs/recipe: Permission denied\n")


def test_an_error_of_ours_keeps_its_traceback(semiseg, here, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("semiseg.api.check", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        semiseg("train recipe.yaml")
