"""The rule by which `semiseg tune` chooses, on numbers made by hand."""

import pytest

from semiseg.report.choice import Candidate, choose, table


def candidates(**scores: list[float]) -> list[Candidate]:
    """Candidates with these scores in points."""
    return [Candidate(name, tuple(value / 100 for value in values), {}) for name, values in scores.items()]


@pytest.mark.parametrize(
    ("scores", "chosen", "why"),
    [
        # nothing is better than none
        ({"none": [50, 60], "mild": [49, 61], "full": [20, 30]}, "none", "none has the highest mean"),
        # gain 30 to 33: t 4.303, half 3.8
        ({"none": [40, 50, 60], "mild": [60, 70, 81], "full": [70, 82, 93]}, "full", "is clear"),
        # half is 3.79 and the mean 3.5: it may be chance. Both none and mild lie more than one standard error (0.88
        # and 0.76) behind
        ({"none": [50, 50, 50], "mild": [51, 51, 52], "full": [52, 53.5, 55]}, "full", "no milder one"),
        # the same gain; mild is 0.67 behind on the mean, with a standard error of 0.88
        ({"none": [50, 50, 50], "mild": [53, 53, 52.5], "full": [52, 53.5, 55]}, "mild", "is the mildest one"),
        # mild is 0.8 behind, with a standard error of 0.53 (and a deviation of 0.92)
        ({"none": [50, 50, 50], "mild": [52, 52.9, 53.2], "full": [52, 53.5, 55]}, "full", "no milder one"),
        # gain 10, -5, 0: mean 1.7, standard error 4.4
        ({"none": [50, 50, 50], "mild": [40, 40, 40], "full": [60, 45, 50]}, "none", "may be chance"),
        # folds of other difficulty: only differences count. The gain is 4, 5, 6
        ({"none": [10, 50, 90], "full": [14, 55, 96]}, "full", "is clear"),
    ],
)
def test_the_choice(scores, chosen, why):
    found = choose(candidates(**scores))
    assert found.name == chosen
    assert why in found.reason


def test_of_equal_means_the_milder_one_is_chosen():
    assert choose(candidates(none=[40, 40, 40], mild=[50, 51, 52], full=[50, 51, 52])).name == "mild"


def test_the_table_names_what_a_pool_loses():
    none = Candidate("none", (0.4, 0.6), {"ground": 0.5, "star": 0.011})
    full = Candidate("full", (0.5, 0.7), {"ground": 0.7, "star": 0.009})
    head, first, second = table([none, full])
    assert first.split() == ["none", "50.0", "±", "14.1"]
    assert second.split() == ["full", "60.0", "±", "14.1", "+10.0", "±", "0.0", "star"]
    assert head.index("gain") == second.index("+10.0")
