"""What a step yields reaches the log without waiting for the device."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from semiseg.data import Dataset
from semiseg.data.dataset import MaskCoding, Sample
from semiseg.engine.log import Log, NotFiniteError
from semiseg.engine.reporter import Silent
from semiseg.engine.runtime import Runtime
from semiseg.runs import Run
from semiseg.types import ClassTable, LoadedBatch, Losses


def test_the_host_never_waits_for_a_step(no_host_sync, tmp_path):
    runtime = Runtime("cpu")
    runtime.device = torch.device("meta")
    log = Log(Run(tmp_path), runtime, Dataset((), (), (), ClassTable.of(["a", "b"]), MaskCoding(2)), Silent(), 4, 0)
    scalar, image = torch.zeros((), device="meta"), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    mask, index = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.arange(2)
    loaded = LoadedBatch(image, mask, image, mask.bool(), index, index)
    losses = Losses(scalar, {"labeled": scalar}, torch.zeros(2, device="meta"))
    no_host_sync(log.step, 1, losses, loaded, True)
    assert [step.scalars.shape for step in log.steps] == [(3,)]


@pytest.mark.parametrize(("device", "losses"), [("cpu", [1.0, 2.0]), ("meta", [None, 1.0])])
def test_the_reporter_is_told_what_is_known(tmp_path, device, losses):
    """Of this step on a CPU, of the one before elsewhere."""
    running = log(tmp_path, 1)
    running.runtime.device = torch.device(device)
    told: list[dict[str, float]] = []
    running.reporter.on_step = told.append
    for step in (1, 2):
        value = torch.tensor(float(step))
        running.step(step, Losses(value, {"labeled": 2 * value}), batch(False), False)
    for step, (record, loss) in enumerate(zip(told, losses, strict=True), 1):
        known = {} if loss is None else {"loss": loss, "labeled": 2 * loss}
        assert record == {"step": step, "images_per_step": 4, **known}


def test_a_process_that_waited_for_days_has_a_pace(tmp_path):
    """Somebody has typed Ctrl-Z. 4 images in 8 days are no 0.00 images a second: tables divide by it."""
    running = log(tmp_path, 1)
    running.step(1, Losses(torch.tensor(1.0), {}), batch(False), False)
    running.clock -= 800_000
    running.flush(1, 0.1)
    (record,) = running.run.metrics("train")
    assert record["images_per_second"] == pytest.approx(5e-6, rel=1e-3)


class Shared(Runtime):
    """A process of two: what it gathers, the other has too, with indices that follow its own."""

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor + 2]) if self.world_size == 2 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


def log(folder: Path, processes: int) -> Log:
    """Of a run with labeled images l0, l1, ... and unlabeled images u0, u1, ..."""
    run, runtime = Run(folder / "run"), Shared("cpu")
    runtime.world_size = processes
    labeled, unlabeled = (tuple(Sample(f"{kind}{n}", Path(), None) for n in range(9)) for kind in "lu")
    run.start("", {}, [sample.name for sample in unlabeled])
    return Log(run, runtime, Dataset(labeled, unlabeled, (), ClassTable.of(["a", "b"]), MaskCoding(2)), Silent(), 4, 0)


def batch(unlabeled: bool) -> LoadedBatch:
    """Labeled images 1 and 0, unlabeled images 5 and 4."""
    image, mask = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    size = 2 if unlabeled else 0
    return LoadedBatch(image, mask, image[:size], mask[:size].bool(), torch.tensor([1, 0]), torch.tensor([5, 4])[:size])


@pytest.mark.parametrize("hardness", [torch.tensor([0.25, 0.5]), None])
@pytest.mark.parametrize(
    ("processes", "labeled", "unlabeled"),
    [(1, ["l1", "l0"], ["u5", "u4"]), (2, ["l1", "l0", "l3", "l2"], ["u5", "u4", "u7", "u6"])],
)
def test_a_bad_step_names_its_images(tmp_path, processes, labeled, unlabeled, hardness):
    """Whether or not the method yields a hardness of the unlabeled ones."""
    running = log(tmp_path, processes)
    with pytest.raises(NotFiniteError) as caught:
        running.step(3, Losses(torch.tensor(torch.nan), {}, hardness), batch(True), False)
    images = f"labeled {', '.join(labeled)}; unlabeled {', '.join(unlabeled)}"
    assert f"the loss of step 3 is nan; its images are {images}; lower optim.lr" in str(caught.value)
    event = running.run.events()[-1]
    assert (event["labeled"], event["unlabeled"]) == (labeled, unlabeled)


@pytest.mark.parametrize(("processes", "labeled"), [(1, "l1, l0"), (2, "l1, l0, l3, l2")])
def test_a_bad_step_of_a_method_without_unlabeled_images(tmp_path, processes, labeled):
    with pytest.raises(NotFiniteError, match=f"its images are labeled {labeled}; lower"):
        log(tmp_path, processes).step(3, Losses(torch.tensor(torch.inf)), batch(False), False)


@pytest.mark.parametrize(("processes", "names"), [(1, ["u5", "u4"]), (2, ["u5", "u4", "u7", "u6"])])
def test_hardness_is_that_of_the_unlabeled_images(tmp_path, processes, names):
    running = log(tmp_path, processes)
    running.step(1, Losses(torch.zeros(()), {}, torch.tensor([0.25, 0.5])), batch(True), False)
    running.flush(1, 0.1)
    assert list(running.run.hardness()) == [
        (1, name, hardness) for name, hardness in zip(names, [0.25, 0.5, 2.25, 2.5][: len(names)], strict=True)
    ]
