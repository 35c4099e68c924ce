"""Batches as a function of the step, made in worker processes.

Sample n of a stream is known without those before it: position n % N of the permutation that belongs to round n // N,
with the weak augmentation that belongs to n. So resuming replays nothing, the number of workers changes nothing, and
two ranks with batch b see the images of one rank with batch 2b. Unlike in the authors' code every image comes once a
round, however long the other list is (D35), and the two lists have orders of their own (D36).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from semiseg.data import weak
from semiseg.data.dataset import DataConfig, Dataset, Sample
from semiseg.data.read import fit, read_image, read_pair, resize_image, resize_mask
from semiseg.errors import UserError
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class EvalItem:
    """One image of an evaluation, and its mask as it is on disk."""

    index: int  # position in the list of samples
    image: UInt8[Tensor, "3 h w"]  # at data.long_side
    mask: UInt8[Tensor, "H W"]  # at its original size

    def pin_memory(self) -> "EvalItem":
        """The same item in pinned memory (called by the DataLoader)."""
        return replace(self, image=self.image.pin_memory(), mask=self.mask.pin_memory())


def train_loader(
    dataset: Dataset,
    config: DataConfig,
    *,
    batch_size: int,
    unlabeled: bool,
    seed: int,
    start: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[LoadedBatch]:
    """Yields the batches of steps `start` to `num_steps` - 1, one whole batch a worker task.

    Args:
        dataset: what to load.
        config: crop, scale, flip, long side, workers.
        batch_size: labelled images, and as many unlabelled ones, a step and process.
        unlabeled: whether to load unlabelled images at all; batches have none otherwise.
        seed: decides order and augmentation.
        start: first step.
        num_steps: one after the last step.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: there are no unlabelled images; while iterating, an image or mask cannot be read.
    """
    if unlabeled and not dataset.unlabeled:
        raise UserError(
            "data.unlabeled: there are no unlabelled images, and the method needs some; add images or a list"
        )
    batches = _TrainBatches(dataset, config, batch_size, unlabeled, seed, rank, world_size)
    return _loader(batches, range(start, num_steps), config.workers, keep_workers=False)


def eval_loader(
    samples: Sequence[Sample],
    dataset: Dataset,
    config: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[EvalItem]:
    """Yields `samples` one by one, each exactly once over all ranks.

    Args:
        samples: labelled samples, usually `dataset.val`.
        dataset: gives the class table and the mask values.
        config: long side, workers.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: while iterating, an image or mask cannot be read.
    """
    items = _EvalItems(tuple(samples), dataset, config)
    return _loader(items, range(rank, len(samples), world_size), config.workers, keep_workers=True)


class _Loader(DataLoader[T], Generic[T]):
    """A DataLoader whose workers hand a UserError over as it is: torch would wrap it in a page of traceback."""

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, UserError):
                self._iterator = None  # stops kept workers now: left to the garbage collector, they time out first
                raise UserError(str(item))
            yield item


def _loader(batches: torch.utils.data.Dataset[T], keys: range, workers: int, keep_workers: bool) -> DataLoader[T]:
    # torch sets each worker to one thread, so that workers and the training process do not fight for cores
    return _Loader(
        batches,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=keep_workers and workers > 0,
    )


@dataclass(frozen=True)
class _TrainBatches(torch.utils.data.Dataset[LoadedBatch]):
    """Step -> the batch of that step, or the UserError that prevents it."""

    dataset: Dataset
    config: DataConfig
    batch_size: int
    unlabeled: bool
    seed: int
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> LoadedBatch | UserError:  # type: ignore[override]
        first = (step * self.world_size + self.rank) * self.batch_size
        turns = range(first, first + self.batch_size)
        try:
            return self._load(turns)
        except UserError as error:
            return error

    def _load(self, turns: range) -> LoadedBatch:
        labeled = [self._labeled(turn) for turn in turns]
        pool = [self._unlabeled(turn) for turn in turns] if self.unlabeled else []
        crop = self.config.crop_size
        return LoadedBatch(
            image=torch.stack([image for image, _, _ in labeled]),
            label=torch.stack([label for _, label, _ in labeled]),
            weak=torch.stack([image for image, _, _ in pool]) if pool else torch.empty(0, 3, *crop, dtype=torch.uint8),
            valid=torch.stack([valid for _, valid, _ in pool]) if pool else torch.empty(0, *crop, dtype=torch.bool),
            labeled_index=torch.tensor([index for _, _, index in labeled], dtype=torch.int64),
            index=torch.tensor([index for _, _, index in pool], dtype=torch.int64),
        )

    def _labeled(self, turn: int) -> tuple[Tensor, Tensor, int]:
        index = _position(self.seed, "labeled order", len(self.dataset.labeled), turn)
        image, mask = read_pair(self.dataset.labeled[index], len(self.dataset.classes), self.dataset.values)
        size = fit(mask.shape[0], mask.shape[1], self.config.long_side)
        params = weak.sample(fold_in(self.seed, "weak labeled", turn), size, self.config)
        label = weak.apply_mask(resize_mask(mask, size), params)
        return weak.apply_image(resize_image(image, size), params), label, index

    def _unlabeled(self, turn: int) -> tuple[Tensor, Tensor, int]:
        index = _position(self.seed, "unlabeled order", len(self.dataset.unlabeled), turn)
        image = read_image(self.dataset.unlabeled[index].image)
        size = fit(image.shape[1], image.shape[2], self.config.long_side)
        params = weak.sample(fold_in(self.seed, "weak unlabeled", turn), size, self.config)
        return weak.apply_image(resize_image(image, size), params), weak.valid(params), index


@dataclass(frozen=True)
class _EvalItems(torch.utils.data.Dataset[EvalItem]):
    """Position in the list -> the item, or the UserError that prevents it."""

    samples: tuple[Sample, ...]
    dataset: Dataset
    config: DataConfig

    def __getitem__(self, index: int) -> EvalItem | UserError:  # type: ignore[override]
        try:
            return self._load(index)
        except UserError as error:
            return error

    def _load(self, index: int) -> EvalItem:
        image, mask = read_pair(self.samples[index], len(self.dataset.classes), self.dataset.values)
        size = fit(mask.shape[0], mask.shape[1], self.config.long_side)
        return EvalItem(index, resize_image(image, size).contiguous(), mask)


def _position(seed: int, stream: str, size: int, turn: int) -> int:
    """Which of `size` samples has the `turn`-th turn of a stream."""
    return int(_order(seed, stream, size, turn // size)[turn % size])


@lru_cache(maxsize=8)
def _order(seed: int, stream: str, size: int, lap: int) -> Tensor:
    return torch.randperm(size, generator=fold_in(seed, stream, lap))
