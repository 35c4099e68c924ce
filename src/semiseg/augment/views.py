"""Makes the batch that a method gets: strong views and normalization, on the device of the loaded batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semiseg.augment.pools import Strong
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch, Normalization, Second, SemiBatch


@dataclass(frozen=True)
class Views:
    """The views that a method needs.

    Attributes:
        unlabeled: whether the method uses unlabeled images. If not, none are loaded.
        strong: the pool of operations of each strong view. All strong views have the geometry of the weak view.
        labeled: the pool of operations on labeled images; None: they are augmented weakly only.
        overlap: range of the IoU of the two crops of each unlabeled image; None: there is one crop.
        min_unlabeled: number of unlabeled images that the data must have, e.g. 2 if each needs another one as partner.
        pseudo: whether the unlabeled images are those with a stored pseudo-label (data.pseudo), which comes with them.
    """

    unlabeled: bool = True
    strong: tuple[Strong, ...] = ()
    labeled: Strong | None = None
    overlap: tuple[float, float] | None = None
    min_unlabeled: int = 1
    pseudo: bool = False

    def __post_init__(self) -> None:
        if self.pseudo and not self.unlabeled:
            raise ValueError("pseudo is for unlabeled images, and there are none with unlabeled=False")
        if self.overlap is None:
            return
        if not 0 < self.overlap[0] <= self.overlap[1] <= 1:
            raise ValueError(f"overlap needs (low, high) with 0 < low <= high <= 1, got {self.overlap}")
        if not self.unlabeled:
            raise ValueError("overlap is for unlabeled images, and there are none with unlabeled=False")

    @property
    def images_per_slot(self) -> int:
        """Returns the number of images in a slot of a batch: a labeled one, and each crop of an unlabeled one."""
        return 1 + self.unlabeled + (self.overlap is not None)

    def blank(self, num_slots: int, size: tuple[int, int], device: str) -> SemiBatch:
        """Makes a batch of this many slots whose images of `size` (height, width) px have no values yet."""
        num_unlabeled = num_slots if self.unlabeled else 0
        with torch.device(device):
            weak = torch.empty(num_unlabeled, 3, *size)
            strong = (weak,) * len(self.strong)
            valid = torch.empty(num_unlabeled, *size, dtype=torch.bool)
            return SemiBatch(
                image=torch.empty(num_slots, 3, *size),
                label=torch.empty(num_slots, *size, dtype=torch.long),
                weak=weak,
                strong=strong,
                valid=valid,
                index=torch.empty(num_unlabeled, dtype=torch.long),
                second=None if self.overlap is None else Second(weak, strong, valid, torch.empty(num_unlabeled, 2, 2)),
                pseudo=torch.empty(num_unlabeled, *size, dtype=torch.long) if self.pseudo else None,
            )


def make_batch(
    loaded: LoadedBatch,
    views: Views,
    normalize: Normalization,
    seed: int,
    step: int,
    first: int = 0,
    whole_size: int | None = None,
) -> SemiBatch:
    """Makes the batch of one step, or a part of it.

    Each strong view draws the operations of the whole batch, from `fold_in(seed, "strong", view, step)`; that of a
    second crop from `fold_in(seed, "strong second", view, step)`. So the augmentation of an image does not depend on
    the number of parts.

    Args:
        loaded: the batch that the loader made, or a part of it.
        views: the views that the method needs.
        normalize: the normalization of the method's networks.
        seed: the seed of the run.
        step: the number of the step.
        first: the first slot of `loaded` in the whole batch.
        whole_size: number of slots (labeled images) of the whole batch. None: `loaded` is the whole batch.
    """
    num_slots = whole_size or len(loaded.image)

    def strong(image: UInt8[Tensor, "b 3 h w"], pool: Strong, *where: int | str) -> Float[Tensor, "b 3 h w"]:
        drawn = pool.sample(fold_in(seed, *where, step), num_slots)
        return normalize(pool.apply(image, drawn[first : first + len(image)]))

    image, labeled, second = loaded.image, views.labeled, None
    if views.overlap is not None:
        second = Second(
            weak=normalize(loaded.second),
            strong=tuple(strong(loaded.second, pool, "strong second", n) for n, pool in enumerate(views.strong)),
            valid=loaded.valid,
            align=loaded.align,
        )
    return SemiBatch(
        image=normalize(image) if labeled is None else strong(image, labeled, "strong labeled"),
        label=loaded.label.long(),
        weak=normalize(loaded.weak),
        strong=tuple(strong(loaded.weak, pool, "strong", n) for n, pool in enumerate(views.strong)),
        valid=loaded.valid,
        index=loaded.index,
        second=second,
        pseudo=loaded.pseudo.long() if views.pseudo else None,
    )
