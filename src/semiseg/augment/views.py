"""Makes the batch that a method gets: strong views and normalization, on the device of the loaded batch."""

from dataclasses import dataclass

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
