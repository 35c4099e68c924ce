"""docs/results.md is what its command writes from the committed comparisons."""

import json

import comparisons


def test_the_page_is_up_to_date():
    assert comparisons.PAGE.read_text(encoding="utf-8") == comparisons.page(comparisons.FOLDER)


def test_a_section_by_hand():
    run = {"last": 0.5, "best": 0.6, "iou": [0.5, None], "step_s": 0.25}
    comparison = {
        "classes": ["sky", "tree"],
        "protocol": {
            "labeled images": 3, "unlabeled images": 4, "validation images": 5, "validation list": "val.txt",
            "partition": "ab", "steps": 10, "batch size": 2,
        },
        "made": {"commit": ["abc"], "precision": ["fp32"], "machine": ["a CPU"]},
        "rows": [
            {"name": "first", "runs": {"0": run}, "last": {"mean": 0.5, "deviation": None}, "gain": None,
             "best": {"mean": 0.6, "deviation": None}, "lost": {"mean": 0.0}},
            {"name": "other", "runs": {"0": run, "1": run}, "last": {"mean": 0.52, "deviation": 0.01},
             "best": {"mean": 0.6, "deviation": 0.0}, "gain": {"mean": 0.02, "half": 0.13}, "lost": {"mean": 0.5}},
            {"name": "not run", "runs": {}, "last": None, "best": None, "gain": None, "lost": None},
        ],
    }  # fmt: skip
    lines = comparisons.section({"title": "T", "text": "Why.", "comparison": comparison}).splitlines()
    assert lines[:3] == ["## T", "", "Why."]
    assert lines[6:9] == [
        "| `first` | 0 | 50.0 | 60.0 |  | 0.0 | 0.25 | 50.0 | - |",
        "| `other` | 0, 1 | 52.0 ± 1.0 | 60.0 ± 0.0 | +2.0 ± 13.0 | 0.5 | 0.25 | 50.0 | - |",
        "",
    ]


def test_committed_comparisons_name_no_place_on_a_machine():
    for path in comparisons.FOLDER.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/home" not in text
        assert "/root" not in text
        assert json.loads(text)["comparison"]["rows"]
