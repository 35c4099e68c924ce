"""What the processes of a run have in common, and what each does alone."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semiseg import api
from semiseg.data.order import Shuffled
from semiseg.runs import Run

MEASURED = ("images_per_second", "waited", "peak_memory_mb")
ENGINE = {"steps": 7, "batch_size": 4, "micro_batch_size": 1, "log_every": 2, "eval_every": 3, "save_every": 2}


@pytest.fixture(scope="module")
def values(recipe) -> dict[str, Any]:
    """A recipe with batch norm."""
    return recipe("imas", engine=ENGINE)


@pytest.fixture(scope="module")
def file(values, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def watched(processes, values, tmp_path_factory) -> dict[int, tuple[list[dict[str, Any]], Run]]:
    """The images and weights of one process and of each of two processes in training, and the files of their runs."""
    runs = {}
    for count in (1, 2):
        out = tmp_path_factory.mktemp("watched") / "run"
        group = processes(count, "watched", recipe=values, out=str(out))
        assert [(ended.code, ended.out, ended.err) for ended in group] == [(0, "", "")] * count
        runs[count] = [ended.found for ended in group], Run(out)
    return runs


def left_behind(run: Run) -> dict[str, Any]:
    """Reads all files of a run, without times and memory."""
    left: dict[str, Any] = {"hardness": (run.path / "hardness.csv").read_text()}
    for kind in ("train", "val"):
        left[kind] = [{name: record[name] for name in record if name not in MEASURED} for record in run.metrics(kind)]
    return left | {str(file): (run.path / file).read_bytes() for file in tensor_files(run)}


def tensor_files(run: Run) -> list[Path]:
    return sorted(file.relative_to(run.path) for file in run.checkpoints.glob("*/*.safetensors"))


def whose_turn(scenes: Path, stream: str, turn: int) -> str:
    """Name of the image that is number `turn` in the whole run."""
    names = (scenes / "splits" / f"{stream}.txt").read_text().split()
    return names[Shuffled(len(names), 0, stream).index(turn)]


# while training


def test_all_processes_hold_the_same_weights_and_statistics_after_every_step(watched):
    (first, second), _ = watched[2]
    assert first["states"] == second["states"]
    assert len(first["states"]) == 7
    for network in ("student", "teacher"):
        for kind in ("running_mean", "running_var", "num_batches_tracked", "conv_stem.weight"):
            keys = [key for key in first["states"][0] if key.startswith(network) and key.endswith(kind)]
            assert keys
            assert all(first["states"][0][key] != first["states"][1][key] for key in keys)  # it moves


def test_batch_statistics_are_the_mean_over_the_processes(processes):
    group = processes(3, "batch_statistics")
    assert [ended.found for ended in group] == [[1, 1, 10, 10, 1, 10]] * 3


def test_each_image_is_augmented_as_in_a_single_process(watched):
    (alone,), _ = watched[1]
    shares, _ = watched[2]
    assert len(alone["strong"]) == 7 * 4
    for step in range(7):
        whole = slice(4 * step, 4 * step + 4)
        images = [image for share in shares for image in share["strong"][2 * step : 2 * step + 2]]
        assert [index for share in shares for index in share["index"][2 * step : 2 * step + 2]] == alone["index"][whole]
        assert all(torch.equal(one, other) for one, other in zip(images, alone["strong"][whole], strict=True))


def test_nothing_is_logged_twice(watched):
    for count in (1, 2):
        run = watched[count][1]
        assert [record["step"] for record in run.metrics("train")] == [2, 3, 4, 6, 7]
        assert [record["step"] for record in run.metrics("val")] == [3, 6, 7]
        steps = [step for step, _, _ in run.hardness()]
        assert steps == [step for step in range(1, 8) for _ in range(4)]
        assert [(event["event"], event["processes"]) for event in run.events()] == [("started", count)]
        assert all(100 < record["peak_memory_mb"] < 10_000 for record in run.metrics("train"))


def test_a_network_with_parts_that_have_no_influence(processes, recipe, tmp_path):
    values = recipe(
        "imas", model={"encoder": "resnet18", "options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}}
    )
    group = processes(2, "train", recipes={"run": values}, out=str(tmp_path), small=False)
    assert [(ended.code, ended.err) for ended in group] == [(0, "")] * 2


def test_a_dry_run_is_told_once_and_writes_nothing(processes, file, tmp_path):
    arguments = ["train", file, "--out", str(tmp_path / "run"), "--dry-run", "--set", "engine.micro_batch_size=2"]
    first, second, agent = processes(2, "command", agent=True, arguments=arguments)
    assert (agent.code, first.err, second.out, second.err) == (0, "", "", "")
    assert first.out.count("dry run") == first.out.count("room on disk") == 1
    assert not list(tmp_path.iterdir())


# evaluation


@pytest.fixture(scope="module")
def lists(scenes, tmp_path_factory) -> list[list[str]]:
    """Settings that have a run evaluated on 5, 4 and 2 images."""
    folder = tmp_path_factory.mktemp("lists")
    labeled, val = ((scenes / "splits" / f"{name}.txt").read_text().split() for name in ("labeled", "val"))
    names = {"labeled": labeled[:1], "5": [*val, labeled[1]], "4": val, "2": val[2:]}
    for name, images in names.items():
        (folder / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))
    return [[f"data.labeled={folder}/labeled.txt", f"data.val={folder}/{size}.txt"] for size in (5, 4, 2)]


@pytest.mark.parametrize("count", [2, 3])
def test_every_image_is_evaluated_once(processes, trained, lists, count):
    alone = [vars(api.evaluate(trained, overrides=overrides)) for overrides in lists]
    assert len({scores["accuracy"] for scores in alone}) == 3
    group = processes(count, "evaluations", run=str(trained), lists=lists)
    assert [ended.err for ended in group] == [""] * count
    for number, size in enumerate((5, 4, 2)):
        assert sorted(index for ended in group for index in ended.found[number][1]) == list(range(size))
        for ended in group:
            assert str(ended.found[number][0]) == str(alone[number])  # nan equals nan


def test_evaluate_prints_one_table(processes, trained):
    first, second, agent = processes(2, "command", agent=True, arguments=["evaluate", str(trained)])
    assert (agent.code, first.err, second.out, second.err) == (0, "", "", "")
    miou = Run(trained).last()["miou"]
    assert first.out.count("mIoU") == 1
    assert f"{100 * miou:.2f}" in first.out


# mistakes


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("count", "micro", "says"),
    [
        (3, "null", "engine.batch_size: 4 is no multiple of the 3 processes; use a multiple, "
                    "or another number of processes"),
        (2, 4, "engine.micro_batch_size: 4 does not divide the 2 images that a process has a step "
               "(engine.batch_size 4 over 2 processes); use a divisor of it"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_dealt_out(processes, file, tmp_path, count, micro, says, options):
    arguments = ["train", file, "--out", str(tmp_path / "run"), "--set", f"engine.micro_batch_size={micro}", *options]
    *group, agent = processes(count, "command", agent=True, arguments=arguments)
    assert [ended.err for ended in group] == [f"semiseg: {says}\n"] + [""] * (count - 1)
    assert [len(ended.out.splitlines()) for ended in group] == [1] + [0] * (count - 1)  # device and precision
    assert agent.code == 1
    assert "exitcode  : 2" in agent.err
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_only_if_its_batch_can_be_dealt_out(processes, file, watched, tmp_path):
    run = shutil.copytree(watched[1][1].path, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = ["train", file, "--out", str(run), "--set", "data.workers=1", "--set", "engine.micro_batch_size=1"]
    *group, _ = processes(3, "command", agent=True, arguments=arguments)
    assert [ended.err[:36] for ended in group] == ["semiseg: engine.batch_size: 4 is no ", "", ""]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_mistake_is_told_once_even_if_the_first_process_finds_it_last(processes, tmp_path):
    arguments = ["train", str(tmp_path / "none.yaml")]
    first, second, agent = processes(2, "command", agent=True, arguments=arguments, late=0)
    assert (
        first.err
        == f"semiseg: {tmp_path}/none.yaml: there is no such recipe; name a file, or one that `semiseg recipes` lists\n"
    )
    assert (second.out, second.err) == ("", "")
    assert agent.code == 1


def test_what_is_wrong_for_one_process_alone_it_says_itself(processes, file, tmp_path):
    first, second = processes(2, "gone_astray", recipe=file, out=str(tmp_path / "run"))
    assert (first.code, second.code) == (2, 2)
    assert second.err == "semiseg: process 1 of 2: photos: no such folder\n"
    assert first.err.startswith("semiseg: lost another process of this run;")
    assert first.err.count("\n") == 1


# troubles


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others(processes, file, watched, tmp_path, rank):
    """In the middle of a step; the same command goes on, and nothing shows."""
    run = Run(tmp_path / "run")
    arguments = ["train", file, "--out", str(run.path)]
    trouble = {"step": 5, "rank": rank, "signum": signal.SIGKILL}
    group = processes(2, "command", arguments=arguments, trouble=trouble)
    killed, survivor = group[rank], group[1 - rank]
    assert killed.code == -signal.SIGKILL
    assert survivor.code == 2
    assert survivor.at - killed.at < 20
    name = "process 1 of 2: " if rank == 0 else ""
    says = "lost another process of this run; the same command goes on from the last checkpoint"
    assert survivor.err == f"semiseg: {name}{says}\n"
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-00000004"]
    assert [ended.code for ended in processes(2, "command", arguments=arguments)] == [0, 0]
    assert left_behind(run) == left_behind(watched[2][1])


def test_sigterm_to_the_launcher_saves(processes, file, watched, tmp_path):
    run = Run(tmp_path / "run")
    arguments = ["train", file, "--out", str(run.path)]
    trouble = {"step": 4, "rank": 0, "signum": signal.SIGTERM, "to_parent": True}
    first, second, agent = processes(2, "command", agent=True, arguments=arguments, trouble=trouble)
    assert agent.code == 1
    stopped = run.events()[-1]
    assert (stopped["event"], stopped["step"]) == ("stopped", 5)
    assert (
        first.err == f"semiseg: {run.path}: stopped by SIGTERM after step 5, which is saved; the same command goes on\n"
    )
    assert second.err == ""
    first, second, agent = processes(2, "command", agent=True, arguments=arguments)
    assert (agent.code, second.out, second.err) == (0, "", "")
    assert first.out.count("mIoU, last") == 1
    assert left_behind(run) == left_behind(watched[2][1])


def test_an_image_that_one_process_cannot_read(processes, recipe, scenes, tmp_path):
    """The third image of the second process; once it is mended, the same command goes on."""
    root = shutil.copytree(scenes, tmp_path / "scenes")
    (image,) = root.glob(f"images/{whose_turn(root, 'unlabeled', 5)}.*")
    content = image.read_bytes()
    values = recipe("imas", data={"root": str(root)}, engine={"steps": 4, "save_every": 1})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    trouble = {"step": 1, "rank": 1, "spoil": str(image)}
    first, second = processes(2, "command", arguments=arguments, trouble=trouble)
    assert (first.code, second.code) == (2, 2)
    assert second.err.startswith(f"semiseg: process 1 of 2: {image}: ")
    assert first.err.startswith("semiseg: lost another process of this run; the same command goes on")
    assert first.err.count("\n") == second.err.count("\n") == 1
    image.write_bytes(content)
    assert [ended.code for ended in processes(2, "command", arguments=arguments)] == [0, 0]
    run = Run(tmp_path / "run")
    assert [(event["event"], event["step"]) for event in run.events()] == [
        ("started", 0),
        ("failed", 2),
        ("resumed", 2),
    ]
    assert [record["step"] for record in run.metrics("train")] == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_stops_all_at_the_same_step(processes, file, scenes, tmp_path):
    run = Run(tmp_path / "run")
    arguments = ["train", file, "--out", str(run.path)]
    trouble = {"step": 4, "rank": 1, "nan": True}
    first, second = processes(2, "command", arguments=arguments, patience=0.1, trouble=trouble)
    (event,) = [event for event in run.events() if event["event"] == "not finite"]
    labeled, unlabeled = (
        [whose_turn(scenes, kind, turn) for turn in range(16, 20)] for kind in ("labeled", "unlabeled")
    )
    assert (event["step"], event["labeled"], event["unlabeled"]) == (5, labeled, unlabeled)
    images = f"labeled {', '.join(labeled)}; unlabeled {', '.join(unlabeled)}"
    assert first.err.startswith(f"semiseg: {run.path}: the loss of step 5 is nan; its images are {images}; ")
    assert first.err.count("\n") == 1
    assert second.err == first.err.replace("semiseg: ", "semiseg: process 1 of 2: ")  # had it not been ended by then
    assert (first.code, second.code) == (2, 2)
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-00000004"]
