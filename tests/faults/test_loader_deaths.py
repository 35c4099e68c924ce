"""Loader processes that die: new ones begin with the next step, and the result does not change."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from conftest import TRAIN
from torch.utils.data import dataloader
from torch.utils.data._utils import worker

from semiseg import data
from semiseg.augment.views import Views
from semiseg.data import restart
from semiseg.data.loader import eval_loader, train_loader
from semiseg.errors import UserError
from semiseg.recipe.load import validate

Loaders = Callable[..., tuple[data.Dataset, Any]]


def found_soon() -> None:
    """Makes torch check for dead loader processes every 0.2 s instead of every five."""
    dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    before = dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__
    found_soon()
    yield
    dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = before


@pytest.fixture
def dataset(recipe) -> Callable[[int], tuple[data.Dataset, Any]]:
    """dataset(workers) -> the scenes of the session and their data section."""

    def dataset(workers: int) -> tuple[data.Dataset, Any]:
        settings = validate(recipe(data={"workers": workers}), "recipe").data
        return data.load(settings), settings

    return dataset


def test_a_worker_says_nothing_when_the_training_process_breaks_off(capsys):
    """Ctrl-C may end it while it fetches the memory of a batch. Other errors of the worker's threads are shown."""
    for error in (EOFError("the connection ended"), ConnectionResetError(104, "reset"), ValueError("of our own")):
        restart._say_unless_broken_off(type(error), error, None)
    assert capsys.readouterr().err == "ValueError: of our own\n"


def kill_all() -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


def batches(dataset: data.Dataset, settings: Any, told: list[int], kill_before: int | None = None) -> list[Any]:
    loader = train_loader(
        dataset, settings, Views(), batch_size=2, seed=0, start=3, num_steps=12,
        on_restart=lambda step, reason: told.append(step),
    )  # fmt: skip
    found = []
    for number, batch in enumerate(loader, 3 + 1):
        found.append(batch)
        if number == kill_before:
            kill_all()
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_go_on_where_they_were(dataset, workers):
    told: list[int] = []
    expected = batches(*dataset(0), told)
    assert told == []
    found = batches(*dataset(workers), told, kill_before=5)
    assert len(told) == 1
    assert 5 <= told[0] <= 5 + 2 * workers  # what was loaded ahead is not lost
    assert len(found) == len(expected) == 9
    for one, other in zip(found, expected, strict=True):
        assert harness.differences(vars(one), vars(other)) == []


@pytest.mark.parametrize("when", ["during", "between"])
def test_an_evaluation_sees_every_image_once(dataset, when):
    """The loader keeps its processes between evaluations, so they may also die between two evaluations."""
    scenes, settings = dataset(2)
    told: list[int] = []
    loader = eval_loader(scenes.labeled, scenes, settings, on_restart=lambda position, reason: told.append(position))
    for turn in range(3):
        seen = []
        for item in loader:
            seen.append(item.index)
            if turn == 1 and when == "during" and len(seen) == 1:
                kill_all()
        assert seen == list(range(6)), turn
        if turn == 0 and when == "between":
            kill_all()
    assert len(told) == 1


def test_a_run_does_not_notice(here, semiseg, whole):
    folder = here(data={"workers": 2})

    def prepare() -> None:
        found_soon()
        harness.at("semiseg.engine.step.make_batch", 3, kill_all)
        harness.at("semiseg.engine.evaluate.add_confusion", 6, kill_all)  # in the second evaluation

    ended = semiseg(TRAIN, prepare)
    assert (ended.code, ended.err) == (0, "")
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []
    told = [event for event in harness.Run(folder / "run").events() if event["event"] == "loader restarted"]
    assert len(told) >= 2
    assert 2 <= told[0]["step"] <= 7
    assert all("exited unexpectedly" in event["reason"] for event in told)
    assert ended.out.count("loader processes died and were started again") == len(told)


def test_those_that_die_again_and_again(here, semiseg, whole):
    folder = here(data={"workers": 1})

    def around(get_item: Callable[..., Any]) -> Callable[..., Any]:
        def dying(self: Any, step: int) -> Any:
            if step == 7:
                harness.die()
            return get_item(self, step)

        return dying

    def prepare() -> None:
        found_soon()
        harness.wrap("semiseg.data.loader._TrainBatches.__getitem__", around)

    ended = semiseg(TRAIN, prepare)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "data.workers: loader processes died 3 times in a row" in ended.err
    saved = harness.newest_step(folder / "run")
    assert 5 <= saved <= 7  # what it had loaded may have died with it
    assert f"; step {saved} is saved; the same command goes on" in ended.err
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def parent_missed_soon() -> None:
    """Loader processes of torch look whether their parent lives every five seconds; here every 0.2."""
    worker.MP_STATUS_CHECK_INTERVAL = 0.2


def test_no_process_is_left_behind_by_one_that_was_killed(here):
    folder = here(data={"workers": 2})
    command = harness.Command(TRAIN, parent_missed_soon)
    harness.until(lambda: harness.steps_logged(folder / "run") >= 3)
    command.send(signal.SIGKILL)
    harness.until(lambda: not command.running())
    harness.until(lambda: loader_processes(command.pid) == [], 20)
    command.wait()


def loader_processes(group: int) -> list[str]:
    """Those of a process group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


def test_a_loader_never_hangs_on_death_at_a_random_moment(dataset):
    """A process may also die while it passes an item to another process."""
    scenes, settings = dataset(2)
    expected = [batch.index.tolist() for batch in batches(*dataset(0), [])]
    moments = torch.rand(6, generator=torch.Generator().manual_seed(0)) * 0.05
    for moment in moments.tolist():
        loader = iter(train_loader(scenes, settings, Views(), batch_size=2, seed=0, start=3, num_steps=12))
        found = [next(loader).index.tolist()]
        time.sleep(moment)
        kill_all()
        found += [batch.index.tolist() for batch in loader]
        assert found == expected


def test_errors_of_the_loader_itself_are_not_taken_for_deaths(dataset, monkeypatch):
    scenes, settings = dataset(1)

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("semiseg.data.loader._TrainBatches._load", fail)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        batches(scenes, settings, [])
    assert not isinstance(caught.value, UserError)


def test_a_batch_that_cannot_be_sent_is_not_waited_for(here, semiseg):
    """A full /dev/shm. torch would print a traceback for each batch, and wait without end."""
    folder = here(data={"workers": 2})

    def prepare() -> None:
        found_soon()

        def around(reduce: Callable[..., Any]) -> Callable[..., Any]:
            def full(batch: Any) -> Any:
                if batch.labeled_index.sum() >= 0 and (folder / "run" / "checkpoints").exists():
                    raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)")
                return reduce(batch)

            return full

        harness.wrap("semiseg.types.LoadedBatch.__reduce__", around)

    ended = semiseg(TRAIN, prepare)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "data.workers: loader processes died 3 times in a row" in ended.err
    assert "/dev/shm has" in ended.err
    assert "is saved; the same command goes on" in ended.err
    assert harness.newest_step(folder / "run") >= 4


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_batch(here, semiseg, signum):
    folder = here(data={"workers": 1}, engine={"log_every": 1})

    def prepare() -> None:
        torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # s that torch waits for a loader process to end
        harness.at("semiseg.data.loader._TrainBatches.__getitem__", 8, lambda: time.sleep(600))

    command = harness.Command(TRAIN, prepare)
    harness.until(lambda: harness.steps_logged(folder / "run") == 7)
    time.sleep(0.2)
    command.send(signum)
    ended = command.wait(20)
    assert ended.code == 128 + signum
    assert (
        ended.err == f"semiseg: run: stopped by {signum.name} after step 7, which is saved; the same command goes on\n"
    )
    assert harness.newest_step(folder / "run") == 7
    assert semiseg(TRAIN).code == 0
