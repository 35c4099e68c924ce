"""Says in plain words why an image was chosen."""

from collections.abc import Sequence

from semiseg.rank.choose import Chosen
from semiseg.rank.look import Looked

_LIKELY = 0.5  # of the presence of a class


def why(chosen: Chosen, by: str, looked: Looked, classes: Sequence[str], iou: Sequence[float | None]) -> str:
    """Returns one line.

    Args:
        chosen: the image.
        by: what the images were ranked by.
        looked: what was measured on all images.
        classes: the names of the classes.
        iou: of each class on validation images; None: it was not measured. Empty: classes did not count.
    """
    parts = [_measure(chosen.number, by, looked)]
    if chosen.weak is not None:
        likely = float(looked.presence[chosen.number, chosen.weak]) >= _LIKELY
        known = iou[chosen.weak]
        of_it = "IoU not known: no validation image shows it" if known is None else f"validation IoU {known:.0%}"
        parts.append(f"{'likely' if likely else 'maybe'} shows {classes[chosen.weak]} ({of_it})")
    if chosen.left_out:
        first = looked.items[chosen.left_out[0]].name
        number = len(chosen.left_out)
        parts.append(
            f"1 near-duplicate left out: {first}" if number == 1 else f"{number} near-duplicates left out, e.g. {first}"
        )
    return "; ".join(parts)


def _measure(number: int, by: str, looked: Looked) -> str:
    if by == "random":
        return "drawn at random"
    if by == "entropy":
        return f"the network is unsure: its mean entropy is {float(looked.entropy[number]):.0%} of the largest possible"
    if by == "margin":
        margin = 1 - float(looked.closeness[number])
        return f"the two likeliest classes of a pixel differ by {margin:.0%} in probability, on average"
    assert looked.agreement is not None
    assert looked.confident is not None
    agreed, sure = float(looked.agreement[number]), float(looked.confident[number])
    return f"two networks of the run agree on {agreed:.0%} of the pixels, and are confident on {sure:.0%}"
