import multiprocessing
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from semiseg.augment.overlap import seen_in_both, to_first
from semiseg.augment.views import Views
from semiseg.data import loader as loader_module
from semiseg.data import weak
from semiseg.data.dataset import Dataset
from semiseg.data.layouts import folder as layout
from semiseg.data.loader import check_loading, eval_loader, train_loader
from semiseg.data.pseudo import with_pseudo_labels
from semiseg.data.read import read_image
from semiseg.errors import UserError
from semiseg.rng import fold_in
from semiseg.types import IGNORE, LoadedBatch


@pytest.fixture
def config(folder: Path) -> layout.Config:
    return layout.Config(root=folder, crop=16, workers=0)  # 6 labeled, 4 unlabeled, 2 val


@pytest.fixture
def dataset(config: layout.Config) -> Dataset:
    return layout.load(config)


TENSORS = tuple(field.name for field in fields(LoadedBatch) if field.name != "skipped")
OVERLAP = Views(overlap=(0.1, 0.9))
one_and_two_crops = pytest.mark.parametrize("views", [Views(), OVERLAP])


def batches(dataset: Dataset, config: layout.Config, **changes) -> list[LoadedBatch]:
    settings = {"views": Views(), "batch_size": 4, "seed": 0, "start": 0, "num_steps": 6} | changes
    return list(train_loader(dataset, config, **settings))


def assert_equal(ours: list[LoadedBatch], theirs: list[LoadedBatch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.skipped == other.skipped == ()
        for name in TENSORS:
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@one_and_two_crops
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset, config, workers, views):
    changed = config.model_copy(update={"workers": workers})
    assert_equal(batches(dataset, changed, views=views), batches(dataset, config, views=views))


@one_and_two_crops
def test_resuming_equals_not_stopping(dataset, config, views):
    assert_equal(batches(dataset, config, start=4, views=views), batches(dataset, config, views=views)[4:])


@one_and_two_crops
def test_two_ranks_make_the_images_of_one(dataset, config, views):
    ranks = [batches(dataset, config, batch_size=2, world_size=2, rank=rank, views=views) for rank in range(2)]
    joined = [
        LoadedBatch(**{name: torch.cat([getattr(one, name), getattr(two, name)]) for name in TENSORS})
        for one, two in zip(*ranks, strict=True)
    ]
    assert_equal(joined, batches(dataset, config, batch_size=4, views=views))


def test_a_second_crop_leaves_everything_else_as_it_is(dataset, config):
    for one, two in zip(batches(dataset, config), batches(dataset, config, views=OVERLAP), strict=True):
        for name in ("image", "label", "weak", "valid", "labeled_index", "index"):
            assert torch.equal(getattr(one, name), getattr(two, name))
        assert (len(one.second), len(two.second)) == (0, 4)
        assert not torch.equal(two.second, two.weak)


@pytest.mark.parametrize("crop", [16, (30, 14)])
def test_the_second_crop_shows_the_same_image_where_its_alignment_says(dataset, config, crop):
    """Red tells the column, green the row, blue the number of the image."""
    compared = 0
    for batch in batches(dataset, config.model_copy(update={"crop": crop, "scale": (1.0, 1.5)}), views=OVERLAP):
        both = seen_in_both(batch.valid, batch.valid, batch.align)
        both &= (batch.weak[:, 0] > 16) & (batch.weak[:, 0] < 168)  # filters find less at the border
        off = (to_first(batch.second, batch.align).int() - batch.weak.int()).abs().movedim(1, -1)[both]
        assert (off[:, 2] == 0).all()
        assert (off <= 4).float().mean() > 0.97  # half a pixel, and the borders of the crops
        compared += len(off)
    assert compared > 500


def test_the_second_crop_of_every_turn_has_a_generator_of_its_own(dataset, config):
    plain = config.model_copy(update={"scale": (1.0, 1.0)})
    first = batches(dataset, plain, views=OVERLAP, num_steps=3)
    for turn, align in enumerate(torch.cat([batch.align for batch in first])):
        params = weak.sample(fold_in(0, "weak unlabeled", turn), (20, 24), plain)
        second = weak.second(fold_in(0, "weak second", turn), params, (20, 24), OVERLAP.overlap, plain)
        assert torch.equal(align, weak.alignment(params, second))


def test_an_image_is_decoded_once_for_both_crops(dataset, config, monkeypatch):
    read = []
    monkeypatch.setattr(loader_module, "read_image", lambda path, *rest: read.append(path) or read_image(path, *rest))
    batches(dataset, config, views=OVERLAP, num_steps=2)
    assert len(read) == 8
    assert_equal(
        batches(dataset, config.model_copy(update={"cache": True}), views=OVERLAP, num_steps=2),
        batches(dataset, config, views=OVERLAP, num_steps=2),
    )
    assert len(read) == 8 + 4 + 8  # of four images, each was decoded once for the cache


def test_seeds_differ_and_streams_differ(dataset, config):
    one, other = batches(dataset, config, seed=0), batches(dataset, config, seed=1)
    assert [b.labeled_index.tolist() for b in one] != [b.labeled_index.tolist() for b in other]
    assert [b.index.tolist() for b in one] != [b.index.tolist() for b in other]
    # the authors' code pairs labeled slot k with unlabeled slot k for ever (D36)
    same = replace(dataset, unlabeled=dataset.labeled)
    batch = batches(same, config, batch_size=6, num_steps=1)[0]
    assert batch.labeled_index.tolist() != batch.index.tolist()
    assert not torch.equal(batch.image, batch.weak)


def test_every_image_comes_once_a_round(dataset, config):
    steps = batches(dataset, config, num_steps=6)  # 24 turns: 4 rounds of 6 labeled, 6 rounds of 4 unlabeled
    labeled = torch.cat([batch.labeled_index for batch in steps]).view(-1, 6)
    pool = torch.cat([batch.index for batch in steps]).view(-1, 4)
    assert all(sorted(lap) == list(range(6)) for lap in labeled.tolist())
    assert all(sorted(lap) == list(range(4)) for lap in pool.tolist())
    assert len({tuple(lap) for lap in labeled.tolist()}) > 1  # a new order every round


def test_indices_say_which_image_it_is(dataset, config):
    plain = config.model_copy(update={"scale": (1.0, 1.0)})
    for batch in batches(dataset, plain):
        for images, indices, samples in (
            (batch.image, batch.labeled_index, dataset.labeled),
            (batch.weak, batch.index, dataset.unlabeled),
        ):
            for image, index in zip(images, indices.tolist(), strict=True):
                assert (image[2] == int(samples[index].name)).all()  # blue is the number of the image


@pytest.mark.parametrize("channel", [0, 1])
def test_images_and_labels_are_aligned(dataset, config, write, channel):
    if channel == 1:  # masks that hold the row, as green does, in place of the column
        for sample in dataset.labeled:
            write(f"masks/{sample.name}.png", np.arange(20, dtype=np.uint8)[:, None].repeat(24, 1))
    for batch in batches(dataset, config):
        inner = (batch.label > 1) & (batch.label < 18)
        inner[:, [0, -1]] = inner[..., [0, -1]] = False
        assert inner.any()
        assert ((batch.image[:, channel].int() - 8 * batch.label.int()).abs()[inner] <= 6).all()


def test_every_turn_has_its_own_augmentation(dataset, config):
    one = replace(dataset, labeled=dataset.labeled[:1], unlabeled=dataset.unlabeled[:1])
    batch = batches(one, config, batch_size=8, num_steps=1)[0]
    assert len({tuple(image.flatten().tolist()) for image in batch.image}) == 8
    assert len({tuple(image.flatten().tolist()) for image in batch.weak}) == 8


def test_a_batch_longer_than_the_list_wraps_around(dataset, config):
    batch = batches(dataset, config, batch_size=9, num_steps=1)[0]
    assert batch.image.shape == (9, 3, 16, 16)
    assert set(Counter(batch.labeled_index.tolist()).values()) == {1, 2}
    assert max(Counter(batch.index.tolist()).values()) == 3


def test_padding_is_marked(dataset, config):
    large = config.model_copy(update={"crop": (60, 40)})
    batch = batches(dataset, large, num_steps=1)[0]
    assert batch.weak.shape == (4, 3, 60, 40)
    assert not batch.valid.all()
    assert (batch.label == IGNORE).any()
    assert (batch.weak[:, 0][~batch.valid] == 124).all()


def test_padding_has_the_color_that_the_recipe_names(dataset, config):
    """The authors cut the digits of ImageNet's mean off (D33)."""
    large = config.model_copy(update={"crop": (60, 40), "padding_color": (123, 116, 103)})
    batch = batches(dataset, large, num_steps=1)[0]
    padded = batch.weak.movedim(1, -1)[~batch.valid]
    assert len(padded)
    assert (padded == torch.tensor([123, 116, 103])).all()


@pytest.mark.parametrize("val_long_side", ["same", None, 20])
def test_long_side_comes_before_the_scale(dataset, config, val_long_side):
    config = config.model_copy(update={"val_long_side": val_long_side})  # does not change training
    small = config.model_copy(update={"long_side": 12, "scale": (1.0, 1.0), "crop": (10, 12), "flip": 0.0})
    batch = batches(dataset, small, num_steps=1)[0]
    assert batch.valid.all()  # 20x24 became 10x12
    assert batch.label[0, 0].tolist() == list(range(1, 24, 2))


def test_without_unlabeled_images(dataset, config):
    batch = batches(replace(dataset, unlabeled=()), config, views=Views(unlabeled=False), num_steps=1)[0]
    assert batch.weak.shape == (0, 3, 16, 16)
    assert batch.valid.shape == (0, 16, 16)
    assert batch.index.shape == (0,)
    assert_equal([batch], [replace(batches(dataset, config, views=Views(unlabeled=False), num_steps=1)[0])])


PSEUDO = Views(pseudo=True)


@pytest.fixture
def pseudo_labeled(dataset, folder, write, ramp) -> Dataset:
    """Predictions for three of the four unlabeled images hold the column, as masks do."""
    for number in (8, 9, 11):
        write(f"old/{number:02}.png", ramp(20, 24)[1])
    return with_pseudo_labels(dataset, folder / "old")


@pytest.mark.parametrize("cache", [False, True])
def test_pseudo_labels_come_with_their_images(dataset, pseudo_labeled, config, cache):
    unscaled = config.model_copy(update={"scale": (1.0, 1.0), "crop": (16, 28), "cache": cache})
    seen = set()
    for batch, plain in zip(batches(pseudo_labeled, unscaled, views=PSEUDO), batches(dataset, unscaled), strict=True):
        assert torch.equal(batch.image, plain.image)  # of images with masks
        assert torch.equal(batch.label, plain.label)
        assert torch.equal(batch.pseudo == IGNORE, ~batch.valid)
        assert torch.equal(batch.weak[:, 0][batch.valid], 8 * batch.pseudo[batch.valid])
        seen |= set(batch.weak[:, 2][batch.valid].tolist())  # blue: the number of the image
        assert plain.pseudo.numel() == 0
    assert seen == {8, 9, 11}


def test_pseudo_labels_do_not_depend_on_workers(pseudo_labeled, config):
    changed = config.model_copy(update={"workers": 2})
    assert_equal(batches(pseudo_labeled, changed, views=PSEUDO), batches(pseudo_labeled, config, views=PSEUDO))


def test_a_method_that_needs_pseudo_labels_is_told_so_at_once(dataset, config):
    with pytest.raises(UserError, match=r"^data\.pseudo: .*semiseg self-train"):
        train_loader(dataset, config, PSEUDO, batch_size=1, seed=0, start=0, num_steps=1)
    with pytest.raises(ValueError, match="unlabeled=False"):
        Views(unlabeled=False, pseudo=True)


def test_a_method_that_needs_unlabeled_images_is_told_so_at_once(dataset, config):
    with pytest.raises(UserError, match=r"^data\.unlabeled: "):
        train_loader(replace(dataset, unlabeled=()), config, Views(), batch_size=1, seed=0, start=0, num_steps=1)


def test_masks_of_unlabeled_images_are_not_read(dataset, config, folder):
    (folder / "masks/09.png").write_bytes(b"no image")
    pool = tuple(replace(sample, mask=folder / "masks/09.png") for sample in dataset.unlabeled)
    assert_equal(batches(replace(dataset, unlabeled=pool), config), batches(dataset, config))


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_arrive_in_one_line(dataset, config, workers):
    dataset.unlabeled[0].image.write_bytes(b"no image")
    dataset.val[0].image.unlink()
    changed = config.model_copy(update={"workers": workers})
    with pytest.raises(UserError) as caught:
        batches(dataset, changed)
    assert str(caught.value).startswith(f"{dataset.unlabeled[0].image}: not a readable image")
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []  # although `caught` keeps the frames of the loader
    with pytest.raises(UserError) as caught:
        list(eval_loader(dataset.val, dataset, changed))
    assert str(caught.value) == f"{dataset.val[0].image}: no such file"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_sees_every_sample_once(dataset, config, world_size):
    samples = dataset.labeled[:4]
    loaders = [eval_loader(samples, dataset, config, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2):  # a loader can be used again
        assert sorted(item.index for loader in loaders for item in loader) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("long_side", "val_long_side", "size"),
    [
        (None, "same", (20, 24)),
        (16, "same", (13, 16)),
        (16, None, (20, 24)),
        (None, 16, (13, 16)),
        (16, 48, (40, 48)),
    ],
)
def test_evaluation_resizes_the_image_and_not_the_mask(dataset, config, long_side, val_long_side, size):
    resized = config.model_copy(update={"long_side": long_side, "val_long_side": val_long_side})
    items = eval_loader(dataset.val, dataset, resized)
    for item, sample in zip(items, dataset.val, strict=True):
        assert item.image.shape == (3, *size)
        assert (item.image[2] == int(sample.name)).all()
        assert item.mask.tolist() == [list(range(24))] * 20


@pytest.mark.parametrize("cache", [False, True])
def test_white_is_for_training_and_evaluation(dataset, config, cache):
    """The same photographs as 16-bit images that hold at most 4080."""
    expected, shown = batches(dataset, config), [item.image for item in eval_loader(dataset.val, dataset, config)]
    for sample in (*dataset.labeled, *dataset.unlabeled, *dataset.val):
        with Image.open(sample.image) as image:
            gray = np.asarray(image)[..., 2]  # the number of the image
        Image.fromarray(gray.astype(np.uint16) * 16).save(sample.image)
    config = config.model_copy(update={"white": 16 * 255, "cache": cache})
    for ours, theirs in zip(batches(dataset, config), expected, strict=True):
        for one, other in ((ours.image, theirs.image), (ours.weak, theirs.weak)):
            inside = other[:, 2] != config.padding_color[2]
            assert torch.equal(one[:, 0][inside], other[:, 2][inside])
            assert inside.any()
    for item, image in zip(eval_loader(dataset.val, dataset, config), shown, strict=True):
        assert torch.equal(item.image, image[2].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), True),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),  # while its batch was on the way
        (EOFError(), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"), False),
        (EOFError("Caught EOFError in DataLoader worker process 0.\nOriginal Traceback"), False),
        (RuntimeError("a bug"), False),
    ],
)
def test_a_worker_that_died_is_told_from_one_that_failed(dataset, config, monkeypatch, error, dead):
    """New workers continue with the next batch if a worker died. Other errors are raised."""
    plain = batches(dataset, config)
    fetch, calls, told = DataLoader.__iter__, [], []

    def fails_once(loader):
        calls.append(loader)
        items = fetch(loader)
        if len(calls) == 1:
            yield next(items)
            raise error
        yield from items

    monkeypatch.setattr(DataLoader, "__iter__", fails_once)
    tell = {"on_restart": lambda key, reason: told.append((key, reason))}
    if dead:
        assert_equal(batches(dataset, config, **tell), plain)
        assert told == [(1, str(error).strip() or "EOFError")]
    else:
        with pytest.raises(type(error)):
            batches(dataset, config, **tell)


@pytest.fixture
def photographs(folder, write) -> Dataset:
    """JPEGs of 200x240 px, ten times the ramps, with masks of that size."""
    for path in sorted((folder / "images").glob("*.png")):
        small = Image.open(path)
        path.unlink()
        write(f"images/{path.stem}.jpg", np.array(small.resize((240, 200), Image.Resampling.BILINEAR)), quality=95)
    for path in (folder / "masks").glob("*.png"):
        write(f"masks/{path.name}", np.array(Image.open(path).resize((240, 200), Image.Resampling.NEAREST)))
    return layout.load(layout.Config(root=folder))


@pytest.mark.parametrize("cached", [False, True])
def test_large_photographs_are_decoded_small_and_stay_aligned(photographs, config, cached):
    changed = config.model_copy(update={"long_side": 24, "cache": cached})
    seen = 0
    for batch in batches(photographs, changed):
        inner = batch.label != IGNORE
        inner[:, :, 0] = inner[:, :, -1] = False  # filters find less at the border
        seen += int(inner.sum())
        assert ((batch.image[:, 0].int() - 8 * batch.label.int()).abs()[inner] <= 14).float().mean() > 0.97
    assert seen > 1000


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing(dataset, config, workers):
    changed = config.model_copy(update={"cache": True, "workers": workers})
    assert_equal(batches(dataset, changed), batches(dataset, config))


def test_what_one_worker_has_decoded_the_others_need_not(dataset, config):
    settings = {"views": Views(), "batch_size": 4, "seed": 0, "start": 0, "num_steps": 8}
    expected = batches(dataset, config)
    loader = train_loader(dataset, config.model_copy(update={"cache": True, "workers": 2}), **settings)
    assert_equal(list(loader)[:6], expected)
    for sample in (*dataset.labeled, *dataset.unlabeled):
        sample.image.unlink()
    assert_equal(list(loader)[:6], expected)  # new processes, the same memory


def test_a_list_without_unlabeled_images_takes_no_memory_for_them(dataset, config):
    views, cached = Views(unlabeled=False), config.model_copy(update={"cache": True})
    loader = train_loader(dataset, cached, views, batch_size=4, seed=0, start=0, num_steps=1)
    labeled, unlabeled = loader.dataset.caches  # type: ignore[attr-defined]
    assert labeled.content.numel() == 6 * 20 * 24 * 4
    assert unlabeled.content.numel() == 0


def test_an_unreadable_image_is_told_with_a_cache_too(dataset, config):
    dataset.unlabeled[1].image.write_bytes(b"no image")
    cached = config.model_copy(update={"cache": True})
    with pytest.raises(UserError, match="not a readable image"):
        batches(dataset, cached)
    skipping = cached.model_copy(update={"on_unreadable": "skip"})
    ours = batches(dataset, skipping)
    theirs = batches(dataset, config.model_copy(update={"on_unreadable": "skip"}))
    assert [batch.skipped for batch in ours] == [batch.skipped for batch in theirs]
    assert torch.equal(ours[-1].weak, theirs[-1].weak)


@pytest.mark.parametrize(
    ("free", "enough"), [(6 * 20 * 24 * 4 + 9000, True), (6 * 20 * 24 * 4 + 8000, False), (99, False)]
)
def test_too_little_memory_is_said_before_it_is_taken(dataset, config, monkeypatch, free, enough):
    """Room for batches on their way is left: 2 of 4 images of 16x16 px, 4 bytes a pixel."""
    monkeypatch.setattr("semiseg.data.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    cached = config.model_copy(update={"cache": True})
    if enough:
        batches(dataset, cached, views=Views(unlabeled=False))
        return
    with pytest.raises(
        UserError, match=r"data.cache: decoded images take 0.00 GB and batches .* /dev/shm has .* use cache"
    ):
        batches(dataset, cached, views=Views(unlabeled=False))


def test_memory_that_another_process_took_meanwhile_is_one_line_too(dataset, config, monkeypatch):
    def taken(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", taken)
    with pytest.raises(UserError, match=r"data\.cache: decoded images take"):
        batches(dataset, config.model_copy(update={"cache": True}))


@pytest.mark.parametrize(
    ("megabytes", "says"),
    [
        (17.0, "17.00 MB free; use data.workers=1 or data.workers=0, .*--shm-size=1g"),
        (13.0, "13.00 MB free; use data.workers=0, "),
        (24.9, None),
    ],
)
def test_batches_that_do_not_fit_into_shared_memory(dataset, config, monkeypatch, megabytes, says):
    """Two processes keep two batches ready each, and two more are in use: 6 of 4 x 2 x 4 x 360 x 360 bytes."""
    monkeypatch.setattr(loader_module, "free", lambda: megabytes * 1e6)
    large = config.model_copy(update={"crop": 360, "workers": 2})
    settings = {"views": Views(), "batch_size": 4, "seed": 0, "start": 0, "num_steps": 20}
    if says:
        with pytest.raises(UserError, match=f"^data.workers: .*2 loader processes take 24.88 MB of .*{says}"):
            train_loader(dataset, large, **settings)
    else:
        train_loader(dataset, large, **settings)
    train_loader(dataset, large.model_copy(update={"workers": 0}), **settings)
    train_loader(dataset, large, **settings | {"num_steps": 3})
    with pytest.raises(UserError, match=r"take 37\.32 MB of shared memory"):  # a second crop of each unlabeled image
        train_loader(dataset, large, **settings | {"views": OVERLAP})


def test_class_balanced_labels_are_drawn_by_their_classes(folder):
    config = layout.Config(root=folder, crop=16, workers=0, labeled_order="class_balanced", temperature=0.01)
    dataset = layout.load(config)
    counts = [{0: 100}] * len(dataset.labeled)
    counts[3] = {0: 99, 1: 1}
    dataset = replace(dataset, class_counts=tuple(counts))
    batches = train_loader(dataset, config, Views(unlabeled=False), batch_size=4, seed=0, start=0, num_steps=5)
    drawn = torch.cat([batch.labeled_index for batch in batches])
    assert (drawn == 3).all()  # at this temperature class 1 is always drawn


def test_a_method_that_needs_partners_is_told_before_training(dataset, config):
    alone = replace(dataset, unlabeled=dataset.unlabeled[:1])
    check_loading(alone, config, Views(), 4, 9)
    check_loading(alone, config, Views(unlabeled=False, min_unlabeled=2), 4, 9)
    with pytest.raises(UserError, match=r"data\.unlabeled: 1 image is too few: .* needs 2"):
        check_loading(alone, config, Views(min_unlabeled=2), 4, 9)
