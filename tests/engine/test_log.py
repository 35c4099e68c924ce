"""What a step yields reaches the log without waiting for the device."""

import torch

from semiseg.data import Dataset
from semiseg.engine.log import Log
from semiseg.engine.reporter import Silent
from semiseg.engine.runtime import Runtime
from semiseg.runs import Run
from semiseg.types import ClassTable, LoadedBatch, Losses


def test_the_host_never_waits_for_a_step(no_host_sync, tmp_path):
    runtime = Runtime("cpu")
    runtime.device = torch.device("meta")
    log = Log(Run(tmp_path), runtime, Dataset((), (), (), ClassTable.of(["a", "b"])), Silent(), 4, 0)
    scalar, image = torch.zeros((), device="meta"), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    mask, index = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.arange(2)
    loaded = LoadedBatch(image, mask, image, mask.bool(), index, index)
    losses = Losses(scalar, {"labeled": scalar}, torch.zeros(2, device="meta"))
    no_host_sync(log.step, 1, losses, loaded, True)
    assert [step.scalars.shape for step in log.steps] == [(3,)]
