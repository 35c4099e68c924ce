import json
import os
from pathlib import Path

import pytest

from semiseg import runs
from semiseg.errors import UserError
from semiseg.runs import Run, write_atomically


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "first")
    run.start("seed: 0\n", {"torch": "2.14"}, ["a/1", "b ü"])
    return run


def train(step: int, loss: float = 1.0) -> dict:
    return {"kind": "train", "step": step, "loss": loss}


def val(step: int, miou: float) -> dict:
    return {"kind": "val", "step": step, "miou": miou}


def test_a_new_run(run):
    assert run.exists()
    assert run.open() is run
    assert run.config.read_text() == "seed: 0\n"
    assert run.environment() == {"torch": "2.14"}
    assert run.metrics("train") == run.metrics("val") == list(run.hardness()) == []
    assert run.last() is None
    assert run.best() is None
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.yaml",
        "environment.json",
        "events.jsonl",
        "hardness.csv",
        "metrics.jsonl",
        "unlabeled.txt",
    ]


def test_creating_the_object_touches_nothing(tmp_path):
    run = Run(tmp_path / "nowhere")
    assert not run.exists()
    assert not run.path.exists()


def test_a_run_starts_in_an_empty_directory_but_overwrites_nothing(tmp_path, run):
    (tmp_path / "empty").mkdir()
    Run(tmp_path / "empty").start("", {}, [])
    run.log(train(1))
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(UserError, match=r"runs/first.*not empty.*--out"):
        run.start("seed: 1\n", {}, [])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="not empty"):
        Run(tmp_path / "photos").start("", {}, [])
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_what_is_no_run_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        Run(tmp_path).open()
    with pytest.raises(UserError, match=r"config\.yaml"):
        Run(tmp_path / "nowhere").open()


def test_metrics_come_back_by_kind_in_order(run):
    records = [train(1, 0.1 + 0.2), val(1, 0.5), train(2), val(2, 0.75)]
    for record in records:
        run.log(record)
    assert run.metrics("train") == [records[0], records[2]]
    assert run.metrics("val") == [records[1], records[3]]
    assert run.metrics("other") == []
    assert run.last() == records[3]
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_hardness_comes_back_with_the_names_of_the_images(run):
    run.log_hardness([(1, 0, 0.123456), (1, 1, 1.0)])
    run.log_hardness([(2, 1, 0.0)])
    assert list(run.hardness()) == [(1, "a/1", 0.1235), (1, "b ü", 1.0), (2, "b ü", 0.0)]
    assert (run.path / "hardness.csv").read_text().splitlines() == [
        "step,index,hardness",
        "1,0,0.1235",
        "1,1,1.0000",
        "2,1,0.0000",
    ]


def test_the_best_is_the_earlier_of_equals(run):
    for record in (val(1, 0.5), val(2, 0.7), val(3, 0.7), val(4, 0.6)):
        run.log(record)
    assert run.best() == val(2, 0.7)
    assert run.last() == val(4, 0.6)


def test_rewinding_drops_what_was_logged_later(run):
    for record in (train(1), val(2, 0.5), train(3), val(4, 0.9)):
        run.log(record)
    run.log_hardness([(1, 0, 0.5), (2, 1, 0.5), (3, 0, 0.5), (4, 1, 0.5)])
    run.rewind(2)
    assert run.metrics("train") == [train(1)]
    assert run.best() == run.last() == val(2, 0.5)
    assert [step for step, _, _ in run.hardness()] == [1, 2]
    run.log(train(3, 7.0))  # as a resumed run does
    run.log_hardness([(3, 1, 0.25)])
    assert run.metrics("train") == [train(1), train(3, 7.0)]
    assert list(run.hardness())[-1] == (3, "b ü", 0.25)
    run.rewind(0)
    assert run.metrics("train") == run.metrics("val") == list(run.hardness()) == []


@pytest.mark.parametrize("torn", ['{"kind": "train", "st', '{"kind": "train", "step": 1}', "{"])
def test_rewinding_drops_a_torn_line(run, torn):
    run.log(train(1))
    run.log_hardness([(1, 0, 0.5)])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with (run.path / "hardness.csv").open("a") as file:
        file.write("1,0,0.")
    run.rewind(5)
    assert run.metrics("train") == [train(1)]
    assert list(run.hardness()) == [(1, "a/1", 0.5)]


def test_a_torn_line_does_not_keep_a_dead_run_from_being_read(run):
    run.log(val(1, 0.5))
    run.log_hardness([(1, 0, 0.5)])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "val", "st')
    with (run.path / "hardness.csv").open("a") as file:
        file.write("2,1")
    assert run.best() == run.last() == val(1, 0.5)
    assert list(run.hardness()) == [(1, "a/1", 0.5)]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "first\n")
    write_atomically(path, "second ü\n")
    assert path.read_text(encoding="utf-8") == "second ü\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_atomically(path, "third\n")
    assert path.read_text(encoding="utf-8") == "second ü\n"
    with pytest.raises(UserError, match=r"b\.txt: cannot be written"):
        write_atomically(tmp_path / "b.txt", "first\n")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_start_that_was_cut_short_is_made_again(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")

    def killed(path: Path, text: str) -> None:
        if path.name == "unlabeled.txt":
            raise KeyboardInterrupt
        path.write_text(text)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            run.start("seed: 0\n", {}, ["a"])
    assert not run.exists()
    run.start("seed: 0\n", {}, ["a"])
    assert run.exists()
    assert run.unlabeled() == ["a"]


def test_events(run):
    run.event("started", 0, processes=2)
    run.event("skipped", 7, files=["a.png: gone"])
    run.rewind(0)  # it keeps all events, also those of steps that were taken again
    started, skipped = run.events()
    assert (started["event"], started["step"], started["processes"]) == ("started", 0, 2)
    assert (skipped["step"], skipped["files"]) == (7, ["a.png: gone"])
    assert started["time"] <= skipped["time"]


@pytest.mark.parametrize(
    ("name", "added"),
    [
        *(("metrics.jsonl", text) for text in ("{", "[]", "nonsense", '{"step": "x"}', "[" * 10_000)),
        *(("hardness.csv", text) for text in ("{", "1,2,x", "1")),
        *(("environment.json", text) for text in ("{", "nonsense")),
    ],
)
def test_a_damaged_file_is_named(run, name, added):
    """Somebody edited it, or another program wrote there."""
    with (run.path / name).open("a") as file:
        file.write(f"{added}\n")
    read = {"metrics.jsonl": lambda: run.metrics("val"), "environment.json": run.environment}
    with pytest.raises(UserError, match=rf"{name}: is damaged") as caught:
        read.get(name, lambda: list(run.hardness()))()
    assert "\n" not in str(caught.value)
    (run.path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(No such file or directory\)"):
        read.get(name, lambda: list(run.hardness()))()


@pytest.mark.parametrize(("name", "added"), [("metrics.jsonl", "{"), ("metrics.jsonl", "3"), ("hardness.csv", "x,y,z")])
def test_a_damaged_log_is_not_gone_on_with(run, name, added):
    with (run.path / name).open("a") as file:
        file.write(f"{added}\n")
    with pytest.raises(UserError, match=rf"{name}: is damaged"):
        run.rewind(0)


def test_the_logs_are_synced(run, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(runs, "sync", synced.append)
    run.sync()
    assert [path.name for path in synced] == ["metrics.jsonl", "hardness.csv"]


def test_the_table_of_hardness_has_all_whole_rows(run):
    assert run.hardness_table().shape == (0, 3)
    run.log_hardness([(1, 1, 0.25), (2, 0, 1.0)])
    with (run.path / "hardness.csv").open("a") as file:
        file.write("3,1,0.")  # is being written
    assert run.hardness_table().tolist() == [[1, 1, 0.25], [2, 0, 1.0]]


@pytest.mark.parametrize("rows", ["1,2,0.5\n", "1,0\n", "1,0,x\n", "1,-1,0.5\n", "1,0.5,0.5\n"])
def test_a_damaged_table_of_hardness_is_one_line(run, rows):
    with (run.path / "hardness.csv").open("a") as file:
        file.write(rows)
    with pytest.raises(UserError, match=r"hardness\.csv: is damaged"):
        run.hardness_table()


def test_the_index_of_pictures_is_there_or_not(run):
    assert run.pictures_index() is None
    run.pictures.mkdir()
    (run.pictures / "index.json").write_text('{"step": 3')
    with pytest.raises(UserError, match=r"pictures/index\.json: is damaged"):
        run.pictures_index()
    (run.pictures / "index.json").write_text('{"step": 3}')
    assert run.pictures_index() == {"step": 3}
