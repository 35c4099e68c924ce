import json
import time
from pathlib import Path

import common
import pytest
import torch
from pydantic import ValidationError

from semiseg.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> common.Settings:
    return common.arguments("Title.", ["--tiny", "--out", str(tmp_path), "--threads", str(torch.get_num_threads())])


def test_median_and_interquartile_range_are_those_of_the_values():
    assert common.summary([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0)
    assert common.summary([2.0]) == (2.0, 0.0)


def test_growth_is_the_exponent_of_a_power_law():
    assert common.slope([(1, 3.0), (2, 12.0), (4, 48.0)]) == pytest.approx(2)
    assert common.slope([(0, 9.0), (1, 3.0), (2, 6.0)]) == pytest.approx(1)  # no logarithm of 0 workers
    assert common.slope([(5, 1.0)]) == 0


def test_candidates_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    found = common.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in found.values()] == [2, 2]


def test_time_is_that_of_the_call():
    assert 0.01 <= common.timed(lambda: time.sleep(0.01), CPU) < 1


def test_peak_memory_sees_what_is_gone_afterwards():
    common.settle(CPU)  # a run in this process may have had the C library keep what it freed
    before = common.peak_memory_mb(lambda: None, CPU)
    peak = common.peak_memory_mb(lambda: torch.ones(20_000_000).sum(), CPU)
    assert 70 < peak - before < 120
    common.settle(CPU)
    assert common.peak_memory_mb(lambda: None, CPU) < before + 20


def test_a_record_comes_back_as_it_was_written(run: common.Settings):
    results = common.Results(run)
    results.time({"a": lambda: None, "b": lambda: None}, usual=3)
    results.ratio("a / b", "a", "b")
    results.grow("cost", "px", {1: lambda: None, 4: lambda: None}, 3)
    results.profile({"first": [1.0, 3.0], "second": [6.0, 6.0]})
    record = results.record("suite", "title")
    path = common.write(record, run)
    assert path.name == f"suite--{run.machine}.json"
    assert common.read(run.out) == [record]
    assert [phase.share for phase in record.phases] == [0.25, 0.75]
    assert record.ratios[0].value == record.figures[0].median / record.figures[1].median


def test_a_course_has_no_exponent(run: common.Settings):
    results = common.Results(run)
    results.growth_of("correlation", "step", "1", {1: [0.5], 2: [-0.5]}, power_law=False)  # -0.5 has no logarithm
    assert results.growth[0].exponent is None
    assert [point.median for point in results.growth[0].points] == [0.5, -0.5]


def test_a_key_that_is_not_known_is_refused(run: common.Settings):
    values = common.Results(run).record("suite", "title").model_dump()
    with pytest.raises(ValidationError, match="surplus"):
        common.Record.model_validate(values | {"surplus": 1})
    with pytest.raises(ValidationError, match="commit"):
        common.Record.model_validate({key: value for key, value in values.items() if key != "commit"})
    json.dumps(values)


def test_work_of_others_is_what_this_process_did_not_do():
    assert common.share_of_others((0, 0, 0), (100, 60, 50)) == 0.1
    assert common.share_of_others(None, (1, 1, 1)) is None
    assert common.cpu_seconds() is None or common.cpu_seconds()[0] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peer", "imas"], "NAME=PATH"),
        (["--peer", "other=/tmp"], "NAME=PATH"),
        (["--peer", "imas=/no/such/folder"], "no folder"),
        (["--data", "/no/such/folder"], "JPEGImages"),
        (["--tiny"], "--out"),
        (["--device", "cuda:99"], "no such device"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        common.arguments("Title.", words)
    assert "\n" not in str(caught.value)


def test_main_prints_the_mistake_and_leaves_with_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x.py", "--peer", "imas"])
    with pytest.raises(SystemExit) as caught:
        common.main("suite", "Title.", lambda run, results: None)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("suite: --peer imas: ")
