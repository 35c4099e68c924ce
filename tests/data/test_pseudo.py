"""Masks of an earlier run as labels of unlabeled images."""

import numpy as np
import pytest

from semiseg.data import load
from semiseg.data.check import check, count_classes
from semiseg.data.layouts.folder import Config
from semiseg.data.masks import read_pair
from semiseg.engine.environment import labels
from semiseg.errors import UserError


@pytest.fixture
def predicted(folder, write):
    """The layout with masks in tens, and predictions of two of its four unlabeled images, which hold class indices."""
    write("classes.txt", "ground\nroad\n")
    for number in range(8):
        mask = np.repeat([[0, 10]], 12, 1).repeat(20, 0).astype(np.uint8)
        mask[number, :2] = 10 - mask[number, -2:]  # no two masks are the same file
        mask[number, -2:] = 10
        mask[number, 0] = 10
        mask[number, -1] = 0
        write(f"masks/{number:02}.png", mask)
    for number in (9, 11):
        write(f"old/{number:02}.png", np.repeat([[1, 0]], 12, 1).repeat(20, 0).astype(np.uint8))
        write(f"old/{number:02}_overlay.png", np.zeros((20, 24, 3), np.uint8))
    return folder


def config(root, **settings) -> Config:
    return Config(root=root, crop=16, values={10: 1}, pseudo="old", **settings)


def test_unlabeled_images_get_labels(predicted):
    dataset, plain = load(config(predicted)), load(Config(root=predicted, values={10: 1}))
    assert [sample.name for sample in dataset.labeled[-2:]] == ["09", "11"]
    assert [sample.name for sample in dataset.unlabeled] == ["08", "10"]
    assert dataset.labeled[:-2] == plain.labeled
    assert dataset.val == plain.val
    assert read_pair(dataset.labeled[-1], dataset.coding)[1][0].tolist() == [1] * 12 + [0] * 12
    assert read_pair(dataset.labeled[0], dataset.coding)[1][-1].tolist() == [0] * 12 + [1] * 12


def test_they_are_no_labels_in_any_count(predicted):
    dataset, plain = load(config(predicted)), load(Config(root=predicted, values={10: 1}))
    assert labels(dataset) == labels(plain) | {"unlabeled": 2, "pseudo_labeled": 2}


def test_they_are_checked_by_themselves(predicted, write):
    report = check(load(config(predicted)), config(predicted))
    assert report.meaning.classes == {0: 0, 10: 1}
    assert report.notes == ()
    assert count_classes(load(config(predicted)), predicted) == ({0: 240, 1: 240},) * 8
    write("old/11.png", np.full((20, 24), 10, np.uint8))
    with pytest.raises(UserError, match=r"old/11.png: the masks hold"):
        check(load(config(predicted)), config(predicted))


def test_a_share_is_that_of_the_most_reliable(predicted, write):
    write("old/reliability.csv", "image,reliability\n11,0.9\n09,0.8\n")
    for share, names in ((0.5, ["11"]), (0.99, ["11"]), (1.0, ["09", "11"])):
        labeled = load(config(predicted, pseudo_share=share)).labeled
        assert [sample.name for sample in labeled if sample.pseudo] == names
    with pytest.raises(UserError, match=r"among the most reliable 0\.4 has the name"):
        load(config(predicted, pseudo_share=0.4))
    write("old/reliability.csv", "image,reliability\n10,0.9\n")
    with pytest.raises(UserError, match="has no mask of '10'"):
        load(config(predicted, pseudo_share=1.0))
    with pytest.raises(ValueError, match=r"pseudo_share is a share of the masks in data\.pseudo"):
        Config(root=predicted, pseudo_share=0.5)


@pytest.mark.parametrize(("folder_name", "says"), [("nowhere", "there is no folder"), ("images", "09|11|name")])
def test_a_folder_of_something_else(predicted, write, folder_name, says):
    if folder_name == "images":
        write("empty/x.png", np.zeros((2, 2), np.uint8))
        folder_name = "empty"
    with pytest.raises(UserError, match=f"data.pseudo: .*({says})"):
        load(Config(root=predicted, values={10: 1}, pseudo=folder_name))
