"""From a loaded batch to what a method sees: strong views and normalisation, on the device of the batch."""

from dataclasses import dataclass

from semiseg.augment import intensity
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch, Normalisation, SemiBatch


@dataclass(frozen=True)
class Views:
    """What a method wants to see.

    Attributes:
        unlabeled: whether it looks at unlabelled images at all; if not, none are loaded.
        strong: the intensity pool of each strong view; all views share the geometry of the weak one.
    """

    unlabeled: bool = True
    strong: tuple[intensity.Config, ...] = ()


def make_batch(
    loaded: LoadedBatch, views: Views, normalise: Normalisation, seed: int, step: int, rank: int = 0
) -> SemiBatch:
    """The batch of one step. Each strong view draws its operations from `fold_in(seed, "strong", view, step, rank)`."""
    strong = []
    for view, pool in enumerate(views.strong):
        params = intensity.sample(fold_in(seed, "strong", view, step, rank), loaded.weak.shape[0], pool)
        strong.append(normalise(intensity.apply(loaded.weak, params)))
    return SemiBatch(
        image=normalise(loaded.image),
        label=loaded.label.long(),
        weak=normalise(loaded.weak),
        strong=tuple(strong),
        valid=loaded.valid,
        index=loaded.index,
    )
