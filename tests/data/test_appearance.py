"""How far unlabeled images lie from labeled ones."""

import numpy as np
import pytest
import torch

from semiseg.data.appearance import STATISTICS, look, shift, statistics
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample
from semiseg.errors import UserError
from semiseg.types import ClassTable


def test_statistics_by_hand():
    """Columns 0 and 30 in red alone: gray 0 and 10, a step of 10 in half of the pixels (the last column has none)."""
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[0, :, 1] = 30
    found = dict(zip(STATISTICS, statistics(image).tolist(), strict=True))
    assert found == dict.fromkeys(STATISTICS, 0) | {"red": 15, "contrast of red": 15, "texture": 5}
    image[0] = torch.tensor([[0, 30], [0, 0]])  # steps across: 10, 0, 0, 0; down: 0, -10, 0, 0
    assert statistics(image)[-1].item() == pytest.approx((10 + 10) / 4)


def images(*values: float) -> torch.Tensor:
    """Rows of statistics: all are 1, but the last one."""
    rows = torch.ones(len(values), len(STATISTICS))
    rows[:, -1] = torch.tensor(values)
    return rows


def test_shares_outside_the_range():
    line, verdict = shift(images(1, 2, 3), images(*[4] * 9, 0, *[2] * 10))
    assert "Share of 20 unlabeled images outside the range of the 3 labeled ones (by chance 50 %)" in line
    assert line.endswith(": red 0 %, green 0 %, blue 0 %, contrast of red 0 %, contrast of green 0 %, "
                         "contrast of blue 0 %, texture 50 %.")  # fmt: skip
    assert verdict.startswith("That may be chance")


@pytest.mark.parametrize(("value", "word"), [(9, "more"), (0, "less")])
def test_a_shift(value, word):
    """Of 20 labeled images one source exceeds 1 - (0.05 / 14) ** (1 / 20) = 24.6 % in 0.36 % of cases."""
    labeled = images(*range(1, 6), *[3] * 15)
    assert "may be chance" in shift(labeled, images(*[value] * 6, *[3] * 19))[1]  # 24 %
    verdict = shift(labeled, images(*[value] * 7, *[3] * 18))[1]
    assert verdict.startswith(f"28 % have {word} texture than every labeled one")


def test_images_are_read(write, tmp_path):
    for name, level in (("a", 10), ("b", 20), ("c", 60)):
        write(f"{name}.png", np.full((20, 24, 3), level, np.uint8))
    (tmp_path / "d.png").write_bytes(b"no image")
    labeled, *unlabeled = (Sample(name, tmp_path / f"{name}.png") for name in "abcd")
    dataset = Dataset((labeled,), tuple(unlabeled), (), ClassTable.of(("x", "y")), MaskCoding(2))
    told = []
    config = DataConfig(layout="folder", root=tmp_path, on_unreadable="skip")
    first, others = look(dataset, config, 0, lambda *count: told.append(count))
    assert first.tolist() == [[10, 10, 10, 0, 0, 0, 0]]
    assert others[:, 0].tolist() == [20, 60]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(UserError, match=r"d\.png: not a readable image"):
        look(dataset, config.model_copy(update={"on_unreadable": "error"}), 0)
