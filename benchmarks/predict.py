"""Predicting files: how long the network waits for images.

Photographs are decoded, resized for the network, predicted, and written as masks and overlays of their own size:
python benchmarks/predict.py [--data VOC]
"""

import tempfile
from pathlib import Path

import common
import torch
from photographs import IMAGES, Photographs, photographs
from PIL import Image

from semiseg.engine.predict import Predictor
from semiseg.engine.predict_files import Times, predict_files
from semiseg.engine.runtime import Runtime
from semiseg.models.build import Config, build
from semiseg.recipe.engine import EvaluateConfig
from semiseg.rng import seeded
from semiseg.types import ClassTable

CLASSES = ClassTable.of([str(number) for number in range(21)], background=0)
ALLOWED = 0.05  # of the time


def predictor(run: common.Settings, long_side: int) -> Predictor:
    """Builds the network that `semiseg init` proposes for the device. Its weights are random: they cost the same."""
    encoder = run.size("tu-tf_efficientnet_lite0", "tu-tf_efficientnet_lite2", "tu-test_efficientnet")
    small = {"encoder_depth": 4, "decoder_channels": 64, "decoder_atrous_rates": [3, 6, 9]}
    with seeded(0):
        config = Config(encoder=encoder, weights=None, options=run.size(small, {}, small))
        network = build(config, len(CLASSES)).eval().requires_grad_(False)
    network = network.to(run.device).to(memory_format=torch.channels_last)
    return Predictor((network,), CLASSES, long_side, EvaluateConfig(), Runtime(run.device.type, "fp32"), step=0)


def resized(photos: Photographs, folder: Path, side: int, number: int) -> Path:
    """Writes photographs as JPEGs with this long side."""
    place = folder / str(side)
    place.mkdir()
    for name in photos.unlabeled[:number]:
        with Image.open(photos.root / IMAGES / f"{name}.jpg") as image:
            factor = side / max(image.size)
            size = round(image.width * factor), round(image.height * factor)
            image.convert("RGB").resize(size).save(place / f"{name}.jpg", quality=92)
    return place


def times(model: Predictor, images: Path) -> Times:
    """Predicts a folder of images into a new folder."""
    found: list[Times] = []
    with tempfile.TemporaryDirectory() as out:
        predict_files(model, images, Path(out), on_times=found.append)
    return found[0]


def measure(run: common.Settings, results: common.Results) -> None:
    """Measures where the time goes, by the size of the photographs."""
    long_side = run.size(240, 512, 32)
    numbers = run.size({500: 32, 2000: 16, 4000: 8}, {500: 128, 2000: 64, 4000: 32}, {50: 4, 100: 3})
    with photographs(run.data, max(numbers.values()) * 3 // 2) as photos, tempfile.TemporaryDirectory() as name:
        model = predictor(run, long_side)
        folders = {side: resized(photos, Path(name), side, number) for side, number in numbers.items()}
        results.settings |= {
            "images": photos.describe(), "the network's long side, px": long_side,
            "precision": model.runtime.precision,
        } | {f"images of {side} px": number for side, number in numbers.items()}  # fmt: skip
        times(model, folders[min(folders)])  # to warm up
        found: dict[int, list[Times]] = {side: [] for side in folders}
        for _ in range(run.times(5)):
            for side, folder in folders.items():
                found[side].append(times(model, folder))
    results.figure("share of input wait, allowed", "1", ALLOWED)
    for side, each in found.items():
        results.figure(f"an image of {side} px", "s", *(one.total / numbers[side] for one in each))
        share = f"share of input wait, {side} px"
        results.figure(share, "1", *(one.read / one.total for one in each))
        results.ratio(f"{share} / allowed", share, "share of input wait, allowed")
    for what, kind in (("waiting for images, share", "read"), ("waiting for writing, share", "write")):
        shares: dict[float, list[float]] = {
            side: [getattr(one, kind) / one.total for one in each] for side, each in found.items()
        }
        results.growth_of(what, "px of the long side", "1", shares, power_law=False)
    results.note(
        "The long side is that of the files. The first image of each prediction, which is always waited for, counts. "
        "Writing is masks and overlays as PNG, in one thread beside the network on a CPU."
    )


if __name__ == "__main__":
    common.main("predict", __doc__, measure)
