"""How far unlabeled images lie from labeled ones, by their colors and their texture.

If both come from the same source, an unlabeled image lies above all n labeled ones in one of n + 1 cases, and outside
their range in two of n + 1. More than that is a shift.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semiseg.data.dataset import DataConfig, Dataset, Sample
from semiseg.data.read import fit, read_image, resize_image
from semiseg.errors import UnreadableError
from semiseg.rng import fold_in

STATISTICS = ("red", "green", "blue", "contrast of red", "contrast of green", "contrast of blue", "texture")
_SIDE = 256  # px; all images are resized to it, because texture depends on the size
_MOST = 200  # unlabeled images
_SURPRISE = 0.05  # probability that a shift is seen where there is none


def statistics(image: UInt8[Tensor, "3 h w"]) -> Float[Tensor, " s"]:
    """Computes mean and standard deviation of each channel, and the mean length of the gradient of gray levels.

    Example:
        A flat image has no contrast and no texture.

        >>> statistics(torch.full((3, 4, 4), 51, dtype=torch.uint8)).tolist()
        [51.0, 51.0, 51.0, 0.0, 0.0, 0.0, 0.0]
    """
    levels = image.float()
    gray = levels.mean(0)
    across = gray.diff(dim=1, append=gray[:, -1:])
    down = gray.diff(dim=0, append=gray[-1:])
    return torch.cat([levels.mean((1, 2)), levels.std((1, 2), correction=0), torch.hypot(across, down).mean()[None]])


def shift(labeled: Float[Tensor, "n s"], unlabeled: Float[Tensor, "m s"]) -> list[str]:
    """Says which share of the unlabeled images lies outside the range of the labeled ones, and whether that is much.

    It is much if the share above (or below) all labeled images is one that images of a single source have in less than
    5 % of cases, over all statistics and both directions. Of such images the share above the largest of n exceeds t
    with probability (1 - t)^n.

    Args:
        labeled: the `statistics` of one or more labeled images.
        unlabeled: those of one or more unlabeled images.

    Returns:
        Two lines.
    """
    n, m = len(labeled), len(unlabeled)
    sides = torch.stack([unlabeled > labeled.amax(0), unlabeled < labeled.amin(0)]).double().mean(1)
    outside = zip(STATISTICS, sides.sum(0).tolist(), strict=True)
    each = ", ".join(f"{name} {_percent(share)}" for name, share in outside)
    chance = _percent(2 / (n + 1))
    line = f"Share of {m} unlabeled images outside the range of the {n} labeled ones (by chance {chance}): {each}."
    side, statistic = divmod(int(sides.argmax()), len(STATISTICS))
    share, limit = float(sides.max()), 1 - (_SURPRISE / sides.numel()) ** (1 / n)
    if share <= limit:
        return [line, "That may be chance: no shift between labeled and unlabeled images is seen."]
    than = f"{('more', 'less')[side]} {STATISTICS[statistic]} than every labeled one"
    advice = "such a shift speaks for photometric augmentation and unlabeled images"
    return [line, f"{_percent(share)} have {than}, which is no chance; {advice}."]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def look(
    dataset: Dataset,
    config: DataConfig,
    seed: int,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[Tensor, "n s"], Float[Tensor, "m s"]]:
    """Computes the statistics of all labeled images, and of at most 200 unlabeled ones, which `seed` draws.

    Args:
        dataset: the images.
        config: its white and on_unreadable.
        seed: another seed draws other images.
        on_image: called with the number of images that are done and the number of all images.

    Raises:
        UserError: an image cannot be read, and `on_unreadable` is not skip.
    """
    order = torch.randperm(len(dataset.unlabeled), generator=fold_in(seed, "appearance"))
    drawn = [dataset.unlabeled[index] for index in sorted(order[:_MOST].tolist())]
    total = len(dataset.labeled) + len(drawn)

    def one(sample: Sample) -> Float[Tensor, " s"]:
        try:
            image = read_image(sample.image, _SIDE, config.white)
        except UnreadableError:
            if config.on_unreadable == "error":
                raise
            return torch.full((len(STATISTICS),), math.nan)
        return statistics(resize_image(image, fit(image.shape[1], image.shape[2], _SIDE)))

    def of(samples: Sequence[Sample], before: int) -> Float[Tensor, "n s"]:
        found = [torch.empty(0, len(STATISTICS))]
        with ThreadPoolExecutor() as threads:
            for done, row in enumerate(threads.map(one, samples), before + 1):
                found.append(row[None])
                on_image(done, total)
        rows = torch.cat(found)
        return rows[~rows.isnan().any(1)]

    return of(dataset.labeled, 0), of(drawn, len(dataset.labeled))
