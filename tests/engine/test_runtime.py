import copy
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg import methods, optim
from semiseg.engine.optimizers import Optimizers
from semiseg.engine.runtime import Runtime, return_freed_memory
from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.models import build
from semiseg.types import ClassTable


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have their own rules")
def test_freed_memory_is_returned_if_asked_for():
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    Runtime("cpu")  # from here on freed memory is kept
    blocks = [bytearray(2**20) for _ in range(100)]
    del blocks
    before = resident_mb()
    return_freed_memory()
    assert resident_mb() < before - 50


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device")
def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match=r"engine.device: cuda is not available .* use auto or cpu"):
        Runtime("cuda")


def test_a_precision_that_the_device_lacks():
    with pytest.raises(UserError, match=r"engine.precision: fp16 needs a GPU; use bf16 or fp32"):
        Runtime("cpu", "fp16")


def test_one_process():
    runtime = Runtime("cpu")
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert runtime.device == torch.device("cpu")
    assert torch.equal(runtime.gather(torch.tensor([1, 2])), torch.tensor([1, 2]))
    assert runtime.sum(torch.tensor(3)) == 3
    assert runtime.gather_lists([1, 2]) == [1, 2]
    assert runtime.name == ""
    assert 10 < runtime.peak_memory_mb() < 1e6
    assert runtime.scaler_state() == {}


def test_runs_of_several_precisions_in_turn():
    for precision, mixed in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        assert Runtime("cpu", precision).accelerator.mixed_precision == mixed


def test_the_device_is_chosen_again():
    """Accelerate keeps the first device of a process. A later runtime must not use it."""
    from accelerate.state import PartialState

    Runtime("cpu")
    PartialState._shared_state["device"] = torch.device("meta")
    assert Runtime("cpu").device == torch.device("cpu")


def test_a_launcher_does_not_scale_the_loss(monkeypatch):
    """Accelerate divides it by the gradient accumulation of its own configuration; ours is engine.micro_batch_size."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = nn.Parameter(torch.ones(()))
    Runtime("cpu").backward(3 * weight)
    assert weight.grad == 3


# batch norm over several GPUs


@pytest.fixture
def lite() -> SemiMethod:
    """iMAS on EfficientNet-Lite, whose norm layers hold their activations."""
    model = build.Config(
        architecture="unet", encoder="tu-tf_efficientnet_lite0", weights=None, options={"decoder_channels": [8] * 5}
    )

    def built(outputs: int | None = None, channels: int = 3, other: build.Config | None = None) -> build.Network:
        return build.build(other or model, outputs or 3, channels)

    return methods.load("imas")(methods.load("imas").Config(), built, ClassTable.of(("a", "b", "c")))


def prepared(method: SemiMethod, device: str, processes: int) -> Optimizers:
    """The optimizers of a method after it was prepared for so many devices of this kind."""
    runtime = Runtime("cpu")
    runtime.device, runtime.world_size = torch.device(device), processes
    runtime.accelerator.prepare = lambda given: given
    optimizers = Optimizers(optim.Config(), method)
    assert runtime.prepare(method.train()) is method
    return optimizers


def norms(method: SemiMethod) -> list[_BatchNorm]:
    return [module for module in method.modules() if isinstance(module, _BatchNorm)]


def test_batch_norm_is_synchronized_on_several_gpus(lite):
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for norm in norms(lite):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
        before, count = [network.eval()(image) for network in (lite.student, lite.teacher)], len(norms(lite))
        wrong = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(lite.student)).eval()(image)
    trained = {id(p) for p in lite.student.parameters() if p.requires_grad}
    optimizers = prepared(lite, "cuda", 2)
    assert len(norms(lite)) == count > 100
    assert all(isinstance(norm, nn.SyncBatchNorm) and norm.training for norm in norms(lite))
    assert any(isinstance(norm, timm.layers.norm_act.SyncBatchNormAct) for norm in norms(lite))
    with torch.no_grad():
        after = [network.eval()(image) for network in (lite.student, lite.teacher)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.allclose(wrong, before[0], atol=0.01)  # torch's converter drops the activations
    in_groups = {id(parameter) for parameter in optimizers.parameters()}
    assert in_groups == trained == {id(p) for p in lite.student.parameters() if p.requires_grad}
    assert not any(parameter.requires_grad for parameter in lite.teacher.parameters())


@pytest.mark.parametrize(("device", "processes"), [("cpu", 2), ("cuda", 1)])
def test_batch_norm_stays_as_it_is_elsewhere(lite, device, processes):
    prepared(lite, device, processes)
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms(lite))


@pytest.mark.parametrize(
    ("accepted", "calls"),
    [
        (2**31 - 1, [(-3, 2**31 - 1), (-1, 2**31 - 1)]),
        (2**25, [(-3, 2**31 - 1), (-3, 2**25), (-1, 2**31 - 1)]),
        (0, [(-3, 2**31 - 1), (-3, 2**25)]),  # one threshold without the other would make every tensor slow
    ],
)
def test_freed_memory_is_kept_as_far_as_the_c_library_lets_it(monkeypatch, accepted, calls):
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return int(parameter != -3 or value <= accepted)

    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    Runtime("cpu")
    assert asked == calls


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    Runtime("cpu")
