"""Looks at images with the networks of a run, and keeps what ranking needs of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from semiseg.data.read import fit, read_image, resize_image
from semiseg.engine.predict import Predictor
from semiseg.engine.predict_files import Item
from semiseg.errors import UserError
from semiseg.hardness import confident_ratio, confusion, easiness
from semiseg.models.predict import most_likely, resize_probability
from semiseg.rank.measures import centered, closeness, entropy, presence
from semiseg.types import Prediction

_LARGEST = 2048  # px of the long side, if the run has none
_FEATURES = 256  # px of the long side from which features are computed


@dataclass(frozen=True)
class Compared:
    """What Eq. 7 needs beside two predictors.

    Attributes:
        threshold: tau; a pixel with at least this confidence is confident.
        ignore_class: this class gets weight 0 in wIoU; None: no class does.
    """

    threshold: float
    ignore_class: int | None


@dataclass(frozen=True)
class Looked:
    """What was measured on each image. All values are on the CPU.

    Attributes:
        items: the images that could be read.
        broken: what is wrong with the others.
        hardness: Eq. 7; None without a second predictor, as the next two.
        agreement: the share of the pixels on which both predictors show the same class.
        confident: the share of confident pixels, the mean of both predictors.
        entropy: of the predictor, between 0 and 1.
        closeness: 1 - margin of the predictor.
        presence: how likely the image shows each class.
        features: means of the coarsest feature map of the predictor's encoder, centered.
    """

    items: tuple[Item, ...]
    broken: tuple[str, ...]
    hardness: Float[Tensor, " n"] | None
    agreement: Float[Tensor, " n"] | None
    confident: Float[Tensor, " n"] | None
    entropy: Float[Tensor, " n"]
    closeness: Float[Tensor, " n"]
    presence: Float[Tensor, "n c"]
    features: Float[Tensor, "n d"]


@torch.no_grad()
def look(
    items: Sequence[Item],
    predictor: Predictor,
    other: Predictor | None,
    compared: Compared,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Looked:
    """Predicts each image with both predictors.

    Images are resized to the long side of the run; without one, to at most 2048 px.

    Args:
        items: the images.
        predictor: the predictor of the run.
        other: the one that it is compared with; None: there is none.
        compared: the settings of the comparison.
        on_image: called with the number of images that are done and the number of all images.

    Raises:
        UserError: no image can be read.
    """
    kept, broken = [], []
    rows: list[dict[str, Tensor]] = []
    for done, item in enumerate(items, 1):
        try:
            image = read_image(item.file, enough=predictor.long_side, white=predictor.white)
        except UserError as error:
            broken.append(str(error))
        else:
            height, width = image.shape[1:]
            side = predictor.long_side if predictor.long_side is not None else min(max(height, width), _LARGEST)
            view = resize_image(image, fit(height, width, side))[None]
            rows.append(_measured(predictor, other, view, compared))
            kept.append(item)
        on_image(done, len(items))
    if not kept:
        raise UserError(f"{broken[0]}; none of the {len(items)} images can be read")
    found = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    return Looked(
        items=tuple(kept),
        broken=tuple(broken),
        hardness=found.get("hardness"),
        agreement=found.get("agreement"),
        confident=found.get("confident"),
        entropy=found["entropy"],
        closeness=found["closeness"],
        presence=found["presence"],
        features=centered(found["features"]),
    )


def _measured(predictor: Predictor, other: Predictor | None, view: Tensor, compared: Compared) -> dict[str, Tensor]:
    probability = predictor.probabilities(view).float()
    found = {
        "entropy": entropy(probability),
        "closeness": closeness(probability),
        "presence": presence(probability),
        "features": _features(predictor, view),
    }
    if other is not None:
        found |= compare(probability, other.probabilities(view).float(), compared)
    return {key: value.cpu() for key, value in found.items()}


def compare(
    one: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], compared: Compared
) -> dict[str, Float[Tensor, " b"]]:
    """Computes hardness (Eq. 7), agreement and the share of confident pixels from the probabilities of two networks.

    It does not matter which one is the teacher: exchanging the two does not change Eq. 7.
    """
    first, second = _prediction(one), _prediction(resize_probability(other, *one.shape[2:]))
    same = confusion(first.label, second.label, first.num_classes).diagonal(dim1=1, dim2=2).sum(1)
    each = [confident_ratio(found.confidence, compared.threshold) for found in (first, second)]
    return {
        "hardness": 1 - easiness(second, first, compared.threshold, ignore_class=compared.ignore_class),
        "agreement": same / first.label[0].numel(),
        "confident": (each[0] + each[1]) / 2,
    }


def _prediction(probability: Float[Tensor, "b c h w"]) -> Prediction:
    return Prediction(most_likely(probability), probability.amax(1), probability.shape[1])


def _features(predictor: Predictor, view: Tensor) -> Float[Tensor, "1 d"]:
    network, (height, width) = predictor.networks[0], view.shape[2:]
    small = resize_image(view[0], fit(height, width, min(max(height, width), _FEATURES)))[None]
    with predictor.runtime.autocast():
        return network.encode(network.normalization(small.to(predictor.device))).maps[-1].float().mean((2, 3))
