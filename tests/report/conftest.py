"""Run directories that nobody trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from semiseg.runs import Run

NAMES = ["ground", "<b>disc</b>"]


def _pictures(run: Run, step: int, networks: list[str]) -> None:
    run.pictures.mkdir()
    Image.new("RGB", (8, 6), "red").save(run.pictures / "00000.jpg")
    for number in range(1 + len(networks)):
        Image.new("P", (8, 6), number).save(run.pictures / f"00000-{number}.png")
    predictions = {name: f"00000-{number}.png" for number, name in enumerate(networks, 1)}
    one = {"name": "val/0", "worst": True, "image": "00000.jpg", "truth": "00000-0.png", "predictions": predictions}
    told = [{"name": f"u{index}", "image": "00000.jpg", "hardness": index / 4} for index in range(4)]
    index = {
        "step": step,
        "networks": {name: {"confusion": [[3, 1], [0, 4]]} for name in networks},
        "images": [one | {"miou": dict.fromkeys(networks, 0.25)}],
        "unlabeled": told,
    }
    (run.pictures / "index.json").write_text(json.dumps(index))


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Run]:
    """made("imas/seed-0", method="imas", seed=0, done=40) -> a run of 40 steps with a record every 10."""

    def made(
        name: str,
        /,
        method: str = "imas",
        seed: int = 0,
        done: int = 40,
        pictures: bool = True,
        classes: list[str] = NAMES,
        **settings: Any,
    ) -> Run:
        run = Run(tmp_path / "runs" / name)
        recipe = {
            "data": {"root": "photos"},
            "model": {"encoder": "tiny"},
            "method": {"name": method, "threshold": 0.9, **settings},
            "optim": {"lr": 0.1},
            "engine": {"steps": 40, "seed": seed},
        }
        colors = [[0, 0, 0], [128, 0, 0]]
        environment = {"python": "3.13", "classes": {"names": classes, "colors": colors, "background": 0}}
        run.start(yaml.safe_dump(recipe), environment, [f"u{index}" for index in range(4)])
        run.event("started", 0, device="cpu")
        networks = ["teacher", "student"] if method == "imas" else ["student"]
        for step in range(10, done + 1, 10):
            train = {"kind": "train", "step": step, "loss": 1 / step, "labeled": 0.5, "lr": 0.1, "own": step + seed}
            train |= {"gradient_norm": None if step == 20 else 2.0, "pseudo_shares": [0.25, 0.5]}
            run.log(train | {"images_per_step": 4, "images_per_second": 2.0, "peak_memory_mb": 100})
            iou = [step / 50 + seed / 100, None]
            scores = {"miou": iou[0], "accuracy": 0.5, "iou": iou}
            quality = {"thresholds": [0.0, 0.9], "kept": [1.0, 0.5], "accuracy": [0.25, 0.75]}
            quality |= {"precision": [[0.1, None], [0.2, 0.3]], "recall": [[0.4, 0.5], [0.6, 0.7]]}
            record = {"kind": "val", "step": step, **scores, "pseudo_labels": quality}
            run.log(record | ({"networks": dict.fromkeys(networks, scores)} if len(networks) > 1 else {}))
            if method == "imas":
                run.log_hardness([(step, index, index / 4) for index in range(4)])
        if pictures and done:
            _pictures(run, done, networks)
        return run

    return made
