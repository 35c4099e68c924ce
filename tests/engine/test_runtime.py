import pytest
import torch

from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError


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


def test_the_device_is_chosen_anew():
    """Accelerate remembers the first device of a process; a later runtime must not inherit it."""
    from accelerate.state import PartialState

    Runtime("cpu")
    PartialState._shared_state["device"] = torch.device("meta")
    assert Runtime("cpu").device == torch.device("cpu")
