"""Makes the batch that a method gets: strong views and normalization, on the device of the loaded batch."""

from dataclasses import dataclass

import torch

from semiseg.augment.pools import Strong
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch, Normalization, SemiBatch


@dataclass(frozen=True)
class Views:
    """The views that a method needs.

    Attributes:
        unlabeled: whether the method uses unlabeled images. If not, none are loaded.
        strong: the pool of operations of each strong view. All strong views have the geometry of the weak view.
        labeled: the pool of operations on labeled images; None: they are augmented weakly only.
        min_unlabeled: number of unlabeled images that the data must have, e.g. 2 if each needs another one as partner.
    """

    unlabeled: bool = True
    strong: tuple[Strong, ...] = ()
    labeled: Strong | None = None
    min_unlabeled: int = 1

    @property
    def images_per_slot(self) -> int:
        """Returns the number of images in a slot of a batch: a labeled one, and an unlabeled one if they are used."""
        return 2 if self.unlabeled else 1

    def blank(self, num_slots: int, size: tuple[int, int], device: str) -> SemiBatch:
        """Makes a batch of this many slots whose images of `size` (height, width) px have no values yet."""
        num_unlabeled = num_slots if self.unlabeled else 0
        with torch.device(device):
            weak = torch.empty(num_unlabeled, 3, *size)
            return SemiBatch(
                image=torch.empty(num_slots, 3, *size),
                label=torch.empty(num_slots, *size, dtype=torch.long),
                weak=weak,
                strong=(weak,) * len(self.strong),
                valid=torch.empty(num_unlabeled, *size, dtype=torch.bool),
                index=torch.empty(num_unlabeled, dtype=torch.long),
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

    Each strong view draws the operations of the whole batch, from `fold_in(seed, "strong", view, step)`. So the
    augmentation of an image does not depend on the number of parts.

    Args:
        loaded: the batch that the loader made, or a part of it.
        views: the views that the method needs.
        normalize: the normalization of the method's networks.
        seed: the seed of the run.
        step: the number of the step.
        first: the first slot of `loaded` in the whole batch.
        whole_size: number of slots (labeled images) of the whole batch. None: `loaded` is the whole batch.
    """
    num_images, num_slots = len(loaded.weak), whole_size or len(loaded.image)
    strong = []
    for view, pool in enumerate(views.strong):
        drawn = pool.sample(fold_in(seed, "strong", view, step), num_slots)
        strong.append(normalize(pool.apply(loaded.weak, drawn[first : first + num_images])))
    image = loaded.image
    if views.labeled is not None:
        drawn = views.labeled.sample(fold_in(seed, "strong labeled", step), num_slots)
        image = views.labeled.apply(image, drawn[first : first + len(image)])
    return SemiBatch(
        image=normalize(image),
        label=loaded.label.long(),
        weak=normalize(loaded.weak),
        strong=tuple(strong),
        valid=loaded.valid,
        index=loaded.index,
    )
