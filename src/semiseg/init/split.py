"""Holds out images for validation: near-duplicates stay together, and both parts show each class where they can."""

from collections import Counter
from collections.abc import Mapping, Sequence

from semiseg.data.dataset import Sample
from semiseg.rng import folded_seed


def hold_out(
    groups: Sequence[Sequence[Sample]], class_sets: Mapping[str, frozenset[int]], share: float = 0.2
) -> tuple[Sample, ...]:
    """Chooses groups of images for validation.

    First those that show the rarest class that is missing, then any, until `share` of the images is reached. A group
    that alone shows one of its classes stays in training. The order is given by the names of the images.

    Args:
        groups: near-duplicates; an image without one is a group.
        class_sets: the classes that each image shows, by its name.
        share: the part of the images that is wanted.

    Returns:
        The images, sorted by name; at least one, if there are two groups or more.
    """
    if len(groups) < 2:
        return ()
    shown = {
        number: frozenset[int]().union(*(class_sets[one.name] for one in group)) for number, group in enumerate(groups)
    }
    left = Counter(index for classes in shown.values() for index in classes)  # groups in training that show a class
    total = sum(map(len, groups))
    order = sorted(shown, key=lambda number: (len(groups[number]), folded_seed(0, "held out", groups[number][0].name)))
    chosen: list[int] = []
    size, have = 0, set[int]()

    def take(number: int) -> None:
        nonlocal size, have
        chosen.append(number)
        left.subtract(shown[number])
        size += len(groups[number])
        have |= shown[number]

    def can_go(number: int) -> bool:
        return number not in chosen and all(left[index] > 1 for index in shown[number])

    for index in sorted(left, key=lambda index: (left[index], index)):
        if index in have:
            continue
        able = [number for number in order if index in shown[number] and can_go(number)]
        if able and size + len(groups[able[0]]) <= max(1, total / 2):
            take(max(able[:8], key=lambda number: len(shown[number] - have)))
    for number in order:
        if size >= max(1, round(share * total)):
            break
        if can_go(number) and size + len(groups[number]) <= max(1, total / 2):
            take(number)
    if not chosen:
        take(order[0])
    return tuple(sorted((one for number in chosen for one in groups[number]), key=lambda one: one.name))
