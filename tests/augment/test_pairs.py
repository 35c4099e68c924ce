from dataclasses import replace

import torch

from semiseg.augment.cutmix import random_partners, sample_some_boxes
from semiseg.augment.pairs import StrongPairs, cutmix_pairs
from semiseg.rng import fold_in
from semiseg.types import Part


def pairs(num_images: int = 4) -> StrongPairs:
    generator = fold_in(0)
    image, second = torch.rand(2, num_images, 3, 16, 16, generator=generator)
    label = torch.randint(5, (num_images, 16, 16), generator=generator)
    valid = torch.ones(num_images, 16, 16, dtype=torch.bool)
    valid[0, :, 10:] = False
    return StrongPairs(image, label, torch.rand(num_images, 16, 16, generator=generator), valid, second)


def part_of(everyone: StrongPairs, rows: slice) -> Part:
    return Part(everyone, everyone[rows], rows, 1.0, torch.tensor(0), everyone.valid.sum())


def test_each_view_has_a_box_of_one_partner():
    everyone = pairs()
    mixed, valid_px = cutmix_pairs(everyone, part_of(everyone, slice(0, 4)), fold_in(7), probability=1.0)
    generator = fold_in(7)
    partner = random_partners(4, generator)
    for view, px, image in zip(mixed, valid_px, (everyone.image, everyone.second), strict=True):
        box = sample_some_boxes(4, 16, 16, generator, probability=1.0)
        for i, j in enumerate(partner.tolist()):
            assert i != j
            inside = box[i]
            assert torch.equal(view.image[i], torch.where(inside, image[j], image[i]))
            for name in ("label", "confidence", "valid"):
                of = getattr(everyone, name)
                assert torch.equal(getattr(view, name)[i], torch.where(inside, of[j], of[i])), name
        assert px == view.valid.sum()


def test_a_part_gets_its_own_labels_and_those_of_its_partners():
    """Pixel counts are those of the whole batch."""
    everyone, rows = pairs(), slice(1, 3)
    whole, whole_px = cutmix_pairs(everyone, part_of(everyone, slice(0, 4)), fold_in(7), probability=0.5)
    own = replace(everyone[rows], label=torch.full((2, 16, 16), 9))
    split, split_px = cutmix_pairs(own, part_of(everyone, rows), fold_in(7), probability=0.5)
    pasted = 0
    for one, other, image in zip(split, whole, (own.image, own.second), strict=True):
        assert torch.equal(one.image, other.image[rows])
        inside = (one.image != image)[:, 0]
        assert torch.equal(one.label, torch.where(inside, other.label[rows], 9))
        pasted += inside.flatten(1).any(1).sum()
    assert 0 < pasted < 4  # of four views, some have a box
    assert split_px == whole_px


def test_without_a_probability_nothing_is_pasted():
    everyone = pairs()
    mixed, _ = cutmix_pairs(everyone, part_of(everyone, slice(0, 4)), fold_in(7), probability=0.0)
    for view, image in zip(mixed, (everyone.image, everyone.second), strict=True):
        assert torch.equal(view.image, image)
        assert torch.equal(view.label, everyone.label)
