import re
from typing import Any

import pytest
import yaml

from semiseg.report import card


@pytest.fixture
def about() -> dict[str, Any]:
    """The values of a semiseg.json."""
    record = {"step": 40, "miou": 0.5, "accuracy": 0.75, "iou": [0.25, 0.75, None]}
    return {
        "classes": {
            "names": ["sky", "road", "sign"],
            "colors": [[0, 0, 0], [200, 30, 30], [0, 0, 255]],
            "background": 0,
        },
        "input": {
            "long_side": None,
            "white": None,
            "evaluate": {"mode": "whole", "window": None, "stride": None},
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "stride": 16,
            "smallest": 16,
        },
        "model": {"architecture": "unet", "encoder": "resnet18"},
        "networks": ["."],
        "step": 40,
        "run": {
            "name": "streets",
            "checkpoint": "best",
            "method": "imas",
            "steps": 100,
            "batch_size": 4,
            "seed": 3,
            "encoder_weights": None,
            "parameters": 1_234_567,
            "labels": {"labeled": 5, "unlabeled": 195, "val": 100, "partition": "1e662f0c7825", "published": None},
            "last": record | {"step": 50, "miou": 0.25},
            "best": record,
        },
        "onnx": {},
    }  # fmt: skip


SIZES = {"config.json": 400, "model.onnx": 3_200_000, "model.safetensors": 12_300_000, "semiseg.json": 900}


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_what_a_card_says(about):
    shown = rows(card.text(about, SIZES))
    for row in (
        ["0", "sky (background)", r"\#000000"],
        ["1", "road", r"\#c81e1e"],
        ["labeled images", "5"],
        ["unlabeled images", "195"],
        ["validation images", "100"],
        ["partition of the labels", "1e662f0c7825"],
        ["IoU in %", "last (step 50)", "best (step 40)"],
        ["mIoU", "25.00", "50.00"],
        ["pixel accuracy", "75.00", "75.00"],
        ["road", "75.00", "75.00"],
        ["sign", "-", "-"],
        ["model.safetensors", "12.3 MB", ""],
    ):
        assert row in shown
    text = card.text(about, SIZES)
    assert "40 of 100 steps of 4 labeled images, seed 3; this is the best checkpoint" in text
    assert "1.23 million parameters" in text
    assert "random initial weights" in text
    assert "resize" not in text
    assert "-width % 16" in text


def test_figures_of_onnx_files(about):
    measured = {"compared_on": "3 validation images", "miou_images": 100}
    about["onnx"] = {
        "model.onnx": measured | {"precision": "fp32", "largest_difference": 3.2e-6, "miou": 0.6711},
        "model-int8.onnx": measured | {"precision": "int8", "largest_difference": 0.28, "miou": 0.65},
    }
    shown = rows(card.text(about, SIZES | {"model-int8.onnx": 1_200_000}))
    assert ["model.onnx", "3.2 MB", "3e-06", "67.11"] in shown
    assert ["model-int8.onnx", "1.2 MB", "0.3", "65.00"] in shown
    assert ["model.safetensors", "12.3 MB", "", ""] in shown
    text = card.text(about, SIZES)
    assert "Compared on 3 validation images. The mIoU was measured with onnxruntime on 100 validation images." in text
    assert card.measured(about) == [
        "model.onnx: differs from PyTorch by at most 3e-06 in probability (3 validation images); mIoU 67.11 on 100 "
        "validation images",
        "model-int8.onnx: differs from PyTorch by at most 0.3 in probability (3 validation images); mIoU 65.00 on 100 "
        "validation images",
    ]


def test_a_run_that_was_not_evaluated(about):
    about["run"] |= {"last": None, "best": None, "labels": {}}
    text = card.text(about, SIZES)
    assert "The run was not evaluated." in text
    assert "images |" not in text


def test_windows_and_several_networks(about):
    about["input"] |= {"long_side": 120, "evaluate": {"mode": "sliding", "window": 64, "stride": None}}
    about["networks"] = ["network-1", "network-2"]
    text = card.text(about, SIZES)
    assert "windows of 64 px" in text
    assert "side * 120 / max(image.size)" in text
    assert "2 networks whose mean probability counts" in text
    assert 'from_pretrained("FOLDER/network-1")' in text


EVIL = (
    "a|b\n---\nlicense: mit\n```python\n<script>alert(1)</script> [x](javascript:1) ![i](http://x) **b** `c` \x1b[31m"
)


def test_names_of_users_are_nothing_but_text(about):
    about["classes"]["names"] = [EVIL, "x\r\n# head", "| | |"]
    about["run"] |= {"name": EVIL, "method": EVIL, "labels": {"labeled": 5, "partition": EVIL, "published": EVIL}}
    about["model"] = {"architecture": EVIL, "encoder": EVIL}
    evil = card.text(about, SIZES)
    lines = evil.splitlines()
    assert lines.count("---") == 2
    assert yaml.safe_load(evil.split("---\n")[1])["license"] is None
    assert sum(line.startswith("```") for line in lines) == 4  # two blocks of code, as for other names
    assert sum(line.startswith("# ") for line in evil.split("---\n")[2].splitlines()) == 1
    outside = re.sub(r"^```python\n.*?^```$", "", evil, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"\\.", "", outside)  # what is escaped
    for mark in ("<script", "](", "**", "\x1b"):
        assert mark not in outside
    pipes = [
        len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("| 0 |") or line.startswith("| 1 |")
    ]
    assert set(pipes) == {4}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cell wall", "cell wall"),
        ("a_b", r"a\_b"),
        ("\\|", r"\\\|"),
        ("a\u202eb\tc", "a b c"),
        ("größe", "größe"),
        (5, "5"),
    ],
)
def test_plain(text, shown):
    assert card.plain(text) == shown
