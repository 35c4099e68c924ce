"""Chooses the settings of a recipe for data and machine, each with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from semiseg.errors import listed
from semiseg.recipe import file as recipe_file

Kind = Literal["objects", "street", "defects", "shifted"]  # the names of the recommended recipes

_WHY = {  # of the settings of the recommended methods
    "name": "with the next settings the best in our comparisons (docs/results.md)",
    "teacher": "an average of the network's weights makes pseudo-labels",
    "strong": "color jitter, gray and blur of unlabeled images",
    "threshold": "pseudo-labels below this confidence do not count",
    "unlabeled_weight": "a larger one did harm in short runs",
    "ramp": "the weight rises over the whole run: early pseudo-labels are often wrong",
    "ema_decay": "for runs of some thousand steps; 0.996 for longer ones",
    "labeled_loss": "pixels of small and rare classes count more; without it they were lost on tiles and streets",
    "batch_norm": "labeled images and strong views apart: better on streets and blood cells, worse elsewhere",
}
_WHY_LABELED: dict[Kind, str] = {
    "objects": "changes of color on labeled images cost points on small VOC photographs",
    "street": "changes of color on labeled images cost points on streets",
    "defects": "the photographs are gray, so color says nothing",
    "shifted": "changes of color on labeled images were worth 20 points on blood cells",
}

_WHY_WEIGHTS = "pretrained on ImageNet: few labels are not enough to begin from nothing"
_CPU_SIDE, _GPU_SIDE = 240, 512  # px of the long side
_SMALLEST_OBJECT = 8  # px of the side of a square as large as a class's area in an image
_MULTIPLE = 32  # crops are multiples of it: the encoder divides by it
_LR, _LR_BATCH = 5e-4, 4  # of AdamW, and the labeled images a step with which it was measured
_RARE_IMAGES = 3  # a class in fewer labeled images is rare
_SHOWN = 12  # names in a note
_STEPS_A_LABEL, _FEWEST, _MOST = 400, 500, 40_000


@dataclass(frozen=True)
class Facts:
    """What the settings depend on.

    Attributes:
        sizes: (height, width) of the training photographs, px.
        labeled: number of labeled images for training.
        unlabeled: number of unlabeled images.
        classes: the names of the classes.
        background: the class that means "nothing of interest", or None.
        images_of_class: number of labeled images that show each class.
        areas: for each class its shares of the pixels of the images that show it.
        gray: whether the photographs are gray.
        on_gpu: whether a GPU trains.
        cores: number of processor cores.
    """

    sizes: Sequence[tuple[int, int]]
    labeled: int
    unlabeled: int
    classes: Sequence[str]
    background: int | None
    images_of_class: Mapping[int, int]
    areas: Mapping[int, Sequence[float]]
    gray: bool
    on_gpu: bool
    cores: int


@dataclass(frozen=True)
class Setting:
    """A setting of a recipe, and why it has its value."""

    section: str
    key: str
    value: Any
    why: str


def kind_of(facts: Facts) -> Kind:
    """Returns what kind of data this is.

    Gray photographs with few classes are taken for defects. Many classes without a background are a street or another
    whole scene.
    """
    if len(facts.classes) <= 4 or (facts.gray and facts.background is not None):
        return "defects" if facts.gray else "shifted"
    return "objects" if facts.background is not None else "street"


def kind_and_why(facts: Facts) -> str:
    """Says what kind of data this is, why, and what the choice means."""
    kind = kind_of(facts)
    few = f"{len(facts.classes)} classes" + (" (4 or fewer are few)" if len(facts.classes) <= 4 else "")
    rest = "a background" if facts.background is not None else "no background"
    what = f"{few} in {'gray' if facts.gray else 'color'}, {rest}"
    chosen = f"method of recommended/{kind}" if facts.unlabeled else f"labeled images as in recommended/{kind}"
    others = ", ".join(f"recommended/{other}" for other in _WHY_LABELED if other != kind)
    return f"{what} -> {chosen}; others: {others}"


def rare_classes(facts: Facts) -> str | None:
    """Says which classes few labeled images show; None if there are none."""
    rare = _rare(facts)
    if not rare or facts.labeled < _RARE_IMAGES:
        return None
    return f"fewer than {_RARE_IMAGES} labeled images show: {listed(rare, _SHOWN)}"


def choose(facts: Facts) -> list[Setting]:
    """Chooses all settings but those of the data's files, and of the batch and the steps, which are tried."""
    kind = kind_of(facts)
    return [*_sizes(facts), *_order(facts), *_model(facts), *_method(facts, kind)]


def _sizes(facts: Facts) -> list[Setting]:
    long, short = (median(side(size) for size in facts.sizes) for side in (max, min))
    most = _GPU_SIDE if facts.on_gpu else _CPU_SIDE
    side, why = round(min(long, most)), f"the photographs have {long:.0f} px (median)"
    why += f"; a {'GPU' if facts.on_gpu else 'CPU'} trains {most} px in bearable time" if long > most else ""
    thin, share = _smallest(facts)
    if thin is not None and share**0.5 * side < _SMALLEST_OBJECT and side < long:
        side = round(min(long, 2 * most, _SMALLEST_OBJECT / share**0.5))
        why += f"; larger because of {facts.classes[thin]}, which covers {100 * share:.2g} % of an image"
    side, ratio = max(_MULTIPLE, side), short / long
    crop = max(_MULTIPLE, round(min(0.7 * side, 1.5 * ratio * side) / _MULTIPLE) * _MULTIPLE)
    return [
        Setting("data", "long_side", side, why),
        Setting("data", "crop", crop, "about two thirds of the long side, a multiple of 32"),
        Setting("data", "scale", [0.5, 2.0], "as in the papers; a narrower range suits objects of one size"),
        Setting(
            "data", "workers", max(0, min(8, facts.cores - 2)), f"{facts.cores} cores, of which training needs two"
        ),
        Setting(
            "data", "cache", facts.labeled + facts.unlabeled <= 2000, "decoded images stay in memory if they are few"
        ),
    ]


def _smallest(facts: Facts) -> tuple[int | None, float]:
    """Returns the class that covers the least of the images that show it, and its median share."""
    shares = {index: median(found) for index, found in facts.areas.items() if found and index != facts.background}
    if not shares:
        return None, 1.0
    index = min(shares, key=lambda index: shares[index])
    return index, shares[index]


def _rare(facts: Facts) -> list[str]:
    return [facts.classes[index] for index, number in facts.images_of_class.items() if number < _RARE_IMAGES]


def _order(facts: Facts) -> list[Setting]:
    rare = _rare(facts)
    if not rare or facts.labeled < 2 * _RARE_IMAGES:
        return []
    why = f"fewer than {_RARE_IMAGES} labeled images show {listed(rare, 4)}; they are shown more often"
    return [
        Setting("data", "labeled_order", "class_balanced", why),
        Setting("data", "temperature", 0.1, "larger than the usual 0.01, with which frequent classes are hardly shown"),
    ]


def _model(facts: Facts) -> list[Setting]:
    lite = "its ImageNet weights are a package, nothing is downloaded"
    if facts.on_gpu:
        return [
            Setting("model", "architecture", "deeplabv3plus", "the network of most papers"),
            Setting("model", "encoder", "tu-tf_efficientnet_lite2", lite),
            Setting("model", "output_stride", 16, "as in the papers"),
            Setting("model", "weights", "lite", _WHY_WEIGHTS),
        ]
    small = {"encoder_depth": 4, "decoder_channels": 64, "decoder_atrous_rates": [3, 6, 9]}
    return [
        Setting("model", "architecture", "deeplabv3plus", "the network of most papers"),
        Setting("model", "encoder", "tu-tf_efficientnet_lite0", lite),
        Setting("model", "weights", "lite", _WHY_WEIGHTS),
        Setting("model", "options", small, "a small decoder: there is no GPU"),
    ]


def _method(facts: Facts, kind: Kind) -> list[Setting]:
    method = recipe_file.read(Path("recommended") / kind)["method"]
    why = _WHY | {"labeled": f"{_WHY_LABELED[kind]}; `semiseg tune` measures it on your labels"}
    if not facts.unlabeled:
        kept = ("labeled", "labeled_loss")
        method = {"name": "supervised"} | {key: method[key] for key in kept if key in method}
        why["name"] = "there are no unlabeled images"
    return [Setting("method", key, value, why[key]) for key, value in method.items()]


def optim(batch: int) -> list[Setting]:
    """Chooses the optimizer for a number of labeled images a step.

    The learning rate of Adam is in proportion to the square root of the batch (Malladi et al., NeurIPS 2022).

    Example:
        >>> [optim(batch)[1].value for batch in (2, 4, 8, 16)]
        [0.00035, 0.0005, 0.00071, 0.001]
    """
    lr = float(f"{_LR * (batch / _LR_BATCH) ** 0.5:.2g}")
    why = f"of the encoder; measured with {_LR_BATCH} images a step"
    if batch != _LR_BATCH:
        why = f"of the encoder: {_LR:g}, measured with {_LR_BATCH} images a step, times the root of {batch}/{_LR_BATCH}"
    return [
        Setting("optim", "kind", "adamw", "after 1000 steps 0 to 3 points above SGD on four sets of photographs"),
        Setting("optim", "lr", lr, why),
        Setting("optim", "head_lr_factor", 5, "the decoder is new, the encoder is pretrained"),
        Setting("optim", "weight_decay", 0.01, "usual with adamw"),
    ]


def most_steps(labeled: int) -> int:
    """Returns the number of steps beyond which a run is not planned: few labels are learned in few steps.

    Example:
        >>> most_steps(1), most_steps(20), most_steps(1000)
        (2000, 8000, 40000)
    """
    return max(2000, min(_MOST, _STEPS_A_LABEL * labeled))


def steps(hours: float, step_s: float, evaluation_s: float, labeled: int, evaluations: int) -> int:
    """Returns how many steps a run has that fits the time, a multiple of `evaluations`.

    Args:
        hours: the time of the run.
        step_s: time of a step, s.
        evaluation_s: time of an evaluation, s.
        labeled: number of labeled images.
        evaluations: number of evaluations.

    Example:
        >>> steps(1.0, step_s=1.0, evaluation_s=30.0, labeled=20, evaluations=8)
        3000
    """
    seconds = 0.9 * 3600 * hours - evaluations * evaluation_s  # a tenth is for starting and saving
    fitting = min(most_steps(labeled), int(seconds / step_s))
    return max(_FEWEST, fitting) // evaluations * evaluations
