import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from semiseg.augment.paste import Config, pixels_of, rescaled
from semiseg.errors import UserError
from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable

TABLE = ClassTable.of(("ground", "tree", "car", "pole"), background=0)


def images(height: int = 6, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = fold_in(0, "paste")
    image = torch.randn(2, 3, height, width, generator=generator)
    return image, torch.randint(4, (2, height, width), generator=generator)


def test_scale_1_changes_nothing():
    image, label = images()
    label[0, 2:4] = IGNORE
    place = torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    found, labels = rescaled(image, label, torch.ones(2), place)
    assert torch.equal(labels, label)
    torch.testing.assert_close(
        torch.where((label != IGNORE)[:, None], found, 0), torch.where((label != IGNORE)[:, None], image, 0)
    )


@pytest.mark.parametrize(("place", "top", "left"), [((0.0, 0.0), 0, 0), ((1.0, 0.0), 0, 4), ((0.5, 1.0), 3, 2)])
def test_half_the_size_is_an_image_in_an_empty_frame(place, top, left):
    image, label = images()
    found, labels = rescaled(image, label, torch.full((2,), 0.5), torch.tensor([place, place]))
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[top : top + 3, left : left + 4] = True
    assert (labels[:, ~inside] == IGNORE).all()
    small = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., top : top + 3, left : left + 4], small)
    assert (labels[:, inside] != IGNORE).all()


@pytest.mark.parametrize(("place", "top", "left"), [((0.0, 1.0), 6, 0), ((1.0, 0.5), 3, 8)])
def test_twice_the_size_shows_a_part(place, top, left):
    image, label = images()
    found, labels = rescaled(image, label, torch.full((2,), 2.0), torch.tensor([place, place]))
    part = (..., slice(top, top + 6), slice(left, left + 8))
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    large = F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)[..., 2:-2, 2:-2]
    torch.testing.assert_close(found, large[part])
    assert torch.equal(labels, F.interpolate(label[:, None].float(), scale_factor=2)[:, 0].long()[part])


def test_ignored_pixels_do_not_mix_into_their_neighbors():
    image, label = images()
    label[:, 2:4] = IGNORE
    other = torch.where((label == IGNORE)[:, None], 1e6, image)
    drawn = torch.tensor([0.7, 1.6]), torch.tensor([[0.2, 0.6], [0.9, 0.1]])
    (one, labels), (two, _) = rescaled(image, label, *drawn), rescaled(other, label, *drawn)
    known = (labels != IGNORE)[:, None].expand_as(one)
    assert 0 < known.sum() < known.numel()
    torch.testing.assert_close(one[known], two[known])


def test_draws_are_in_their_ranges_and_those_of_an_image_are_its_own():
    settings = Config(probability=0.3, scale=(0.5, 1.5))
    drawn = settings.sample(fold_in(0), 4000, 4)
    assert drawn.happens.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert 0.5 <= drawn.scale.min() < 0.51
    assert 1.49 < drawn.scale.max() < 1.5
    assert drawn.pick.shape == (4000, 3)
    assert settings.sample(fold_in(0), 5, 2).pick.shape == (5, 1)
    assert Config(classes=2).sample(fold_in(0), 5, 4).pick.shape == (5, 2)
    assert torch.equal(drawn[7:9].place, drawn.place[7:9])


def test_which_classes_may_be_pasted():
    assert Config().allowed(TABLE, "k").tolist() == [False, True, True, True]
    assert Config(skip=("pole", "tree")).allowed(TABLE, "k").tolist() == [True, False, True, False]
    assert Config(skip=()).allowed(TABLE, "k").all()
    assert Config().allowed(ClassTable.of(("a", "b")), "k").all()
    for settings, message in (
        ({"skip": ("tree", "cat")}, r"^method.paste.skip: there is no class 'cat'; the classes are ground, tree, car,"),
        ({"skip": TABLE.names}, r"^method.paste.skip: it skips all classes"),
        ({"classes": 4}, r"^method.paste.classes: 4 of 4 classes could cover the whole image; use 1 to 3$"),
    ):
        with pytest.raises(UserError, match=message):
            Config(**settings).allowed(TABLE, "method.paste")
    for scale in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValidationError, match="scale needs"):
            Config(scale=scale)


def test_pixels_of_the_classes_of_each_image():
    _, label = images()
    label[0, 0] = IGNORE
    found = pixels_of(label, torch.tensor([[1, 3], [2, 2]]))
    assert torch.equal(found[0], (label[0] == 1) | (label[0] == 3))
    assert torch.equal(found[1], label[1] == 2)
