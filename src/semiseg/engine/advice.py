"""Finds signs of trouble in the records of a run, and says what would help."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHORT = 100  # steps; a shorter run is a trial, which shows all these signs
_EARLY = 0.1  # share of the steps in which nothing is said: everything is possible then
_LONG = 0.2  # share of the steps that a sign must last
_FEW, _MOST = 0.002, 0.99  # share of confident pixels
_FALLEN = 0.03  # mIoU below the best one
_EVALUATIONS = 3  # in which it must be lower

LOST = 0.01  # IoU of a class that the network has lost


def advice(
    train: Sequence[Mapping[str, Any]],
    val: Sequence[Mapping[str, Any]],
    steps: int,
    names: Sequence[str],
    untried: Sequence[str] = (),
) -> dict[str, str]:
    """Returns what is wrong, by a short name of the sign.

    Args:
        train: the training records so far.
        val: the validation records so far.
        steps: steps of the whole run.
        names: the names of the classes.
        untried: settings that may help rare classes, see `untried`.
    """
    if steps < _SHORT or not train or train[-1]["step"] < (_EARLY + _LONG) * steps:
        return {}
    done = train[-1]["step"]
    recent = [record for record in train if record["step"] > done - _LONG * steps]
    return {**_kept(recent, done), **_without(recent, val, names, untried), **_falling(val)}


def _kept(recent: Sequence[Mapping[str, Any]], done: int) -> dict[str, str]:
    kept = [record["confident"] for record in recent if record.get("confident") is not None]
    if not kept:
        return {}
    since = recent[0]["step"]
    if max(kept) < _FEW:
        return {
            "none kept": f"steps {since} to {done}: less than {100 * _FEW:g} % of the unlabeled pixels are above "
            "method.threshold, so unlabeled images teach nothing; lower method.threshold, or train longer"
        }
    if min(kept) > _MOST:
        return {
            "all kept": f"steps {since} to {done}: more than {100 * _MOST:g} % of the unlabeled pixels are above "
            "method.threshold, right or wrong; raise method.threshold"
        }
    return {}


def _without(
    recent: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]], names: Sequence[str], untried: Sequence[str]
) -> dict[str, str]:
    shares = [record["pseudo_shares"] for record in recent if "pseudo_shares" in record]
    if not shares or not any(map(sum, shares)):
        return {}
    measured = [value is not None for value in val[-1]["iou"]] if val else [True] * len(names)
    gone = [
        name
        for name, values, exists in zip(names, zip(*shares, strict=True), measured, strict=True)
        if exists and not any(values)
    ]
    if not gone:
        return {}
    return {
        f"without {name}": f"{name}: no confident pseudo-label since step {recent[0]['step']}, so unlabeled images "
        f"teach other classes in its place; lower method.threshold,{_set(untried)} or label more images that show it"
        for name in gone
    }


def _falling(val: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if len(val) <= _EVALUATIONS:
        return {}
    best = max(val, key=lambda record: record["miou"])
    later = [record for record in val if record["step"] > best["step"]]
    if len(later) < _EVALUATIONS or min(best["miou"] - record["miou"] for record in later) < _FALLEN:
        return {}
    return {
        "falling": f"mIoU was {100 * best['miou']:.1f} at step {best['step']} and is {100 * val[-1]['miou']:.1f} now; "
        "the best checkpoint is kept; try a lower method.unlabeled_weight, a higher method.threshold or a lower "
        "optim.lr"
    }


def untried(recipe: Mapping[str, Any]) -> list[str]:
    """Returns the settings that may help rare classes and that a recipe does not have.

    Args:
        recipe: its sections as plain values.

    Example:
        >>> untried({"data": {"labeled_order": "class_balanced"}, "method": {"name": "supervised"}})
        ['method.labeled_loss.class_weights=inverse_sqrt']
    """
    loss = recipe["method"].get("labeled_loss") or {}
    found = []
    if recipe["data"].get("labeled_order") != "class_balanced":
        found.append("data.labeled_order=class_balanced")
    if loss.get("class_weights") is None and loss.get("kind") != "ohem":
        found.append("method.labeled_loss.class_weights=inverse_sqrt")
    return found


def _set(untried: Sequence[str]) -> str:
    return f" set {' or '.join(untried)}," if untried else ""


def lost_classes(iou: Sequence[float | None], pixels: Sequence[int] | None) -> list[int]:
    """Returns the classes whose IoU is below 1 %, though validation masks show them.

    Args:
        iou: IoU of each class.
        pixels: number of pixels of each class in the validation masks. A class without any has an IoU of 0 as soon as
            the network predicts it somewhere; it is not lost. None: not known.
    """
    shown = pixels or [1] * len(iou)
    each = enumerate(zip(iou, shown, strict=True))
    return [index for index, (value, number) in each if number > 0 and value is not None and value < LOST]


def lost(
    iou: Sequence[float | None],
    names: Sequence[str],
    untried: Sequence[str] = (),
    pixels: Sequence[int] | None = None,
) -> str | None:
    """Says which classes the network has lost, and what would help; None if it has lost none.

    Args:
        iou: IoU of each class.
        names: the names of the classes.
        untried: settings that may help rare classes, see `untried`.
        pixels: as in `lost_classes`.

    Example:
        >>> lost([0.9, 0.004, None], ["sky", "pole", "sign"], ["data.labeled_order=class_balanced"])
        '1 of 3 classes is lost (IoU below 1 %): pole; label more images that show them, set \
data.labeled_order=class_balanced, or use larger images (data.long_side) if they are thin'
    """
    gone = [names[index] for index in lost_classes(iou, pixels)]
    if not gone:
        return None
    return (
        f"{len(gone)} of {len(names)} classes {'are' if gone[1:] else 'is'} lost (IoU below 1 %): {', '.join(gone)}; "
        f"label more images that show them,{_set(untried)} or use larger images (data.long_side) if they are thin"
    )
