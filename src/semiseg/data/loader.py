"""Training batches, made in worker processes. A batch depends on its step, not on the batches before it.

Turn n of a list gets the image that `order.py` says, with a weak augmentation drawn for n. So resuming replays nothing,
the number of workers changes nothing, and two processes with batch size b see the images of one process with batch size
2b. Two differences from the authors' code: every image comes once in a round, however long the other list is (D35), and
the two lists have separate orders (D36).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from semiseg.augment.views import Views
from semiseg.data import weak
from semiseg.data.cache import SHARED, Cache, free, megabytes
from semiseg.data.dataset import DataConfig, Dataset, Sample
from semiseg.data.masks import read_pair
from semiseg.data.order import ClassBalanced, Order, Shuffled
from semiseg.data.pseudo import as_unlabeled
from semiseg.data.read import fit, read_image, read_size, resize_image, resize_mask
from semiseg.data.restart import OnRestart, RestartingLoader, restarting
from semiseg.errors import UnreadableError, UserError
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch

T = TypeVar("T", covariant=True)
Images = tuple[Tensor, ...]  # an image, and its mask if there is one

_MAX_SKIPS = 100  # unreadable images in a row: then the cause is probably the disk


@dataclass(frozen=True)
class EvalItem:
    """One validation image, and its mask at the size that it has on disk."""

    index: int  # position in the list of samples
    image: UInt8[Tensor, "3 h w"]  # at the size for evaluation
    mask: UInt8[Tensor, "H W"]  # at its original size

    def pin_memory(self) -> "EvalItem":
        """Copies the item to pinned memory (called by the DataLoader)."""
        return replace(self, image=self.image.pin_memory(), mask=self.mask.pin_memory())


def train_loader(
    dataset: Dataset,
    config: DataConfig,
    views: Views,
    *,
    batch_size: int,
    seed: int,
    start: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    on_restart: OnRestart = lambda key, reason: None,
) -> DataLoader[LoadedBatch]:
    """Yields the batches of steps `start` to `num_steps` - 1. Each batch is made by one worker.

    Args:
        dataset: the data to load.
        config: its crop, scale, flip, long_side, white, padding_color, cache, workers and on_unreadable.
        views: the views that the method needs: unlabeled images or none, and one or two crops of each.
        batch_size: number of slots that this process gets in a step; each has `views.images_per_slot` images.
        seed: order and augmentation depend on it.
        start: the first step.
        num_steps: the step after the last one.
        rank: number of this process, from 0.
        world_size: number of processes.
        on_restart: called with the step and the reason when worker processes died and new ones replace them.

    Raises:
        UserError: there are no unlabeled images, or batches or decoded images do not fit into memory. While iterating:
            an image or mask cannot be read (with `on_unreadable: skip` a hundred in a row), or workers die repeatedly.
    """
    check_loading(dataset, config, views, batch_size, num_steps - start)
    dataset = as_unlabeled(dataset) if views.pseudo else dataset
    caches = None
    if config.cache:
        pool = dataset.unlabeled if views.unlabeled else ()
        height, width = config.crop_size
        images = (2 * config.workers + 2) * batch_size * views.images_per_slot  # these are in shared memory, too
        lists = (dataset.labeled, 4), (pool, 4 if views.pseudo else 3)
        caches = tuple(
            Cache(_sizes(samples, config), planes, spare=4 * images * height * width) for samples, planes in lists
        )
    orders = _labeled_order(dataset, config, seed), Shuffled(len(dataset.unlabeled), seed, "unlabeled")
    batches = _TrainBatches(dataset, config, views, batch_size, seed, rank, world_size, caches, orders)
    return restarting(batches, range(start, num_steps), config.workers, False, on_restart)


def check_loading(dataset: Dataset, config: DataConfig, views: Views, batch_size: int, num_steps: int) -> None:
    """Checks what `train_loader` needs. Its arguments mean the same.

    Raises:
        UserError: there are fewer unlabeled images than the method needs, or batches do not fit into shared memory.
    """
    dataset = as_unlabeled(dataset) if views.pseudo else dataset
    if views.unlabeled and not dataset.unlabeled:
        raise UserError(
            "data.unlabeled: there are no unlabeled images, and the method needs some; add images or a list"
        )
    if views.unlabeled and len(dataset.unlabeled) < views.min_unlabeled:
        raise UserError(
            f"data.unlabeled: {len(dataset.unlabeled)} image is too few: the method pastes boxes of one image into "
            f"another and needs {views.min_unlabeled}; add images, or choose another method"
        )
    _check_shared_memory(config, batch_size * views.images_per_slot, num_steps)


def _labeled_order(dataset: Dataset, config: DataConfig, seed: int) -> Order:
    if config.labeled_order == "shuffled":
        return Shuffled(len(dataset.labeled), seed, "labeled")
    assert dataset.class_counts is not None, "the caller counts classes for this order"
    return ClassBalanced.of(dataset.class_counts, config.temperature or 0.01, seed)


def _check_shared_memory(config: DataConfig, images: int, steps: int) -> None:
    """Checks that the batches which loader processes keep ready fit into shared memory: two for each, and two in use.

    Raises:
        UserError: they do not. Without this check the run would fail later, as soon as shared memory is full.
    """
    height, width = config.crop_size
    batch = 4 * images * height * width  # three colors, and a label or the mask of valid pixels
    available, needed = free(), min(2 * config.workers + 2, steps) * batch
    if not config.workers or needed <= available:
        return
    fitting = max(0, int(available // batch) - 2) // 2
    fewer = f"data.workers={fitting} or " if fitting else ""
    raise UserError(
        f"data.workers: the batches of {config.workers} loader processes take {megabytes(needed)} of shared memory, "
        f"and {SHARED} has {megabytes(available)} free; use {fewer}data.workers=0, a smaller batch or crop, or more "
        f"shared memory (docker run --shm-size={-(-needed // 2**30)}g)"
    )


def eval_loader(
    samples: Sequence[Sample],
    dataset: Dataset,
    config: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_restart: OnRestart = lambda key, reason: None,
) -> RestartingLoader[EvalItem]:
    """Yields `samples` one by one, each in exactly one of the processes. Its workers live until it is closed.

    Args:
        samples: samples with masks, usually `dataset.val`.
        dataset: its class table and mask values are used.
        config: its long side for evaluation, white and workers.
        rank: number of this process, from 0.
        world_size: number of processes.
        on_restart: called with the position and the reason when worker processes died and new ones replace them.

    Raises:
        UserError: while iterating, an image or mask cannot be read (validation images are never skipped), or workers
            die repeatedly.
    """
    items = _EvalItems(tuple(samples), dataset, config)
    return restarting(items, range(rank, len(samples), world_size), config.workers, True, on_restart)


def _sizes(samples: Sequence[Sample], config: DataConfig) -> list[tuple[int, int] | None]:
    """Returns height and width of each decoded image, or None for a file whose header cannot be read."""
    sizes: list[tuple[int, int] | None] = []
    for sample in samples:
        try:
            sizes.append(read_size(sample.image, config.largest_side))
        except UnreadableError:  # reported, or skipped, when the image is read
            sizes.append(None)
    return sizes


@dataclass(frozen=True)
class _TrainBatches(torch.utils.data.Dataset[LoadedBatch]):
    """Maps a step to its batch, or to the UserError that prevents it."""

    dataset: Dataset
    config: DataConfig
    views: Views
    batch_size: int
    seed: int
    rank: int
    world_size: int
    caches: tuple[Cache, ...] | None  # one for labeled and one for unlabeled images
    orders: tuple[Order, Order]  # of labeled and of unlabeled images

    def __getitem__(self, step: int) -> LoadedBatch | UserError:  # type: ignore[override]
        first = (step * self.world_size + self.rank) * self.batch_size
        turns = range(first, first + self.batch_size)
        try:
            return self._load(turns)
        except UserError as error:
            return error

    def _load(self, turns: range) -> LoadedBatch:
        skipped: list[str] = []
        labeled = [self._labeled(turn, skipped) for turn in turns]
        pool = self._pool(turns, skipped) if self.views.unlabeled else self._empty_pool()
        return LoadedBatch(
            image=torch.stack([image for image, _, _ in labeled]),
            label=torch.stack([label for _, label, _ in labeled]),
            labeled_index=torch.tensor([index for _, _, index in labeled], dtype=torch.int64),
            **pool,
            skipped=tuple(skipped),
        )

    def _labeled(self, turn: int, skipped: list[str]) -> tuple[Tensor, Tensor, int]:
        index, (image, mask) = self._read("labeled", self.dataset.labeled, turn, self._read_labeled, skipped)
        params = weak.sample(fold_in(self.seed, "weak labeled", turn), (mask.shape[0], mask.shape[1]), self.config)
        return weak.apply_image(image, params), weak.apply_mask(mask, params), index

    def _read_labeled(self, sample: Sample) -> tuple[Tensor, ...]:
        image, mask = read_pair(sample, self.dataset.coding, self.config.largest_side, self.config.white)
        size = (image.shape[1], image.shape[2])
        return image, mask if mask.shape == size else resize_mask(mask, size)

    def _pool(self, turns: range, skipped: list[str]) -> dict[str, Tensor]:
        rows = [self._unlabeled(turn, skipped) for turn in turns]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _empty_pool(self) -> dict[str, Tensor]:
        height, width = self.config.crop_size
        return {
            "index": torch.empty(0, dtype=torch.int64),
            "weak": torch.empty(0, 3, height, width, dtype=torch.uint8),
            "valid": torch.empty(0, height, width, dtype=torch.bool),
        }

    def _unlabeled(self, turn: int, skipped: list[str]) -> dict[str, Tensor]:
        """Loads an image: index, crop and validity map; if asked for, a second crop with its alignment, a pseudo-label.

        A mask is read only if it is a prediction of an earlier run.
        """

        def read(sample: Sample) -> tuple[Tensor, ...]:
            if self.views.pseudo:
                assert sample.pseudo, f"{sample.name}: the mask is no prediction"
                return self._read_labeled(sample)
            return (read_image(sample.image, self.config.largest_side, self.config.white),)

        index, (image, *mask) = self._read("unlabeled", self.dataset.unlabeled, turn, read, skipped)
        size = (image.shape[1], image.shape[2])
        params = weak.sample(fold_in(self.seed, "weak unlabeled", turn), size, self.config)
        loaded = {"index": torch.tensor(index), "weak": weak.apply_image(image, params), "valid": weak.valid(params)}
        if self.views.pseudo:
            loaded["pseudo"] = weak.apply_mask(mask[0], params)
        if self.views.overlap is not None:
            second = weak.second(fold_in(self.seed, "weak second", turn), params, size, self.views.overlap, self.config)
            loaded |= {"second": weak.apply_image(image, second), "align": weak.alignment(params, second)}
        return loaded

    def _read(
        self, stream: str, samples: Sequence[Sample], turn: int, read: Callable[[Sample], Images], skipped: list[str]
    ) -> tuple[int, Images]:
        """Reads the sample of a turn, or the next readable one after it. Returns its position in the list, too."""
        order = self.orders[stream == "unlabeled"]
        attempts = min(len(samples), _MAX_SKIPS)
        for attempt in range(attempts):
            index = order.index(turn, attempt)
            try:
                if self.caches is None:
                    return index, read(samples[index])
                cache = self.caches[stream == "unlabeled"]
                return index, cache.get(index, partial(read, samples[index]))
            except UnreadableError as error:
                if self.config.on_unreadable == "error":
                    raise
                skipped.append(str(error))
        raise UserError(f"data.{stream}: {attempts} images in a row cannot be read; the last: {skipped[-1]}")


@dataclass(frozen=True)
class _EvalItems(torch.utils.data.Dataset[EvalItem]):
    """Maps a position in the list to its item, or to the UserError that prevents it."""

    samples: tuple[Sample, ...]
    dataset: Dataset
    config: DataConfig

    def __getitem__(self, index: int) -> EvalItem | UserError:  # type: ignore[override]
        try:
            return self._load(index)
        except UserError as error:
            return error

    def _load(self, index: int) -> EvalItem:
        # Decoded at full size, as `semiseg predict` does: the scores are those of the masks that it would write.
        image, mask = read_pair(self.samples[index], self.dataset.coding, white=self.config.white)
        size = fit(mask.shape[0], mask.shape[1], self.config.eval_long_side)
        return EvalItem(index, resize_image(image, size).contiguous(), mask)
