"""What is measured with two networks, and which networks these are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.engine.predict import Predictor
from semiseg.engine.predict_files import Item
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.models.predict import whole
from semiseg.rank.look import Compared, compare, look
from semiseg.rank.measures import entropy
from semiseg.rank.pair import other_networks
from semiseg.rank.run import weakness
from semiseg.recipe.engine import EvaluateConfig
from semiseg.types import ClassTable


def probabilities(labels: list[int], confidence: list[float]) -> torch.Tensor:
    """One row of pixels, two classes."""
    found = torch.empty(1, 2, 1, len(labels))
    for pixel, (label, sure) in enumerate(zip(labels, confidence, strict=True)):
        found[0, label, 0, pixel], found[0, 1 - label, 0, pixel] = sure, 1 - sure
    return found


def test_hardness_by_hand():
    """Four pixels; the maps are 0 0 1 1 and 0 1 1 1. IoU of class 0 is 1/2, of class 1 it is 2/3.

    Weighted by the first map 1/2 * 1/2 + 1/2 * 2/3 = 7/12, by the second 1/4 * 1/2 + 3/4 * 2/3 = 5/8. Confident are 2/4
    and 4/4. So hardness is 1 - (7/12 * 1/2 + 5/8 * 1) / 2 = 1 - 11/24.
    """
    one = probabilities([0, 0, 1, 1], [0.99, 0.99, 0.6, 0.6])
    other = probabilities([0, 1, 1, 1], [0.99, 0.99, 0.99, 0.99])
    found = compare(one, other, Compared(0.95, None))
    assert found["hardness"].item() == pytest.approx(1 - 11 / 24)
    assert found["agreement"].item() == 0.75
    assert found["confident"].item() == 0.75
    assert compare(other, one, Compared(0.95, None))["hardness"].item() == pytest.approx(1 - 11 / 24)
    assert compare(one, one, Compared(0.5, None))["hardness"].item() == 0
    only = compare(one, other, Compared(0.5, 0))["hardness"].item()  # class 0 has no weight
    assert only == pytest.approx(1 - 2 / 3)


def test_networks_look_at_images(tiny, tmp_path):
    """Each image on disk: the values of the networks alone; one that is broken is left out and named."""
    networks = [tiny(seed).eval() for seed in (0, 1)]
    table = ClassTable.of(("a", "b", "c"))
    one, other = (Predictor((net,), table, None, EvaluateConfig(), Runtime("cpu"), 1) for net in networks)
    items = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        items.append(Item(tmp_path / f"{number}.png", tmp_path / str(number), f"{number}.png"))
    (tmp_path / "1.png").write_bytes(b"no image")
    done = []
    found = look(items, one, other, Compared(0.4, None), lambda number, total: done.append((number, total)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [item.name for item in found.items] == ["0.png", "2.png"]
    assert len(found.broken) == 1
    assert "1.png" in found.broken[0]
    image = torch.from_numpy(np.asarray(Image.open(tmp_path / "2.png")).copy()).permute(2, 0, 1)[None]
    each = [whole(net, net.normalization(image)) for net in networks]
    assert found.entropy[1].item() == pytest.approx(entropy(each[0]).item())
    assert found.hardness is not None
    assert found.hardness[1].item() == pytest.approx(compare(each[0], each[1], Compared(0.4, None))["hardness"].item())
    assert found.features.mean(0).abs().max() < 1e-6
    alone = look(items, one, None, Compared(0.4, None))
    assert alone.hardness is None
    assert torch.equal(alone.entropy, found.entropy)
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        look(items[1:2], one, other, Compared(0.4, None))
    shrunk = replace(one, long_side=8)
    assert look(items, shrunk, None, Compared(0.4, None)).entropy[1] != found.entropy[1]


def test_other_networks_have_the_same_tensors():
    state = {
        "teacher.net.a": torch.zeros(2, 3),
        "student.net.a": torch.ones(2, 3),
        "critic.net.a": torch.ones(2, 4),
        "head.b": torch.ones(2, 3),
        "count": torch.ones(()),
    }
    assert other_networks(state, ["teacher"]) == ["student"]
    assert other_networks(state, ["student"]) == ["teacher"]
    assert other_networks(state, ["critic"]) == []
    assert other_networks(state, ["teacher", "student"]) == []
    state = {f"networks.{number}.a": torch.zeros(1) for number in range(3)}
    assert other_networks(state, ["networks.0"]) == ["networks.1", "networks.2"]


def test_weakness_of_classes():
    assert weakness([0.5, None, 1.0], 3).tolist() == [0.5, 0.25, 0.0]
    assert weakness([None, None], 2).tolist() == [0, 0]
    assert weakness([], 2).tolist() == [0, 0]
