import math
from collections import Counter

import pytest

from semiseg.data.order import ClassBalanced, Shuffled
from semiseg.errors import UserError
from semiseg.types import IGNORE

COUNTS = [{0: 90, 1: 10}, {0: 100}, {0: 50, 2: 40, IGNORE: 10}, {0: 100}, {0: 60, 1: 40}]


def test_a_round_has_each_image_once():
    order = Shuffled(7, 0, "labeled")
    rounds = [[order.index(turn) for turn in range(first, first + 7)] for first in (0, 7, 14)]
    assert all(sorted(shown) == list(range(7)) for shown in rounds)
    assert len({tuple(shown) for shown in rounds}) == 3
    assert [order.index(3, attempt) for attempt in range(7)] == rounds[0][3:] + rounds[0][:3]
    assert [Shuffled(7, 0, "unlabeled").index(turn) for turn in range(7)] != rounds[0]
    assert [Shuffled(7, 1, "labeled").index(turn) for turn in range(7)] != rounds[0]


def test_rare_classes_by_hand():
    """DAFormer, Eq. 5 and 6: 400, 50 and 40 of 490 labeled pixels."""
    order = ClassBalanced.of(COUNTS, temperature=0.5, seed=0)
    weights = [math.exp((1 - pixels / 490) / 0.5) for pixels in (400, 50, 40)]
    expected = [sum(weights[: i + 1]) / sum(weights) for i in range(3)]
    assert order.cumulative == pytest.approx(expected)
    assert order.images == ((0, 1, 2, 3, 4), (0, 4), (2,))


def test_images_are_drawn_by_their_classes():
    order = ClassBalanced.of(COUNTS, temperature=0.5, seed=0)
    turns = 20_000
    drawn = Counter(order.index(turn) for turn in range(turns))
    shares = [order.cumulative[0], *(b - a for a, b in zip(order.cumulative, order.cumulative[1:], strict=False))]
    expected = {
        0: shares[0] / 5 + shares[1] / 2, 1: shares[0] / 5, 2: shares[0] / 5 + shares[2],
        3: shares[0] / 5, 4: shares[0] / 5 + shares[1] / 2,
    }  # fmt: skip
    for image, share in expected.items():
        assert drawn[image] / turns == pytest.approx(share, abs=0.012)


def test_a_turn_depends_on_itself_and_the_seed():
    order, other = (ClassBalanced.of(COUNTS, 0.5, seed) for seed in (0, 1))
    turns = list(range(50))
    assert [order.index(turn) for turn in turns] == [order.index(turn) for turn in reversed(turns)][::-1]
    assert [order.index(turn) for turn in turns] != [other.index(turn) for turn in turns]
    assert {order.index(9, attempt) for attempt in range(5)} == set(range(5))  # images that cannot be read


def test_masks_without_a_class_cannot_be_balanced():
    with pytest.raises(UserError, match="no labeled mask shows a class"):
        ClassBalanced.of([{IGNORE: 9}], 0.5, 0)
