import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from semiseg.rng import fold_in
from semiseg.types import IGNORE, ClassTable, LoadedBatch, Losses, Normalization, voc_color


@pytest.mark.parametrize(
    ("index", "color"),
    [
        (0, (0, 0, 0)),  # background
        (1, (128, 0, 0)),  # aeroplane
        (2, (0, 128, 0)),
        (3, (128, 128, 0)),
        (4, (0, 0, 128)),
        (7, (128, 128, 128)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),  # person
        (16, (0, 64, 0)),
        (20, (0, 64, 128)),  # tv/monitor
        (21, (128, 64, 128)),
        (255, (224, 224, 192)),  # void
    ],
)
def test_the_palette_of_voc(index, color):
    assert voc_color(index) == color


def test_every_mask_value_has_its_own_color():
    assert len({voc_color(index) for index in range(256)}) == 256


def test_a_class_table():
    table = ClassTable.of(["sky", "road", "car"], background=1)
    assert len(table) == 3
    assert table.names == ("sky", "road", "car")
    assert table.colors == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert table.background == 1
    assert ClassTable.of(["sky"]).background is None  # class 0 is not assumed to be one
    assert table == ClassTable.of(("sky", "road", "car"), 1)
    with pytest.raises(FrozenInstanceError):
        table.background = 0


def test_ignore_is_the_largest_value_of_a_mask():
    assert IGNORE == 255 == torch.iinfo(torch.uint8).max


def test_normalization_is_imagenets_and_undone_by_its_inverse():
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    normalize = Normalization()
    assert normalize.mean == (0.485, 0.456, 0.406)
    assert normalize.std == (0.229, 0.224, 0.225)
    normalized = normalize(image)
    for channel in range(3):
        back = normalized[0, channel] * normalize.std[channel] + normalize.mean[channel]
        torch.testing.assert_close(back * 255, image[0, channel].float(), atol=1e-3, rtol=0)


def test_a_loaded_batch_moves_as_a_whole():
    batch = LoadedBatch(
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.ones(1, 4, 4, dtype=torch.bool),
        torch.arange(2),
        torch.arange(1),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.ones(1, 2, 2),
    )
    moved = batch.to(torch.device("meta"))
    assert moved.skipped == batch.skipped
    for field in fields(batch)[:-1]:
        one, other = getattr(batch, field.name), getattr(moved, field.name)
        assert other.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_losses_need_no_more_than_a_total():
    one, other = Losses(torch.zeros(())), Losses(torch.zeros(()))
    assert one.scalars == {}
    assert one.scalars is not other.scalars
    assert one.hardness is None


@pytest.mark.parametrize(("unlabeled", "crops"), [(0, 1), (2, 1), (2, 2)])
def test_a_batch_crosses_processes_in_one_piece(unlabeled, crops):
    generator = fold_in(0, "batch")
    image = torch.randint(256, (4, 3, 5, 7), dtype=torch.uint8, generator=generator)
    second = {"second": image[:2], "align": torch.rand(2, 2, 2)} if crops == 2 else {}
    batch = LoadedBatch(
        image=image[:2],
        label=image[:2, 0],
        weak=image[2 : 2 + unlabeled],
        valid=image[2 : 2 + unlabeled, 0] > 99,
        labeled_index=torch.tensor([2**40, 7]),
        index=torch.arange(unlabeled),
        skipped=("a.png: no such file",),
        **second,
    )
    _, (content, *_) = batch.__reduce__()
    assert content.dtype == torch.uint8
    again = pickle.loads(pickle.dumps(batch))
    assert again.skipped == batch.skipped
    for name in (field.name for field in fields(batch)[:-1]):
        one, other = getattr(batch, name), getattr(again, name)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
        assert not len(other) or other.untyped_storage().data_ptr() == again.image.untyped_storage().data_ptr()
