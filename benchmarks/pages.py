"""Pages of semiseg report: time and size for runs of 50,000 steps, and what their pictures add to an evaluation.

python benchmarks/pages.py; it writes synthetic run directories of 30 MB each.
"""

import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import common
import torch
import yaml

from semiseg.data.dataset import Dataset, MaskCoding, Sample
from semiseg.data.loader import EvalItem
from semiseg.engine.evaluate import evaluate
from semiseg.engine.gallery import Gallery
from semiseg.engine.runtime import Runtime
from semiseg.models.build import Config as ModelConfig
from semiseg.models.build import Network, build
from semiseg.recipe.engine import EvaluateConfig
from semiseg.report import page
from semiseg.rng import fold_in, seeded
from semiseg.runs import Run
from semiseg.types import ClassTable

STEPS, UNLABELED, BATCH, CLASSES, EVALUATIONS = 50_000, 10_000, 16, 21, 80


def synthetic(
    path: Path, steps: int, *, method: str = "imas", seed: int = 0, classes: int = CLASSES, unlabeled: int = UNLABELED
) -> Run:
    """Writes a run directory as a training of iMAS would: 16 unlabeled images a step, a record every 10 steps."""
    generator = fold_in(seed, "synthetic")
    names = [f"class {index}" for index in range(classes)]
    recipe = {
        "data": {"layout": "voc", "root": "data/voc"},
        "model": {"architecture": "deeplabv3plus", "encoder": "resnet101"},
        "method": {"name": method, "threshold": 0.95},
        "optim": {"lr": 0.001},
        "engine": {"steps": steps, "batch_size": BATCH, "seed": seed, "evaluate": {"mode": "whole"}},
    }
    environment = {
        "python": "3.13", "versions": {"torch": "2.14"}, "commit": None, "command": ["semiseg", "train"],
        "labels": {"labeled": 662, "unlabeled": unlabeled, "val": 1449, "partition": "0" * 12, "published": None},
        "classes": {"names": names, "colors": [[index * 12, 40, 200] for index in range(classes)], "background": 0},
    }  # fmt: skip
    run = Run(path)
    run.start(yaml.safe_dump(recipe), environment, [f"2007_{index:06}" for index in range(unlabeled)])
    noise = torch.rand(steps, generator=generator).tolist()
    lines = []
    for step in range(1, steps + 1):
        left = 1 - step / steps
        if step % 10 == 0:
            values = {
                key: round(left + noise[step - 1], 6) for key in ("loss", "labeled", "unlabeled", "gradient_norm")
            }
            shares = {"easiness": 1 - left, "confident": 1 - left / 2, "mixed": noise[step - 1]}
            rest = {"lr": left / 1000, "pseudo_shares": [1 / classes] * classes, "images_per_step": 2 * BATCH}
            rest |= {"images_per_second": 40.0, "waited": 0.01, "peak_memory_mb": 9000}
            lines.append({"kind": "train", "step": step, **values, **shares, **rest})
        if step % max(1, steps // EVALUATIONS) == 0 or step == steps:
            iou = [round((1 - left) * (index + 1) / classes, 4) for index in range(classes)]
            scores = {"miou": sum(iou) / classes, "accuracy": 0.9, "iou": iou}
            networks = dict.fromkeys(("teacher", "student"), scores)
            quality = {"thresholds": [0.0, 0.95], "kept": [1.0, 0.8], "accuracy": [0.8, 0.95]}
            quality |= {key: [iou, iou] for key in ("precision", "recall")}
            lines.append({"kind": "val", "step": step, **scores, "networks": networks, "pseudo_labels": quality})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    index = torch.randint(unlabeled, (steps, BATCH), generator=generator).tolist()
    with (path / "hardness.csv").open("a", encoding="utf-8") as file:
        for step, images in enumerate(index, 1):
            own = math.exp(-3 * step / steps)
            file.writelines(f"{step},{image},{own * (image + 1) / unlabeled:.4f}\n" for image in images)
    return run


def measure(run: common.Settings, results: common.Results) -> None:
    """Times a page of one run and one of two runs, then an evaluation with and without pictures."""
    steps = run.size(STEPS, STEPS, 200)
    results.settings |= {"steps": steps, "unlabeled images": UNLABELED, "classes": CLASSES}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        runs = [synthetic(place / f"run-{seed}", steps, seed=seed).path for seed in (0, 1)]
        for number in (1, 2):
            out = place / f"page-{number}.html"
            seconds = []
            for _ in range(run.times(3)):
                begin = time.perf_counter()
                page.write(runs[:number], out, overwrite=True)
                seconds.append(time.perf_counter() - begin)
            results.figure(f"page of {number} runs", "s", *seconds)
            results.figure(f"size of a page of {number} runs", "MB", out.stat().st_size / 1e6)
        sizes = run.size((5_000, 50_000), (5_000, 50_000), (100, 200))
        paths = {size: synthetic(place / f"of-{size}", size).path for size in sizes}
        growing = place / "growing.html"
        results.grow(
            "page of 1 runs", "steps",
            {size: lambda path=path: page.write([path], growing, overwrite=True) for size, path in paths.items()},
            2,
        )  # fmt: skip
        evaluation(run, results, runs[0])
    for name, allowed in (("page of 1 runs", 20.0), ("pictures, share of an evaluation", 0.02)):
        unit = "s" if name.startswith("page") else "1"
        results.figure(f"allowed for {name}", unit, allowed)
        results.ratio(f"{name} / allowed", name, f"allowed for {name}")
    results.figure("allowed for a page of 1 runs, size", "MB", 15.0)
    results.ratio(
        "size of a page of 1 runs / allowed", "size of a page of 1 runs", "allowed for a page of 1 runs, size"
    )


def evaluation(run: common.Settings, results: common.Results, path: Path) -> None:
    """Times an evaluation of two networks and the collecting and writing of its pictures."""
    side, images, encoder = run.size(
        (160, 100, "tu-tf_efficientnet_lite0"), (513, 100, "resnet50"), (32, 4, "tu-test_efficientnet")
    )
    runtime, generator = Runtime(run.device.type), fold_in(0, "images")
    with seeded(0):
        network = build(ModelConfig(encoder=encoder, weights=None), CLASSES).eval().to(run.device)
    samples = tuple(Sample(f"{index:04}", Path(f"{index:04}.png")) for index in range(images))
    dataset = Dataset((), (), samples, ClassTable.of([f"class {i}" for i in range(CLASSES)]), MaskCoding(CLASSES))
    items = [
        EvalItem(
            index,
            torch.randint(256, (3, side, side), generator=generator, dtype=torch.uint8),
            torch.randint(CLASSES, (side, side), generator=generator, dtype=torch.uint8),
        )
        for index in range(images)
    ]
    networks = {"teacher": (network,), "student": (network,)}
    results.settings |= {"validation images": images, "side, px": side, "encoder": encoder}
    measured = [once(networks, items, Gallery(dataset, 6, runtime), Run(path)) for _ in range(run.times(5) + 1)]
    whole, own = zip(*measured[1:], strict=True)  # the first warms up
    results.figure("evaluation without pictures", "s", *whole)
    results.figure("pictures of an evaluation", "s", *own)
    results.figure("pictures, share of an evaluation", "1", *(a / b for a, b in zip(own, whole, strict=True)))


def once(
    networks: dict[str, tuple[Network, ...]], items: list[EvalItem], gallery: Gallery, run: Run
) -> tuple[float, float]:
    """Measures the seconds of an evaluation without its pictures, and those of its pictures."""
    spent = 0.0

    def add(item: EvalItem, *found: Mapping[str, torch.Tensor]) -> None:
        nonlocal spent
        begin = time.perf_counter()
        gallery.add(item, *found)
        spent += time.perf_counter() - begin

    begin = time.perf_counter()
    scores = evaluate(networks, items, CLASSES, EvaluateConfig(), gallery.runtime, on_predictions=add)
    between = time.perf_counter()
    gallery.write(run, 1, scores, last=False)
    return between - begin - spent, spent + time.perf_counter() - between


if __name__ == "__main__":
    common.main("pages", __doc__, measure)
