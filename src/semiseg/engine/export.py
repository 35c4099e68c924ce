"""Writes a trained network as a folder for others: weights for PyTorch, ONNX files, a description and a model card.

The folder is written under another name and renamed at the end, so it is either complete or absent.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from safetensors import SafetensorError
from torch import Tensor

from semiseg.data.dataset import Dataset, Sample
from semiseg.data.loader import eval_loader
from semiseg.data.read import fit, read_image, resize_image
from semiseg.engine import checkpoint, onnx_export
from semiseg.engine.environment import commit
from semiseg.engine.evaluate import evaluate
from semiseg.engine.exported import DESCRIPTION, Classes, Description, Input, read
from semiseg.engine.onnx_network import OnnxNetwork, require
from semiseg.engine.predict import Predictor, make_predictor
from semiseg.errors import UserError
from semiseg.files import sync, writing
from semiseg.metrics import Scores
from semiseg.recipe.recipe import Recipe
from semiseg.rng import fold_in
from semiseg.runs import Run

Lower = Literal["fp16", "int8"]

CARD = "README.md"
_COMPARED = 3  # images on which PyTorch and ONNX are compared
_MEASURED = 200  # validation images at most on which the mIoU of fp16 and int8 is measured
_CALIBRATED = 32  # training images at most for the ranges of int8
_FILES = {CARD, DESCRIPTION, "config.json", "model.safetensors", "model.onnx", "model-fp16.onnx", "model-int8.onnx"}


@dataclass(frozen=True)
class Images:
    """The images of a run that an export needs.

    Attributes:
        dataset: the dataset of the run; None if its files cannot be read here.
        recipe: the recipe that describes it.
        reason: why the files cannot be read; empty if they can.
    """

    dataset: Dataset | None
    recipe: Recipe | None
    reason: str = ""


def lower_precisions(names: Collection[str]) -> list[Lower]:
    """Checks names of precisions, and drops those that are named twice.

    Raises:
        UserError: there is no such precision.
    """
    known: dict[str, Lower] = {"fp16": "fp16", "int8": "int8"}
    for name in names:
        if name not in known:
            raise UserError(f"--precision: there is no {name!r}; use fp16 or int8 (fp32 is always written)")
    return [known[name] for name in dict.fromkeys(names)]


def check_target(out: Path, overwrite: bool) -> None:
    """Checks that a folder can be written, before any work is done.

    Raises:
        UserError: it exists and may not be replaced, or its parent folder does not allow to write.
    """
    if out.is_symlink() or (out.exists() and not overwrite):
        advice = "" if out.is_symlink() else ", or replace an earlier export with --overwrite"
        raise UserError(f"{out}: exists already; name a new folder with --out{advice}")
    if out.exists():
        read(out)  # raises an error if it is no export
        own = {path.name for path in out.iterdir() if path.name in _FILES or path.name.startswith("network-")}
        if others := sorted({path.name for path in out.iterdir()} - own):
            raise UserError(f"{out}: holds files that no export wrote, e.g. {others[0]}; name a new folder with --out")
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{out}: cannot be written (no permission for {parent}); name another folder with --out")


def export(
    run: Run,
    source: checkpoint.Checkpoint,
    out: Path,
    images: Images,
    card: Callable[[Description, dict[str, int]], str],
    onnx: bool = True,
    lower: Sequence[Lower] = (),
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Description:
    """Writes an exported network into the folder `out`. `check_target` has allowed it.

    Args:
        run: the run.
        source: the checkpoint of the run to export.
        out: the folder; an earlier export in it is replaced.
        images: the images of the run.
        card: makes the model card from the description and the sizes of the files in bytes.
        onnx: whether to write ONNX.
        lower: further ONNX files in these precisions.
        on_image: called with the number of images on which these were measured, and the number of all.

    Returns:
        The description that was written.

    Raises:
        UserError: the network cannot be exported as ONNX, ONNX differs from PyTorch by more than 1e-4, there are no
            images to measure a lower precision, a package is missing, or a file cannot be written.
    """
    if onnx:
        require("onnx", "onnxruntime")
    if lower and images.dataset is None:
        raise UserError(
            f"--precision {lower[0]}: its cost is measured on the run's validation images, which cannot be read "
            f"({images.reason}); say where they are with --set data.root=PATH, or leave it out"
        )
    predictor = make_predictor(source, "cpu")
    folders = ["."] if len(predictor.networks) == 1 else [f"network-{n}" for n in range(1, len(predictor.networks) + 1)]
    description = _describe(run, source, predictor, folders)
    with _replacing(out) as aside:
        (aside / CARD).write_text("", encoding="utf-8")  # otherwise save_pretrained writes a card of its own
        for network, name in zip(predictor.networks, folders, strict=True):
            (aside / name).mkdir(exist_ok=True)
            (aside / name / CARD).touch()
            network.net.save_pretrained(aside / name)
            if name != ".":
                (aside / name / CARD).unlink()
        if onnx:
            measured = _write_onnx(aside, source, predictor, images, lower, on_image)
            description = description.model_copy(update={"onnx": measured})
        text = description.text()
        for name in description.onnx:
            onnx_export.describe(aside / name, text)
        (aside / DESCRIPTION).write_text(text, encoding="utf-8")
        sizes = {path.relative_to(aside).as_posix(): path.stat().st_size for path in sorted(aside.rglob("*.*"))}
        (aside / CARD).write_text(card(description, sizes), encoding="utf-8")
        for path in aside.rglob("*.safetensors"):  # written for its owner alone
            shutil.copymode(aside / CARD, path)
    return description


def _describe(run: Run, source: checkpoint.Checkpoint, predictor: Predictor, folders: list[str]) -> Description:
    classes, recipe, environment = predictor.classes, source.recipe, run.environment()
    first = predictor.networks[0]
    kept = ("step", "miou", "accuracy", "iou")
    last, best = (record and {key: record[key] for key in kept} for record in (run.last(), run.best()))
    weights = recipe["model"]["weights"]
    about: dict[str, Any] = {
        "name": run.path.absolute().name,
        "checkpoint": source.path.name.partition("-")[0].replace("step", "last"),
        "method": recipe["method"]["name"],
        "steps": recipe["engine"]["steps"],
        "batch_size": recipe["engine"]["batch_size"],
        "seed": recipe["engine"]["seed"],
        "encoder_weights": weights if weights in (None, "imagenet", "lite") else "a file",
        "parameters": sum(one.numel() for network in predictor.networks for one in network.net.parameters()),
        "labels": environment.get("labels", {}),
        "versions": environment.get("versions", {}),
        "commit": environment.get("commit"),
        "last": last,
        "best": best,
    }
    return Description(
        semiseg=version("semiseg"),
        commit=commit(),
        classes=Classes(names=list(classes.names), colors=list(classes.colors), background=classes.background),
        input=Input(
            long_side=predictor.long_side,
            white=predictor.white,
            evaluate=predictor.evaluate,
            mean=list(first.normalization.mean),
            std=list(first.normalization.std),
            stride=first.stride,
            smallest=first.smallest,
        ),
        model=recipe["model"] | {"weights": None},
        networks=folders,
        step=source.step,
        run=about,
    )


def _write_onnx(
    folder: Path,
    source: checkpoint.Checkpoint,
    predictor: Predictor,
    images: Images,
    lower: Sequence[Lower],
    on_image: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    """Writes the ONNX files. Returns what was measured, by the names of the files."""
    model = source.recipe["model"]
    architecture = f"{model['architecture']} with encoder {model['encoder']}"
    full = folder / "model.onnx"
    onnx_export.write(predictor.networks, full, False, architecture)
    dataset = images.dataset
    shown = _read(_spread(dataset.val, _COMPARED), predictor) if dataset else _drawn()
    difference = onnx_export.largest_difference(predictor.networks, full, shown, architecture)
    if not difference <= onnx_export.TOLERANCE:  # NaN, too
        raise UserError(
            f"model: {architecture} as ONNX differs from PyTorch by {difference:.2g} in probability, more than "
            f"{onnx_export.TOLERANCE:g}; use --no-onnx for the PyTorch weights alone"
        )
    on = f"{len(shown)} {'validation images' if dataset else 'drawn images'}"
    found: dict[str, dict[str, Any]] = {
        full.name: {"precision": "fp32", "largest_difference": difference, "compared_on": on}
    }
    for precision in lower:
        file = folder / f"model-{precision}.onnx"
        if precision == "fp16":
            onnx_export.write(predictor.networks, file, True, architecture)
        else:
            assert dataset is not None
            samples = _spread([*dataset.labeled, *dataset.unlabeled], _CALIBRATED)
            onnx_export.quantize(full, file, _read(samples, predictor))
        difference = onnx_export.largest_difference(predictor.networks, file, shown, architecture)
        found[file.name] = {"precision": precision, "largest_difference": difference, "compared_on": on}
    if lower:
        for name, (scores, count) in _measure([folder / name for name in found], predictor, images, on_image).items():
            found[name] |= {"miou": scores.miou, "miou_images": count}
    return found


def _measure(
    files: list[Path], predictor: Predictor, images: Images, on_image: Callable[[int, int], None]
) -> dict[str, tuple[Scores, int]]:
    """Scores ONNX files on the same validation images, at most 200 of them."""
    assert images.dataset is not None
    assert images.recipe is not None
    samples = _spread(images.dataset.val, _MEASURED)
    found = evaluate(
        {file.name: (OnnxNetwork(file),) for file in files},
        eval_loader(samples, images.dataset, images.recipe.data),
        len(predictor.classes),
        predictor.evaluate,
        predictor.runtime,
        lambda done: on_image(done, len(samples)),
    )
    return {name: (scores, len(samples)) for name, scores in found.items()}


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Returns at most `most` samples, spread evenly over the list."""
    count = min(len(samples), most)
    return [samples[index * len(samples) // count] for index in range(count)]


def _read(samples: Sequence[Sample], predictor: Predictor) -> list[UInt8[Tensor, "3 _ _"]]:
    """Reads images as prediction does."""
    images = [read_image(sample.image, white=predictor.white) for sample in samples]
    return [resize_image(one, fit(one.shape[1], one.shape[2], predictor.long_side)).contiguous() for one in images]


def _drawn() -> list[UInt8[Tensor, "3 _ _"]]:
    """Draws images: patches of color with soft edges, and noise."""
    images = []
    for index, (height, width) in enumerate(((96, 128), (160, 96), (129, 191))[:_COMPARED]):
        generator = fold_in(0, "export", index)
        patches = torch.rand(1, 3, 5, 5, generator=generator)
        smooth = F.interpolate(patches, (height, width), mode="bicubic")[0]
        noise = 0.1 * torch.randn(3, height, width, generator=generator)
        images.append(((smooth + noise).clamp(0, 1) * 255).to(torch.uint8))
    return images


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Gives a new folder beside `out`, which replaces `out` at the end. After an error nothing has changed."""
    missing = [path for path in out.absolute().parents if not path.exists()]
    aside, before = (out.with_name(f".{out.name}.{word}") for word in ("tmp", "old"))
    try:
        with writing(out):
            if before.exists() and not out.exists():  # an earlier command was killed between the two renames
                before.rename(out)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            yield aside
            for path in [*aside.rglob("*"), aside]:
                sync(path)
            if out.exists():
                shutil.rmtree(before, ignore_errors=True)
                out.rename(before)
            try:
                aside.rename(out)
            except BaseException:
                if before.exists():
                    before.rename(out)
                raise
            shutil.rmtree(before, ignore_errors=True)
    except SafetensorError as error:
        raise UserError(f"{out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in missing:  # the nearest first; those that hold something stay
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
