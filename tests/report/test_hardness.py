import numpy as np
import pytest

from semiseg.report.hardness import course, follow
from semiseg.report.series import Curve

TABLE = np.array([[1, 0, 0.2], [1, 1, 0.6], [2, 0, 0.0], [2, 1, 0.4], [3, 2, 0.9], [4, 2, 0.7]])


def test_mean_and_deviation_of_each_interval():
    found = course(TABLE, last=4, parts=2)  # steps 1 and 2, steps 3 and 4
    assert found.steps == (2, 4)
    assert found.values == pytest.approx((0.3, 0.8))
    # deviations: the root of the mean of 0.01, 0.09, 0.09, 0.01, and 0.1
    assert found.low == pytest.approx((0.3 - 0.05**0.5, 0.7))
    assert found.high == pytest.approx((0.3 + 0.05**0.5, 0.9))


def test_a_band_stays_where_hardness_can_be():
    found = course(np.array([[1, 0, 0.0], [1, 1, 0.0], [1, 2, 1.0]]), last=1)
    assert found.low == (0.0,)
    found = course(np.array([[1, 0, 1.0], [1, 1, 1.0], [1, 2, 0.0]]), last=1)
    assert found.high == (1.0,)


def test_intervals_without_an_image_are_left_out():
    assert course(np.array([[1, 0, 0.5], [40, 0, 0.5]]), last=40, parts=4).steps == (10, 40)


def test_a_few_images_are_followed():
    rows = [(step, image, value) for step in range(1, 9) for image, value in ((0, 0.9), (1, 0.5), (2, 0.1))]
    rows += [(step, 3, 0.45 if step > 4 else 1.0) for step in range(1, 9)]
    found = follow(np.array(sorted(rows)), ["hard", "middle", "easy", "varied"], each=1)
    assert [(one.name, one.why) for one in found] == [
        ("hard", "hardest"), ("easy", "easiest"), ("varied", "most varied"),
    ]  # fmt: skip
    assert found[0].curve.values == pytest.approx([0.9] * 8)
    assert found[2].curve.steps == tuple(range(1, 9))
    assert found[2].curve.values == pytest.approx([1.0] * 4 + [0.45] * 4)


def test_no_image_is_followed_twice_and_none_without_hardness():
    names = [one.name for one in follow(TABLE, ["a", "b", "c"], each=2)]
    assert len(names) == len(set(names))
    assert follow(np.empty((0, 3)), []) == []
    assert course(np.empty((0, 3)), 1) == Curve((), ())
