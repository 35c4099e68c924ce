"""From a loaded batch to what a method sees: strong views and normalization, on the device of the batch."""

from dataclasses import dataclass

from semiseg.augment import intensity
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch, Normalization, SemiBatch


@dataclass(frozen=True)
class Views:
    """What a method wants to see.

    Attributes:
        unlabeled: whether it looks at unlabeled images at all; if not, none are loaded.
        strong: the intensity pool of each strong view; all views share the geometry of the weak one.
    """

    unlabeled: bool = True
    strong: tuple[intensity.Config, ...] = ()


def make_batch(
    loaded: LoadedBatch,
    views: Views,
    normalize: Normalization,
    seed: int,
    step: int,
    first: int = 0,
    whole_size: int | None = None,
) -> SemiBatch:
    """The batch of one step, or a part of it.

    Each strong view draws its operations for the whole batch, from `fold_in(seed, "strong", view, step)`, so that an
    image is augmented alike whatever the number of parts.

    Args:
        loaded: what the loader made.
        views: what the method asks for.
        normalize: how its networks' input is normalized.
        seed: of the run.
        step: of the run.
        first: position in the whole batch of the first image.
        whole_size: unlabeled images in the whole batch; None: `loaded` is whole.
    """
    num_images = len(loaded.weak)
    strong = []
    for view, pool in enumerate(views.strong):
        params = intensity.sample(fold_in(seed, "strong", view, step), whole_size or num_images, pool)
        strong.append(normalize(intensity.apply(loaded.weak, params[first : first + num_images])))
    return SemiBatch(
        image=normalize(loaded.image),
        label=loaded.label.long(),
        weak=normalize(loaded.weak),
        strong=tuple(strong),
        valid=loaded.valid,
        index=loaded.index,
    )
