import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg import ramps
from semiseg.types import Progress

every = pytest.mark.parametrize("ramp", [ramps.linear, ramps.sigmoid, ramps.cosine])


@every
@given(num_steps=st.integers(1, 200), over=st.floats(0.01, 1))
def test_a_ramp_rises_to_1_and_stays_there(ramp, num_steps, over):
    weights = [ramp(Progress(step, num_steps), over) for step in range(num_steps)]
    assert weights == sorted(weights)
    assert 0 <= weights[0] <= 1
    assert all(weight == 1 for step, weight in enumerate(weights) if step >= over * num_steps)
    assert all(weight < 1 for step, weight in enumerate(weights) if step <= 0.9 * over * num_steps)


@every
def test_a_ramp_over_nothing_is_1(ramp):
    assert [ramp(Progress(step, 3), 0.0) for step in range(3)] == [1, 1, 1]


def test_values_by_hand():
    at = Progress(5, 100)  # a quarter of the way
    assert ramps.linear(at, 0.2) == pytest.approx(0.25)
    assert ramps.sigmoid(at, 0.2) == pytest.approx(math.exp(-5 * 0.5625))
    assert ramps.cosine(at, 0.2) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert ramps.sigmoid(Progress(0, 100), 0.2) == pytest.approx(math.exp(-5))
