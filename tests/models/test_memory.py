import torch

from semiseg.models.memory import Memory
from semiseg.types import IGNORE


def test_the_oldest_go():
    memory = Memory(3, 1)
    assert memory.label.tolist() == [IGNORE] * 3
    memory.add(torch.tensor([[1.0], [2.0]]), torch.tensor([4, 5]))
    assert memory.label.tolist() == [4, 5, IGNORE]
    memory.add(torch.tensor([[3.0], [4.0]], dtype=torch.bfloat16), torch.tensor([6, IGNORE]))
    assert memory.key.flatten().tolist() == [3, 4, 1]
    assert memory.label.tolist() == [6, IGNORE, 4]
    memory.add(torch.arange(5.0)[:, None], torch.arange(5))
    assert memory.key.flatten().tolist() == [0, 1, 2]
    assert set(memory.state_dict()) == {"key", "label"}
