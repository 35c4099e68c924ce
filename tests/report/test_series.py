from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.report.series import curve, thinned


def test_the_curve_of_one_run_is_its_values():
    found = curve([{10: 0.5, 20: 0.25}])
    assert (found.steps, found.values, found.band_steps) == ((10, 20), (0.5, 0.25), ())


def test_seeds_become_a_mean_and_a_band():
    found = curve([{10: 1.0, 20: 2.0}, {10: 3.0, 20: 4.0, 30: 9.0}])
    assert found.steps == (10, 20, 30)
    assert found.values == (2.0, 3.0, 9.0)  # only one seed has come to step 30
    assert found.band_steps == (10, 20)
    assert found.low == pytest.approx((2 - 2**0.5, 3 - 2**0.5))  # the deviation of 1, 3 is the root of 2
    assert found.high == pytest.approx((2 + 2**0.5, 3 + 2**0.5))


def test_without_points_there_is_no_curve():
    assert curve([]).steps == curve([{}, {}]).steps == ()


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=200), st.integers(6, 50))
def test_a_thinned_curve_keeps_ends_and_peaks(values, most):
    kept = thinned(values, most)
    assert kept == sorted(set(kept))
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    assert max(values[i] for i in kept) == max(values)
    assert min(values[i] for i in kept) == min(values)


def test_a_thinned_curve_covers_the_whole_run():
    kept = thinned([float(value) for value in range(10_000)], 100)
    assert max(b - a for a, b in pairwise(kept)) < 10_000 / 100 * 5


def test_a_long_band_covers_every_value():
    members = [{step: float(step % 7) for step in range(1000)}, {step: float(step % 7) + 2 for step in range(1000)}]
    found = curve(members, most=50)
    assert len(found.band_steps) == 25
    assert min(found.low) == pytest.approx(1 - 2**0.5)
    assert max(found.high) == pytest.approx(7 + 2**0.5)
