"""Mistakes of users: each gives one line that names the file or key and what would work, and changes no file."""

import errno
import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
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


def pipe(path: str) -> Break:
    """A named pipe, which whoever reads it waits for."""
    return lambda: (Path(path).unlink(missing_ok=True), os.mkfifo(path))


def picture(path: str, kind: str, content: Image.Image, **save) -> Break:
    """A picture of one kind under the name of another."""

    def write() -> None:
        buffer = io.BytesIO()
        content.save(buffer, kind, **save)
        Path(path).write_bytes(buffer.getvalue())

    return write


def bomb(path: str, width: int = 32, height: int = 32, *, kind: bytes = b"", packed: bytes = b"") -> Break:
    """A PNG of some size with one odd chunk, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    odd = chunk(kind, packed + zlib.compress(bytes(2**24))) if kind else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes(33 * 32)))
    return text(path, b"\x89PNG\r\n\x1a\n" + head + odd + pixels + chunk(b"IEND", b""))


def looped(path: str) -> Break:
    """A link to itself."""
    return all_of(removed(path), lambda: Path(path).symlink_to(Path(path).name))


def copied(folder: str, name: str) -> Break:
    return lambda: shutil.copy("photos/images/val/0000.png", f"{folder}/{name}")


def zip_bomb() -> None:
    """Weights as torch writes them, and beside them much that packs well."""
    other_weights()
    with zipfile.ZipFile("other.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other/data/1", bytes(2**24))


def own_folder() -> None:
    """A folder as init makes it."""
    Path("mine").mkdir()
    shutil.copy("recipe.yaml", "mine/recipe.yaml")


def no_unlabeled() -> None:
    for path in Path("photos/images/train").iterdir():
        if not (Path("photos/masks/train") / path.name).exists():
            path.unlink()


def in_checkpoints(change: Callable[[Path], object], pattern: str) -> Break:
    return lambda: [change(path) for path in Path("run/checkpoints").glob(pattern)]


def other_weights() -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "other.pth")


BAD = {
    # the recipe
    "missing recipe": Bad("train nothing.yaml", ("nothing.yaml", "no such recipe", "semiseg recipes")),
    "misspelled recipe": Bad("train foldr", ("foldr", "no such recipe", "did you mean folder?", "semiseg recipes")),
    "misspelled recipe among several": Bad("train camvid", ("camvid", "camvid-cpu", "camvid-gpu", "semiseg recipes")),
    "recipe with an ending too much": Bad("train folder.yaml", ("folder.yaml", "did you mean folder?")),
    "partition of a misspelled recipe": Bad(
        "partitions ofical/voc --out lists --size 2", ("ofical/voc", "no such recipe", "official/voc")
    ),
    "print a misspelled recipe": Bad("recipes foldr", ("foldr", "no such recipe", "did you mean folder?")),
    "print a recipe that is a file": Bad("recipes recipe.yaml", ("recipe.yaml", "no such recipe", "semiseg recipes")),
    "print a path": Bad("recipes ../recipe_file.py", ("../recipe_file.py", "no such recipe")),
    "write a misspelled recipe": Bad("recipes foldr --out my.yaml", ("foldr", "did you mean folder?")),
    "write no recipe": Bad("recipes --out my.yaml", ("--out", "name the recipe", "semiseg recipes folder --out")),
    "write a recipe over a file": Bad("recipes folder --out recipe.yaml", ("recipe.yaml", "exists already", "--out")),
    "write a recipe over a folder": Bad("recipes folder --out photos", ("photos", "exists already", "--out")),
    "write a recipe over a link to nothing": Bad(
        "recipes folder --out my.yaml", ("my.yaml", "exists already"), lambda: Path("my.yaml").symlink_to("nothing")
    ),
    "write a recipe into no folder": Bad("recipes folder --out no/my.yaml", ("no: there is no such folder", "--out")),
    "write a recipe below a file": Bad("recipes folder --out recipe.yaml/a", ("recipe.yaml: there is no such folder",)),
    "recipe is a folder": Bad(
        "train photos", ("photos: is a folder of photographs", "--images photos/images --masks photos/masks")
    ),
    "recipe is a folder of something else": Bad("train photos/splits", ("is a folder without a recipe",)),
    "recipe is a run": Bad("train run", ("run: is a run directory", "semiseg train run/config.yaml --out run")),
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
    "unknown key of a method": Bad(f"{TRAIN} --set method.tau=0.9", ("method.tau", "unknown key", "threshold")),
    "unknown method": Bad(f"{TRAIN} --set method.name=imass", ("method.name", "imass", "imas", "supervised")),
    "no method": Bad(f"{TRAIN} --set method.name=null", ("method.name", "missing", "imas")),
    "unknown layout": Bad(
        f"{TRAIN} --set data.layout=yolo", ("data.layout", "yolo", "folder", "voc", "cityscapes", "coco", "labelme")
    ),
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
    "out of range": Bad(f"{TRAIN} --set method.threshold=2", ("method.threshold", "less than or equal to 1", "2")),
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
    "endless recipe": Bad("train /dev/zero", ("/dev/zero", "cannot be read as a recipe", "device")),
    "recipe that never comes": Bad(TRAIN, ("recipe.yaml", "cannot be read as a recipe", "pipe"), pipe("recipe.yaml")),
    "recipe of a size that is none": Bad(
        TRAIN, ("recipe.yaml", "more than 100000 bytes"), lambda: os.truncate("recipe.yaml", 2**24)
    ),
    "recipe that would execute": Bad(
        TRAIN, ("recipe.yaml", "line 1", "python/object"),
        text("recipe.yaml", "!!python/object/apply:os.system [touch executed]"),
    ),
    "value that would execute": Bad(
        f"{TRAIN} --set 'engine.steps=!!python/object/apply:os.system [touch executed]'", ("engine.steps", "not YAML")
    ),
    "aliases of aliases": Bad(
        TRAIN, ("recipe.yaml", "line 2", "aliases", "write the value out"),
        text("recipe.yaml", "a: &a [1, 1]\n" + "".join(f"a{n}: &b{n} [*a, *a, *a, *a, *a]\n" for n in range(9))),
    ),
    "recipe that holds itself": Bad(TRAIN, ("recipe.yaml", "aliases"), text("recipe.yaml", "data: &a {root: *a}")),
    "brackets without end": Bad(TRAIN, ("recipe.yaml", "nested"), text("recipe.yaml", "[" * 1500)),
    "--set brackets without end": Bad(f"{TRAIN} --set data.crop={'[' * 1500}", ("--set data.crop=[", "nested")),
    "a section twice": Bad(
        TRAIN, ("recipe.yaml", "line 2", "'data' occurs twice"), text("recipe.yaml", "data: {root: a}\ndata: {}")
    ),
    "a key twice": Bad(
        TRAIN, ("recipe.yaml", "line 1", "'root' occurs twice"), text("recipe.yaml", "data: {root: a, root: b}")
    ),
    "recipe with NUL": Bad(TRAIN, ("recipe.yaml", "special characters"), text("recipe.yaml", "data: a\0")),
    "key that steers the terminal": Bad(
        TRAIN, ("recipe.yaml", r"\x1b[31m\nx: unknown section"), text("recipe.yaml", '"\\e[31m\\nx": 3')
    ),
    "keys that are no text": Bad(TRAIN, ("recipe.yaml", "1: unknown section"), text("recipe.yaml", "1: 2\nnull: 3")),
    "key of a section that is no text": Bad(f"{TRAIN} --set 'optim={{1: 2, null: 3}}'", ("optim.1", "strings")),
    "number of 5000 digits": Bad(f"{TRAIN} --set engine.steps={'9' * 5000}", ("engine.steps", "100 digits")),
    "number of 5000 hexadecimal digits": Bad(f"{TRAIN} --set engine.seed=0x{'f' * 5000}", ("engine.seed", "digits")),
    "day that is none": Bad(f"{TRAIN} --set engine.steps=2001-99-99", ("engine.steps", "month")),
    "long value": Bad(f"{TRAIN} --set engine.steps={'x' * 50_000}", ("engine.steps", "integer", "...")),
    "optimizer": Bad(f"{TRAIN} --set optim.kind=adam", ("optim.kind", "adamw")),
    "momentum of AdamW": Bad(f"{TRAIN} --set optim.kind=adamw --set optim.momentum=0.9", ("optim", "betas")),
    "layers of an encoder without": Bad(f"{TRAIN} --set optim.layer_decay=0.8", ("optim.layer_decay", "tu-")),
    "long list": Bad(f"{TRAIN} --set optim.lr=[{'1,' * 999}1]", ("optim.lr", "number", "...")),
    **{
        f"endless or undefined {key}": Bad(f"{TRAIN} --set '{key}={value}'", (key, "finite"))
        for key, value in (
            ("optim.lr", ".inf"),
            ("optim.lr", ".nan"),
            ("optim.power", ".inf"),
            ("optim.weight_decay", "1e999"),
            ("data.scale", "[.nan,1]"),
            ("data.scale", "[1,.inf]"),
            ("data.flip", ".nan"),
            ("data.val_fraction", ".nan"),
            ("model.mean", "[.nan,0,0]"),
            ("model.std", "[.inf,1,1]"),
            ("method.threshold", ".nan"),
            ("method.unlabeled_weight", ".inf"),
            ("method.labeled_loss", "{kind: ohem, ohem_threshold: .nan}"),
            ("engine.steps", ".inf"),
        )
    },
    **{
        f"far too large {key}": Bad(f"{TRAIN} --set '{key}={value}'", (key, "less than or equal to"))
        for key, value in (
            ("data.crop", 10**9),
            ("data.crop", f"[{10**9},32]"),
            ("data.long_side", 10**9),
            ("data.scale", "[1,1000]"),
            ("data.workers", 10**6),
            ("data.values", "{70000: 1}"),
            ("engine.batch_size", 10**12),
            ("engine.steps", 10**20),
            ("method.strong", f"{{num_ops: {10**9}, with_replacement: true}}"),
        )
    },
    "layers of size 0": Bad(f"{TRAIN} --set model.options.decoder_channels=[0,0,0,0,0]", ("model.options", "size 0")),
    "option that others decide": Bad(f"{TRAIN} --set model.options.in_channels=4", ("model.options", "in_channels")),
    "option that loads a file": Bad(
        f"{TRAIN} --set model.options.checkpoint_path=other.pth", ("model.options", "checkpoint_path", "model.weights")
    ),
    "relative layout": Bad(f"{TRAIN} --set data.layout=..x", ("data.layout", "'..x'", "folder")),
    "relative method": Bad(f"{TRAIN} --set method.name=..x", ("method.name", "'..x'", "imas")),
    "home of nobody": Bad(f"{TRAIN} --set data.root=~nobody-at-all/photos", ("data.root", "no such user")),
    "--set two lines": Bad(f"{TRAIN} --set 'engine.steps=3\nx: 3'", (r"engine.steps=3\nx", "not YAML")),
    "--set control characters": Bad(f"{TRAIN} --set 'engine.steps=\x1b[31m\a'", (r"\x1b[31m\x07", "not YAML")),
    "--set markup": Bad(f"{TRAIN} --set '[/red]=3'", ("--set [/red]=3", "section.key=value")),
    "--set a broken byte": Bad(f"{TRAIN} --set 'engine.steps=\udcff'", (r"engine.steps=\udcff", "not YAML")),
    "--set of 5000 characters": Bad(f"{TRAIN} --set {'x' * 5000}", ("--set xxx", " ... ", "section.key=value")),
    "--set nothing": Bad(f"{TRAIN} --set ''", ("--set", "section.key=value")),
    "--set no key": Bad(f"{TRAIN} --set =3", ("--set =3", "section.key=value")),
    "--set no value": Bad(f"{TRAIN} --set engine.steps=", ("engine.steps", "integer", "None")),
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
    "weights of a device": Bad(f"{TRAIN} --set model.weights=/dev/zero", ("model.weights", "no file /dev/zero")),
    "weights that unpack to much": Bad(
        f"{TRAIN} --set model.weights=other.pth", ("model.weights", "other.pth", "cannot be read"), zip_bomb
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
    "one class": Bad(TRAIN, ("photos/classes.txt", "1 class, 'sky'", "between 2"), text("photos/classes.txt", "sky")),
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
    "no unlabeled image": Bad(
        f"{TRAIN} --set data.unlabeled=null", ("data.unlabeled", "no unlabeled images"), no_unlabeled
    ),
    "endless list": Bad(f"{TRAIN} --set data.labeled=/dev/zero", ("/dev/zero", "data.labeled", "device")),
    "list that never comes": Bad(TRAIN, ("labeled.txt", "data.labeled", "pipe"), pipe("photos/splits/labeled.txt")),
    "list that is a folder": Bad(f"{TRAIN} --set data.val=splits", ("photos/splits", "data.val", "a folder")),
    "list that is no text": Bad(TRAIN, ("val.txt", "data.val", "UTF-8"), text("photos/splits/val.txt", b"\xff\xfe\0a")),
    "list with NUL in its name": Bad(f"{TRAIN} --set 'data.val=\"a\\0b\"'", (r"photos/a\x00b", "data.val")),
    "list of one line": Bad(TRAIN, ("val.txt:1", "200000", "a line"), text("photos/splits/val.txt", "a " * 100_000)),
    "endless classes": Bad(f"{TRAIN} --set data.classes=/dev/zero", ("/dev/zero", "data.classes", "device")),
    "id above the root": Bad(
        TRAIN, ("labeled.txt:1", "'../../etc/passwd'", "leaves data.root"),
        text("photos/splits/labeled.txt", "../../etc/passwd"),
    ),
    "id elsewhere": Bad(
        TRAIN, ("labeled.txt:1", "no image '/etc/passwd'"), text("photos/splits/labeled.txt", "/etc/passwd")
    ),
    "mask elsewhere": Bad(
        TRAIN, ("labeled.txt:1", "no mask '/etc/passwd'"), text("photos/splits/labeled.txt", "train/0000 /etc/passwd")
    ),
    "id with NUL": Bad(TRAIN, ("labeled.txt:1", r"a\x00b"), text("photos/splits/labeled.txt", "a\0b")),
    "id that steers the terminal": Bad(
        TRAIN, ("labeled.txt:1", r"\x1b[31m[red]"), text("photos/splits/labeled.txt", "\x1b[31m[red]")
    ),
    "300 classes": Bad(
        TRAIN, ("photos/classes.txt", "300 classes"), text("photos/classes.txt", "".join(f"{n}\n" for n in range(300)))
    ),
    "class with a tab": Bad(TRAIN, ("photos/classes.txt", r"'a\tb'"), text("photos/classes.txt", "a\tb\nc\n")),
    "class that steers the terminal": Bad(
        TRAIN, ("photos/classes.txt", r"'\x1b[31m'"), text("photos/classes.txt", "\x1b[31m\nc\n")
    ),
    **{
        f"{command.split()[0]} an image called {name!r}": Bad(
            command, (folder, shown, "rename"), copied(folder, f"{name}.png")
        )
        for command, folder in ((TRAIN, "photos/images/train"), (PREDICT, "photos/images/val"))
        for name, shown in (
            ("a\nb", r"a\nb.png"),
            ("a\tb", r"a\tb.png"),
            ("\x1b[31m", r"\x1b[31m.png"),
            ("\u2028", r"\u2028.png"),
            ("\udcff", r"\udcff.png"),
        )
    },
    # the files
    "labeled image without mask": Bad(
        TRAIN, ("data.labeled", "train/0002", "no mask", "photos/masks"), removed("photos/masks/train/0002.png")
    ),
    "validation image without mask": Bad(
        TRAIN, ("data.val", "val/0002", "no mask", "photos/masks"), removed("photos/masks/val/0002.png")
    ),
    "truncated labeled image": Bad(
        TRAIN, ("photos/images/train/0002.png", "not a readable image"), cut("photos/images/train/0002.png")
    ),
    "truncated unlabeled image": Bad(
        TRAIN, ("photos/images/train/0012.png", "not a readable image"), cut("photos/images/train/0012.png")
    ),
    "truncated validation image": Bad(
        TRAIN, ("photos/images/val/0002.png", "not a readable image"), cut("photos/images/val/0002.png")
    ),
    "truncated JPEG": Bad(
        TRAIN, ("photos/images/train/0012.png", "not a readable image"),
        all_of(
            picture("photos/images/train/0012.png", "JPEG", Image.effect_noise((64, 64), 50)),
            cut("photos/images/train/0012.png", 900),
        ),
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
    **{
        f"{name} as {what}": Bad(command, (path, *says), broken(path), leaves=("masks",) if command == PREDICT else ())
        for what, command, path in (
            ("image", TRAIN, "photos/images/train/0012.png"),
            ("mask", TRAIN, "photos/masks/train/0002.png"),
            ("image to predict", PREDICT, "photos/images/val/0000.png"),
        )
        for name, says, broken in (
            ("a pipe", ("not a readable image",), pipe),
            ("nothing", ("not a readable image",), lambda path: text(path, b"")),
            ("a page", ("not a readable image",), lambda path: text(path, "<html></html>")),
            ("a program", ("not a readable image",), lambda path: text(path, "%!PS-Adobe-3.0 EPSF-3.0\n")),
            ("a link to itself", ("no such file",), looped),
            ("60000x60000", ("pixels", "tiles"), lambda path: bomb(path, 60000, 60000)),
            ("12000x12000", ("pixels", "tiles"), lambda path: bomb(path, 12000, 12000)),  # Pillow only warns
            ("zTXt bomb", ("not a readable image",), lambda path: bomb(path, kind=b"zTXt", packed=b"k\0\0")),
            ("iTXt bomb", ("not a readable image",), lambda path: bomb(path, kind=b"iTXt", packed=b"k\0\1\0\0\0")),
            ("floating point", ("floating-point",), lambda path: picture(path, "TIFF", Image.new("F", (32, 32)))),
        )
        if (what, name) != ("image to predict", "12000x12000")  # that is predicted in windows
    },
    "predict a header of 12000x12000": Bad(
        PREDICT, ("photos/images/val/0000.png", "not a readable image"),
        lambda: bomb("photos/images/val/0000.png", 12000, 12000)(), leaves=("masks",),
    ),
    "mask with transparency": Bad(
        TRAIN, ("photos/masks/train/0002.png", "transparency", "LA"), image("photos/masks/train/0002.png", 32, 32, 2)
    ),
    "JPEG in colors of print as mask": Bad(
        TRAIN, ("photos/masks/train/0002.png", "is a JPEG that blurs", "PNG"),
        picture("photos/masks/train/0002.png", "JPEG", Image.new("CMYK", (32, 32))),
    ),
    "mask of 1x1": Bad(TRAIN, ("masks/train/0002.png", "1x1", "32x32"), image("photos/masks/train/0002.png", 1, 1)),
    "image of 1x100000": Bad(
        TRAIN, ("masks/train/0002.png", "100000x1"), image("photos/images/train/0002.png", 1, 100_000)
    ),
    "mask of another size": Bad(
        TRAIN, ("photos/masks/train/0002.png", "31x32", "32x32"), image("photos/masks/train/0002.png", 32, 31)
    ),
    "mask value outside the table": Bad(
        TRAIN, ("photos/masks/val/0001.png", "99", "0 to 5", "data.values"),
        image("photos/masks/val/0001.png", 32, 32, value=99),
    ),
    "RGB mask": Bad(
        TRAIN, ("photos/masks/train/0002.png", "#c80000 (10.0 %), which no class has", "data.colors"),
        picture("photos/masks/train/0002.png", "PNG", Image.new("RGB", (32, 32), (200, 0, 0))),
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
    "evaluate without checkpoint": Bad("evaluate run", ("run", "no checkpoint"), removed("run/checkpoints")),
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
    "predict with a folder of runs": Bad(
        "predict several photos/images --out masks",
        ("several: is not a run directory, but a folder of runs; name one of several/0, several/1, ", "4 and 2 more"),
        lambda: [shutil.copytree("run", f"several/{number}") for number in range(7)],
    ),
    "predict with a recipe that is trained": Bad(
        "predict mine photos/images --out masks", ("mine: is not a run directory", "name its run: runs/mine"),
        all_of(own_folder, lambda: shutil.copytree("run", "runs/mine")),
    ),
    "predict with a recipe that is not trained": Bad(
        "predict mine photos/images --out masks", ("mine: is not a run directory", "train it: semiseg train mine"),
        own_folder,
    ),
    "predict with no run": Bad("predict photos photos/images --out masks", ("photos", "not a run directory")),
    "predict with a broken checkpoint": Bad(
        PREDICT, ("run/checkpoints/best-0000000", "model.safetensors", "cannot be read"),
        in_checkpoints(lambda path: path.write_bytes(path.read_bytes()[:99]), "best-*/model.safetensors"),
    ),
    "predict with a checkpoint of another format": Bad(
        PREDICT, ("run/checkpoints/best-0000000", "format 9", "format 4"),
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
        PREDICT, ("photos/images/val/0003.png", "not a readable image", "the other 3 were written to masks"),
        text("photos/images/val/0003.png", "hello"), leaves=("masks",),
    ),
    "predict over existing masks": Bad(
        PREDICT, ("masks/0002_overlay.png", "exists already", "--out"),
        all_of(lambda: Path("masks").mkdir(), text("masks/0002_overlay.png", "mine")),
    ),
    "predict over the images": Bad(
        "predict run photos/images/val --out photos/images/val", ("--out photos/images/val", "inside", "outside")
    ),
    "predict a pipe": Bad("predict run pipe --out masks", ("pipe", "no such image"), pipe("pipe")),
    "predict a device": Bad("predict run /dev/zero --out masks", ("/dev/zero", "no such image")),
    "predict a truncated image": Bad(
        PREDICT, ("photos/images/val/0002.png", "not a readable image", "1 of 4 images", "3 were written to masks"),
        cut("photos/images/val/0002.png"), leaves=("masks",),
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
    "predict a pattern without a match": Bad(
        "predict run 'photos/**/*.tiff' --out masks", ("photos/**/*.tiff", "matches nothing")
    ),
    "predict into the images": Bad("predict run photos --out photos/masks", ("--out photos/masks", "inside photos")),
    "predict an unknown output": Bad(f"{PREDICT} --write masks,polygons", ("--write polygons", "labelme, areas")),
    "predict no output": Bad(f"{PREDICT} --write ''", ("--write", "choose of masks")),
    "predict at no scale": Bad(f"{PREDICT} --scales 1,0", ("--scales 0", "0.75,1,1.25")),
    "predict at a scale in words": Bad(f"{PREDICT} --scales 1,half", ("--scales half", "no number")),
    "predict in small windows": Bad(f"{PREDICT} --window 5", ("--window 5", "too small", "64 or more")),
    "predict masks of few pixels": Bad(f"{PREDICT} --least-region 5", ("--least-region", "add coco or labelme")),
    "predict a broken video": Bad("predict run a.mp4 --out masks", ("a.mp4", "video"), text("a.mp4", "hello")),
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
    # what the first step would refuse
    "micro-batches too small for batch norm": Bad(
        f"{TRAIN} --set 'method={{name: supervised}}' --set engine.micro_batch_size=1",
        ("engine.micro_batch_size", "batch norm", "1 labeled image", "a larger micro_batch_size"),
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
        monkeypatch.setattr("semiseg.engine.optimizers.Optimizers.step", lambda *_: pytest.fail("a step was taken"))

    done = semiseg(bad.command)

    assert done.code == 2
    assert done.err.startswith("semiseg: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert [words for words in bad.says if words not in done.err] == [], done.err
    assert done.err[:-1].isprintable()  # nothing steers the terminal
    assert len(done.err) < 2100
    assert "Traceback" not in done.out + done.err
    after = contents(tmp_path)
    assert before.items() <= after.items()  # nothing is changed or gone
    assert [path for path in after.keys() - before.keys() if not path.startswith(bad.leaves or ("-",))] == []


def test_what_is_only_odd_works(semiseg, recipe, scenes, tmp_path, monkeypatch):
    """Names that are markup, links in circles, a folder called like an image, a list as Windows writes it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes, "photos")
    classes = ["[/sky]", "[bold]x", ":smile:", r"\[a]", "Sky", "sky"]
    Path("photos/classes.txt").write_text("\n".join(classes))
    Path("photos/splits/val.txt").write_bytes(b"\xef\xbb\xbfval/0000\r\n\r\nval/[bold]x\r\n")
    for folder in ("images", "masks"):
        shutil.copy(f"photos/{folder}/val/0001.png", f"photos/{folder}/val/[bold]x.png")
        Path(f"photos/{folder}/one").symlink_to(".")
        Path(f"photos/{folder}/other").symlink_to("../images")
    Path("photos/images/folder.png").mkdir()
    values = recipe(data={"root": "photos", "background": None, "unlabeled": None}, engine={"steps": 1})
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    out = "runs/[/sky]"

    done = semiseg(f"train recipe.yaml --out {out}")
    assert (done.code, done.err) == (0, "")
    assert "6 labeled, 11 unlabeled, 2 validation images" in done.out
    assert "sky]: step 1" in done.out
    assert f"run directory: {out}" in done.out
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("│")][3:9] == classes
    assert [line for line in semiseg(f"evaluate {out}").out.splitlines() if "[/sky]" in line]
    assert "written to [bold]masks" in semiseg(f"predict {out} photos/images/val --out [bold]masks").out


MANY = {"save_all": True, "append_images": [Image.new("L", (9, 9))] * 99}
ODD = {
    "16 bits": ("PNG", Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60), {}),
    "colors of print": ("JPEG", Image.new("CMYK", (32, 32)), {}),
    "1x1": ("PNG", Image.new("RGB", (1, 1)), {}),
    "5000x1": ("PNG", Image.new("RGB", (5000, 1)), {}),
    "many frames": ("GIF", Image.new("RGB", (9, 9)), MANY),
    "many pages": ("TIFF", Image.new("RGB", (9, 9)), MANY),
    "transparency": ("WEBP", Image.new("RGBA", (9, 9)), {}),
}


@pytest.mark.parametrize(("kind", "content", "save"), ODD.values(), ids=ODD.keys())
def test_odd_images_are_predicted(semiseg, trained, tmp_path, monkeypatch, kind, content, save):
    monkeypatch.chdir(tmp_path)
    picture("odd.png", kind, content, **save)()
    assert semiseg(f"predict {trained} odd.png --out masks").code == 0
    with Image.open("masks/odd.png") as mask, Image.open("masks/odd_overlay.png") as overlay:
        assert mask.size == overlay.size == content.size


@pytest.mark.parametrize(
    ("command", "says", "see"),
    [
        ("learn recipe.yaml", "No such command 'learn'", "semiseg"),
        ("train", "Missing argument 'recipe'; see", "semiseg train"),
        ("train recipe.yaml --steps 3", "No such option: --steps", "semiseg train"),
        ("train recipe.yaml '--\x1b[31m\n'", r"No such option: --\x1b[31m\x0a", "semiseg train"),
        ("train recipe.yaml --out", "Option '--out' requires an argument", "semiseg"),
        ("train recipe.yaml twice.yaml", "Got unexpected extra argument(s) (twice.yaml)", "semiseg train"),
        ("train 'a\0b'", "Invalid value for 'recipe'", "semiseg train"),
        ("predict run photos", "Missing option '--out'", "semiseg predict"),
        ("partitions recipe.yaml --out lists", "Missing option '--size'", "semiseg partitions"),
        ("partitions recipe.yaml --out lists --size some", "Invalid value for '--size'", "semiseg partitions"),
        ("demo --seed some", "Invalid value for '--seed'", "semiseg demo"),
        (f"demo --seed {'9' * 5000}", "Invalid value for '--seed'", "semiseg demo"),
    ],
)
def test_a_wrong_command_line_points_to_the_help(semiseg, here, command, says, see):
    done = semiseg(command)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"semiseg: {says}")
    assert done.err.endswith(f"; see {see} --help\n")
    assert done.err.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/recipe"), "runs/recipe: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),  # of standard output
        (MemoryError("Unable to allocate 9 TiB\nmore"), "not enough memory; lower engine.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory; lower engine.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
    ],
)
def test_no_space_or_permission_is_one_line(semiseg, here, monkeypatch, error, line):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("semiseg.runs.Run.start", refuse)
    done = semiseg("train recipe.yaml")
    assert done.code == 2
    assert done.err.startswith(f"semiseg: {line}")
    assert done.err.count("\n") == 1


def test_nothing_but_the_line(semiseg, trained, here):
    """Pillow warns of an image of this size, on stderr."""
    bomb("large.png", 12000, 12000)()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = semiseg(f"predict {trained} large.png --out masks")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert [str(warning.message) for warning in caught] == []


def test_advice_on_memory_that_predict_can_follow(semiseg, trained, scenes, here, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("semiseg.engine.predict.Predictor.probabilities", fail)
    done = semiseg(f"predict {trained} {scenes}/images/val --out masks")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--window 512" in done.err
    assert "batch_size" not in done.err


@pytest.mark.parametrize("command", ["train nothing.yaml", "partitions nothing.yaml --out lists --size 2"])
def test_a_recipe_that_is_not_there_is_told_at_once(here, command):
    code = f"""
import sys
from semiseg import cli
sys.argv = {["semiseg", *command.split()]}
try:
    cli.main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = "semiseg: nothing.yaml: there is no such recipe; name a file, or one that `semiseg recipes` lists\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_a_full_disk_leaves_no_half_image(semiseg, trained, scenes, here, monkeypatch):
    def full(image, path, *_, **__):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    done = semiseg(f"predict {trained} {scenes}/images/val --out masks")
    assert done.code == 2
    assert done.err == (
        "semiseg: masks/0000.png: cannot be written (No space left on device); 0 of 4 images were written to masks; "
        "the same command goes on\n"
    )
    assert list(Path("masks").iterdir()) == []


def test_a_pipe_that_nobody_reads(here):
    """`semiseg methods | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from semiseg import cli; sys.argv = ['semiseg', '--help']; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode != 0


def test_an_error_of_ours_keeps_its_traceback(semiseg, here, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("semiseg.api.check_files", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        semiseg("train recipe.yaml")
