"""The choice of images, by hand."""

import torch

from semiseg.rank.choose import choose

NOTHING = torch.zeros(4, 2)


def unlike(number):
    return torch.zeros(4, dtype=torch.bool)


def numbers(*args) -> list[int]:
    return [one.number for one in choose(*args)]


def test_the_hardest_come_first():
    score = torch.tensor([0.2, 0.9, 0.5, 0.1])
    assert numbers(score, score, NOTHING, torch.zeros(2), unlike, (), 3) == [1, 2, 0]
    assert numbers(score, score, NOTHING, torch.zeros(2), unlike, (), 9) == [1, 2, 0, 3]
    assert numbers(score, score, NOTHING, torch.zeros(2), unlike, (1,), 2) == [2, 0]


def test_equal_ones_are_ordered_by_the_second_measure():
    tie = torch.tensor([0.3, 0.1, 0.4, 0.2])
    assert numbers(torch.ones(4), tie, NOTHING, torch.zeros(2), unlike, (), 4) == [2, 0, 3, 1]


def test_weak_classes_count():
    """0.5 * (1 + 0.8 * 0.9) = 0.86 is more than 0.8 * (1 + 0)."""
    score, presence = torch.tensor([0.8, 0.5, 0.3, 0.1]), torch.zeros(4, 2)
    presence[1, 1] = 0.8
    chosen = choose(score, score, presence, torch.tensor([0.1, 0.9]), unlike, (), 2)
    assert [(one.number, one.weak) for one in chosen] == [(1, 1), (0, None)]
    assert numbers(score, score, presence, torch.zeros(2), unlike, (), 2) == [0, 1]


def test_a_class_counts_less_after_each_image_that_shows_it():
    """Images 0 and 1 show class 0 (weakness 1), image 2 shows class 1 (weakness 0.8).

    Values at first: 2, 1.98, 1.62. After image 0 the weakness of class 0 is a half: 0.99 * 1.5 = 1.485 < 0.9 * 1.8.
    """
    score = torch.tensor([1.0, 0.99, 0.9, 0.1])
    presence = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    chosen = choose(score, score, presence, torch.tensor([1.0, 0.8]), unlike, (), 3)
    assert [(one.number, one.weak) for one in chosen] == [(0, 0), (2, 1), (1, 0)]


def test_near_duplicates_are_left_out():
    score = torch.tensor([0.8, 0.9, 0.5, 0.1])

    def alike(number):
        """Images 0, 1 and 2 in a row; 0 and 2 are alike only by way of 1."""
        return (torch.arange(4) - number).abs() <= (1 if number < 2 else 0)

    chosen = choose(score, score, NOTHING, torch.zeros(2), alike, (), 4)
    assert [(one.number, one.left_out) for one in chosen] == [(1, (0, 2)), (3, ())]
    chosen = choose(score, score, NOTHING, torch.zeros(2), alike, (1,), 4)
    assert [(one.number, one.left_out) for one in chosen] == [(0, ()), (2, ()), (3, ())]
