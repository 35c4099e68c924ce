"""However many processes and micro-batches share the batches of a run, it is the same run.

In these tests without batch norm, whose statistics are those of a part.
"""

import copy
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from semiseg.runs import Run

CLOSE = 1e-6  # sums in another order
MEASURED = ("images_per_second", "waited", "peak_memory_mb")


@pytest.fixture(scope="module")
def recipes(gentle) -> dict[str, Any]:
    standard = {"cutmix": "standard", "boxes": "official", "extra_weak_forward": True}
    return {
        "supervised": gentle("supervised"),
        "imas": gentle("imas"),
        "standard": gentle("imas", **standard),
        "hardness every third step": gentle("imas", hardness_every=3, threshold=0.6),
        "second crops": gentle("cac", threshold=0.3, cell=4, warmup=0, negatives=9, memory=30, channels=8),
    }


@pytest.fixture(scope="module")
def alone(processes, recipes, tmp_path_factory) -> Path:
    """Folder of the runs that one process trained."""
    out = tmp_path_factory.mktemp("alone")
    (ended,) = processes(1, "train", recipes=recipes, out=str(out))
    assert (ended.code, ended.err) == (0, "")
    return out


def saved(run: Path, file: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000020" / f"{file}.safetensors")


def difference(one: Path, other: Path, file: str = "model") -> float:
    """The largest difference of two runs' weights, student's and teacher's, or of their momenta."""
    left, right = saved(one, file), saved(other, file)
    assert left.keys() == right.keys()
    return max((left[key] - right[key]).abs().max().item() for key in left)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """The scores of each network beside the other values."""
    networks = record.get("networks", {})
    each = {f"{network}.{name}": value for network, scores in networks.items() for name, value in scores.items()}
    return {name: value for name, value in record.items() if name != "networks"} | each


def assert_same_run(one: Path, other: Path) -> None:
    assert difference(one, other) < CLOSE
    assert difference(one, other, "optimizer") < 10 * CLOSE  # the sum of ten gradients
    for kind in ("train", "val"):
        left, right = ([flat(record) for record in Run(path).metrics(kind)] for path in (one, other))
        assert len(left) == len(right) > 0
        for record, its in zip(left, right, strict=True):
            assert record.keys() == its.keys()
            for name in record.keys() - set(MEASURED):
                assert record[name] == pytest.approx(its[name], abs=3 * CLOSE), name
    assert_same_hardness(Run(one), Run(other))


def assert_same_hardness(one: Run, other: Run) -> None:
    rows, its = list(one.hardness()), list(other.hardness())
    assert [(step, name) for step, name, _ in rows] == [(step, name) for step, name, _ in its]
    assert [hardness for _, _, hardness in rows] == pytest.approx([hardness for _, _, hardness in its], abs=1.01e-4)


def test_the_run_alone(alone):
    """Checks that the runs of one process are fit to compare with."""
    for name, distinct in (("supervised", 0), ("imas", 40), ("standard", 40), ("hardness every third step", 40)):
        run = Run(alone / name)
        rows = [row[2] for row in run.hardness()]
        assert len(rows) == 20 * 12 * bool(distinct)
        assert len(set(rows)) >= distinct
        if distinct:
            assert {record["mixed"] for record in run.metrics("train")} == {0, 1}
    assert {key.split(".")[0] for key in saved(alone / "imas", "model")} == {"student", "teacher"}
    assert len(saved(alone / "imas", "optimizer")) == len(saved(alone / "supervised", "model"))
    assert difference(alone / "imas", alone / "standard") > 100 * CLOSE
    assert all(
        record["unlabeled"] > 0 and record["learning"] > 0.3 for record in Run(alone / "second crops").metrics("train")
    )


@pytest.mark.parametrize(("count", "micro"), [(2, None), (3, None), (2, 3)])
def test_the_same_run(processes, recipes, alone, tmp_path, count, micro):
    shared = copy.deepcopy(recipes)
    for values in shared.values():
        values["engine"]["micro_batch_size"] = micro
    group = processes(count, "train", recipes=shared, out=str(tmp_path))
    assert [(ended.code, ended.out, ended.err) for ended in group] == [(0, "", "")] * count
    for name in recipes:
        assert_same_run(alone / name, tmp_path / name)
        assert [event["processes"] for event in Run(tmp_path / name).events()] == [count]


@pytest.fixture(scope="module")
def sparse(gentle) -> dict[str, Any]:
    """The recipe of the adaptive run, with a record every third step."""
    return {"imas": gentle("imas", {"log_every": 3})}


@pytest.fixture(scope="module")
def stopped(processes, sparse, tmp_path_factory) -> dict[int, Path]:
    """Folders of runs that one and two processes had to stop in the middle, between two checkpoints and records."""
    folders = {}
    for count in (1, 2):
        folders[count] = tmp_path_factory.mktemp(f"stopped{count}")
        trouble = {"step": 13, "rank": count - 1, "signum": signal.SIGTERM}
        group = processes(count, "train", recipes=sparse, out=str(folders[count]), trouble=trouble)
        assert all("stopped by SIGTERM after step 14, which is saved" in ended.err for ended in group)
        assert [path.name for path in (folders[count] / "imas" / "checkpoints").glob("step-*")] == ["step-00000014"]
    return folders


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (2, 3)])
def test_another_number_of_processes_goes_on(processes, sparse, alone, stopped, tmp_path, before, after):
    shutil.copytree(stopped[before], tmp_path, dirs_exist_ok=True)
    group = processes(after, "train", recipes=sparse, out=str(tmp_path))
    assert [(ended.code, ended.err) for ended in group] == [(0, "")] * after
    run = Run(tmp_path / "imas")
    assert difference(run.path, alone / "imas") < CLOSE
    assert difference(run.path, alone / "imas", "optimizer") < 10 * CLOSE
    assert_same_hardness(run, Run(alone / "imas"))
    assert [record["step"] for record in run.metrics("train")] == [3, 6, 9, 10, 12, 15, 18, 20]
    told = [(event["event"], event["step"], event.get("processes")) for event in run.events()]
    assert told == [("started", 0, before), ("stopped", 14, None), ("resumed", 14, after)]
