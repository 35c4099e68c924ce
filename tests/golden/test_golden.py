"""The losses of eight steps, as they were when `losses.json` was written. A change of these numbers is its own commit.

    REWRITE_GOLDEN=1 pytest tests/golden     writes them anew; say in the commit why they changed

Networks compute in fp64, so that the numbers hold on every kind of CPU.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semiseg import data, methods
from semiseg.data.loader import train_loader
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.engine.step import Stepper
from semiseg.models.build import Network
from semiseg.models.flaws import FlawDetector
from semiseg.recipe.file import shipped
from semiseg.recipe.load import validate

FILE = Path(__file__).with_name("losses.json")
STEPS = 8
OFFICIAL = {name: yaml.safe_load(path.read_text())["method"] for name, path in shipped().items() if "official" in name}
CASES: dict[str, dict[str, Any]] = {
    **{f"every method: {name}": {"name": name} for name in methods.names()},
    "supervised": {"name": "supervised"},
    "supervised, OHEM": {"name": "supervised", "labeled_loss": {"kind": "ohem", "min_kept": 500}},
    "cps, CutMix": {"name": "cps", "cutmix": True},
    "fixmatch, EMA": {"name": "fixmatch", "threshold": 0.3, "teacher": "ema", "ema_decay": 0.5},
    "unimatch, micro-batches": {"name": "unimatch", "threshold": 0.3, "micro_batch_size": 2},
    "unimatch_v2, micro-batches": {"name": "unimatch_v2", "threshold": 0.3, "micro_batch_size": 2},
    "imas": {},
    "imas, micro-batches": {"micro_batch_size": 1},
    "imas, no adaptation": {"loss": "standard", "intensity": "standard", "cutmix": "standard"},
    **{f"imas, {key} standard": {key: "standard"} for key in ("loss", "intensity", "cutmix")},
    **{
        f"imas, {key} {value}": {key: value}
        for key, value in {
            "ignore_class": "none",
            "all_ignored": "hardest",
            "ignore_padding": False,
            "when_unmixed": "half",
            "boxes": "official",
            "extra_weak_forward": True,
            "copy_steps": 3,
            "hardness_every": 3,
            "hardness_scale": 0.5,
        }.items()
    },
    **{name: {"threshold": 0.3, **method} | {"threshold": 0.3} for name, method in OFFICIAL.items()},
}


def in_double_precision(method: torch.nn.Module) -> torch.nn.Module:
    method.double()
    for network in method.modules():
        if isinstance(network, Network):
            network.encode = lambda image, encode=network.encode: encode(image.double())
            network.classify = lambda decoded, size, classify=network.classify: classify(decoded, size).float()
        elif isinstance(network, (FlawDetector, torch.nn.Linear)):
            network.register_forward_pre_hook(lambda _, images: tuple(image.double() for image in images))
            network.register_forward_hook(lambda _, __, flaws: flaws.float())
    return method


@pytest.fixture
def small_networks(tiny, monkeypatch) -> None:
    """Each network of a method is another one of the same small architecture."""
    seeds = iter(range(100))
    monkeypatch.setattr(
        "semiseg.models.build.build", lambda model, outputs, channels: tiny(next(seeds), True, outputs, channels)
    )


def losses(values: dict[str, Any], engine: dict[str, Any]) -> list[dict[str, float]]:
    values["engine"] |= {"steps": STEPS, "batch_size": 4, **engine}
    made = validate(values, "recipe")
    dataset = data.load(made.data)
    method, runtime = build_method(made, dataset.classes), Runtime("cpu", "fp32")
    in_double_precision(method)
    stepper = Stepper(made, method, runtime)
    stepper.start()
    batches = train_loader(dataset, made.data, method.views, batch_size=4, seed=0, start=0, num_steps=STEPS)
    found = []
    for step, loaded in enumerate(batches):
        share = stepper.take(step, loaded)
        found.append({"total": share.total, **share.scalars})
    return [{name: round(float(value), 6) for name, value in step.items()} for step in found]


@pytest.mark.parametrize("case", CASES)
def test_losses_are_as_before(case, recipe, small_networks):
    settings = dict(CASES[case])
    engine = {key: settings.pop(key) for key in ("micro_batch_size",) if key in settings}
    name = settings.pop("name", "imas")
    values = recipe(name, method=settings, data={"crop": 40, "scale": (0.5, 1.5)})  # some crops are padded
    found = losses(values, engine)
    if os.environ.get("REWRITE_GOLDEN"):
        golden = json.loads(FILE.read_text()) if FILE.exists() else {}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (golden | {case: found}).items()]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    golden = json.loads(FILE.read_text())[case]
    assert len(found) == len(golden) == STEPS
    for step, (now, before) in enumerate(zip(found, golden, strict=True)):
        assert {name: now[name] for name in before} == pytest.approx(before, rel=1e-4, abs=2e-5), f"step {step}"


def test_every_case_is_kept():
    assert json.loads(FILE.read_text()).keys() == CASES.keys()
