import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.data.dataset import MaskCoding, Sample
from semiseg.data.layouts import folder as layout
from semiseg.data.partitions import (
    class_folds,
    class_presence,
    nested_partitions,
    partition_hash,
    published_name,
    write_partitions,
)
from semiseg.errors import UserError

class_sets = st.lists(st.frozensets(st.integers(0, 6), max_size=4), min_size=1, max_size=40)


def pool(sets: list[frozenset[int]]) -> tuple[list[Sample], dict[str, frozenset[int]]]:
    samples = [Sample(f"{number:03}", Path(), Path()) for number in range(len(sets))]
    return samples, {sample.name: present for sample, present in zip(samples, sets, strict=True)}


def test_hash_of_a_list_by_hand():
    ids = ["2007_000032", "2007_000039", "2007_000063"]
    assert partition_hash(ids) == "818cc0fc52ab"
    assert partition_hash(ids) == hashlib.sha256(b"2007_000032\n2007_000039\n2007_000063").hexdigest()[:12]
    assert partition_hash(reversed(ids)) == partition_hash(ids)
    assert partition_hash(ids[:2]) != partition_hash(ids)


@pytest.mark.parametrize(
    ("digest", "name"),
    [
        ("124b0aab2fcd", "VOC classic 92"),
        ("baa85754594f", "VOC blended 662 (random, CPS)"),
        ("f20f7c7dea9c", "Cityscapes 186 (U2PL)"),
        ("000000000000", None),
    ],
)
def test_published_names(digest, name):
    assert published_name(digest) == name


def test_class_presence_reads_masks(folder, write):
    write("masks/03.png", np.where(np.arange(24) < 12, 7, 255).astype(np.uint8)[None].repeat(20, 0))
    samples = [Sample(n, folder / f"images/{n}.png", folder / f"masks/{n}.png") for n in ("02", "03")]
    assert class_presence(samples, MaskCoding(24)) == {"02": frozenset(range(24)), "03": frozenset({7})}
    assert class_presence(samples[1:], MaskCoding(24, {7: 2})) == {"03": frozenset({2})}
    told: list[tuple[int, int]] = []
    class_presence(samples, MaskCoding(24), lambda *count: told.append(count))
    assert told == [(1, 2), (2, 2)]


@given(sets=class_sets, seed=st.integers(0, 99), data=st.data())
def test_partitions_are_nested_and_show_every_class(sets, seed, data):
    samples, present = pool(sets)
    counts = data.draw(st.lists(st.integers(1, len(sets)), min_size=1, max_size=4))
    partitions = nested_partitions(samples, present, counts, seed)
    assert list(partitions) == sorted(set(counts))
    occurring = frozenset().union(*sets)
    smaller: set[str] = set()
    for size, chosen in partitions.items():
        names = {sample.name for sample in chosen}
        assert len(names) == len(chosen) == size
        assert smaller <= names
        smaller = names
        shown = frozenset().union(*(present[name] for name in names))
        # every image shows a new class until none is left, and the first shows as many as an image can
        assert len(shown) >= min(len(occurring), max(map(len, sets)) + size - 1)
        if size >= len(occurring):
            assert shown == occurring


@given(sets=class_sets, seed=st.integers(0, 99), order=st.randoms(use_true_random=False))
def test_partitions_do_not_depend_on_the_order_of_the_pool(sets, seed, order):
    samples, present = pool(sets)
    shuffled = list(samples)
    order.shuffle(shuffled)
    counts = [1, len(sets)]
    assert nested_partitions(samples, present, counts, seed) == nested_partitions(shuffled, present, counts, seed)


def test_partitions_depend_on_the_seed_and_not_on_the_other_sizes():
    samples, present = pool([frozenset({n % 3}) for n in range(30)])
    ten = nested_partitions(samples, present, [10], seed=0)[10]
    assert nested_partitions(samples, present, [5, 10, 20], seed=0)[10] == ten
    assert nested_partitions(samples, present, [10], seed=1)[10] != ten


def test_a_rare_class_is_in_the_smallest_partition():
    samples, present = pool([frozenset({0, 1})] * 99 + [frozenset({2})])
    for seed in range(5):
        assert "099" in {sample.name for sample in nested_partitions(samples, present, [2, 50], seed)[2]}


def test_sizes_by_fraction():
    samples, present = pool([frozenset({0})] * 40)
    assert list(nested_partitions(samples, present, [0.5, 1 / 16, 0.001, 7, 40], seed=0)) == [1, 2, 7, 20, 40]


@pytest.mark.parametrize("count", [0, -1, 41, 1.5e9])
def test_sizes_that_cannot_be(count):
    samples, present = pool([frozenset({0})] * 40)
    with pytest.raises(UserError, match="between 1 and the 40 images"):
        nested_partitions(samples, present, [3, count], seed=0)


@pytest.mark.parametrize("given", [["labeled"], ["labeled", "unlabeled"], ["labeled", "val"]])
def test_written_partitions_are_read_back(folder, given):
    """The validation images stay the same without a list of them."""
    dataset = layout.load(layout.Config(root=folder))
    train = dataset.labeled + dataset.unlabeled
    present = class_presence(dataset.labeled, MaskCoding(24))
    partitions = nested_partitions(dataset.labeled, present, [2, 4], seed=0)
    paths = write_partitions(folder / "splits/new", train, dataset.val, partitions)
    written = [path.name for path in paths]
    assert written == ["val.txt", "labeled_2.txt", "unlabeled_2.txt", "labeled_4.txt", "unlabeled_4.txt"]
    for size in (2, 4):
        lists = {key: f"splits/new/{key}_{size}.txt" if key != "val" else "splits/new/val.txt" for key in given}
        again = layout.load(layout.Config(root=folder, **lists))
        assert again.labeled == partitions[size]
        assert again.val == dataset.val
        assert set(again.labeled + again.unlabeled) == set(train)


def test_existing_files_are_never_overwritten(folder):
    samples, present = pool([frozenset({0})] * 3)
    partitions = nested_partitions(samples, present, [1, 3], seed=0)
    (folder / "unlabeled_1.txt").write_text("mine")
    with pytest.raises(UserError, match=r"unlabeled_1\.txt: exists already") as caught:
        write_partitions(folder, samples, samples[:1], partitions)
    assert "\n" not in str(caught.value)
    assert (folder / "unlabeled_1.txt").read_text() == "mine"
    assert not (folder / "labeled_1.txt").exists()
    assert not (folder / "labeled_3.txt").exists()


def test_a_partition_of_everything_leaves_no_list_of_the_rest(folder):
    samples, present = pool([frozenset({0})] * 3)
    paths = write_partitions(folder, samples, samples[:1], nested_partitions(samples, present, [3], seed=0))
    assert [path.name for path in paths] == ["val.txt", "labeled_3.txt"]


def test_masks_that_a_list_names_stay_with_their_images(folder, write):
    """Without them, the layout's own masks would be read."""
    write("better/00.png", np.zeros((20, 24), np.uint8))
    write("list.txt", "images/00.png better/00.png\n01\n02\n")
    dataset = layout.load(layout.Config(root=folder, labeled="list.txt"))
    drawn = nested_partitions(dataset.labeled, {name: frozenset() for name in ("00", "01", "02")}, [3], seed=0)
    write_partitions(folder, dataset.labeled + dataset.unlabeled, dataset.val, drawn)
    assert (folder / "labeled_3.txt").read_text() == "images/00.png better/00.png\n01\n02\n"
    again = layout.load(layout.Config(root=folder, labeled="labeled_3.txt", unlabeled="unlabeled_3.txt", val="val.txt"))
    assert [sample.mask for sample in again.labeled] == [sample.mask for sample in dataset.labeled]


def test_a_second_partition_may_have_the_same_validation_images(folder):
    samples, present = pool([frozenset({0})] * 4)
    for size in (1, 2):
        write_partitions(folder, samples, samples[3:], nested_partitions(samples[:3], present, [size], seed=0))
    with pytest.raises(UserError, match=r"val\.txt: exists already"):
        write_partitions(folder, samples, samples[2:], nested_partitions(samples[:3], present, [3], seed=0))


@given(sets=class_sets, seed=st.integers(0, 99), data=st.data())
def test_folds_hold_each_image_once(sets, seed, data):
    samples, shown = pool(sets)
    count = data.draw(st.integers(1, len(samples)))
    folds = class_folds(samples, shown, count, seed)
    assert len(folds) == count
    assert all(folds)
    assert sorted((one for fold in folds for one in fold), key=lambda one: one.name) == samples
    assert class_folds(samples[::-1], shown, count, seed) == folds
    images = {index: [one for one in samples if index in shown[one.name]] for index in range(7)}
    rarest = min((index for index in images if images[index]), key=lambda index: len(images[index]), default=0)
    spread = [len(set(fold) & set(images[rarest])) for fold in folds]
    assert max(spread) - min(spread) <= 1


def test_folds_spread_rare_classes():
    """Class 2 is in three images, class 1 in four, class 0 in all: each of three folds shows all of them."""
    samples, shown = pool([frozenset(s) for s in ({0, 2}, {0, 1, 2}, {0, 2}, {0, 1}, {0, 1}, {0, 1}, {0}, {0}, {0})])
    drawn = {class_folds(samples, shown, 3, seed) for seed in range(5)}
    assert len(drawn) > 1
    for folds in drawn:
        assert {frozenset().union(*(shown[one.name] for one in fold)) for fold in folds} == {frozenset({0, 1, 2})}
        assert [len(fold) for fold in folds] == [3, 3, 3]
