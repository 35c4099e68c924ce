"""What a report shows of images: pictures of validation images, with masks and predictions, and of unlabeled ones."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.errors import UserError
from semiseg.report.pictures import Picture
from semiseg.report.reading import Group
from semiseg.runs import Run

MOST_BYTES = 2_000_000  # of one picture
_KINDS = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n"}


def images(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Collects the validation images that the runs have pictures of, in the order of the first run that has each.

    Of several seeds, one stands for all.

    Returns:
        For each image its `name`, its `size` (width, height in px), and its `layers`: label, URI, whether it is a mask,
        number of the group (None: the image itself and its mask). `worst` has the groups for which it is one of the
        worst images, `miou` the mIoU by the label of the layer.

    Raises:
        UserError: a picture cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(groups):
        shown = group.first.pictures
        for one in shown.images if shown else []:
            own = _layers(group, number, one)
            shared = [
                _layer(group.first.run, one.image, "image", False, None),
                _layer(group.first.run, one.truth, "truth", True, None),
            ]
            entry = found.setdefault(one.name, {"name": one.name, "layers": shared, "worst": [], "miou": {}})
            entry["layers"] += own
            entry["miou"] |= {layer["label"]: one.miou[layer["network"]] for layer in own}
            entry["worst"] += [number] * bool(one.worst)
    return [*found.values()]


def unlabeled(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Collects the hardest and the easiest unlabeled images of each group that has pictures of them.

    Returns:
        For each group its number, and the images from the hardest to the easiest: name, URI, hardness.
    """
    found = []
    for number, group in enumerate(groups):
        told = sorted(group.first.pictures.unlabeled if group.first.pictures else [], key=lambda one: -one.hardness)
        pictures = [{**vars(one), "uri": uri(group.first.run, one.image)} for one in told]
        half = (len(pictures) + 1) // 2
        if pictures:
            found.append({"run": number, "hardest": pictures[:half], "easiest": pictures[half:][::-1]})
    return found


def confusions(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Collects the confusion matrices of the newest evaluation: label, group, step, rows of pixel counts."""
    return [
        {"label": _named(group, name), "run": number, "step": shown.step, "rows": network.confusion}
        for number, group in enumerate(groups)
        if (shown := group.first.pictures)
        for name, network in shown.networks.items()
        if network.confusion
    ]


def uri(run: Run, name: str) -> str:
    """Returns a picture as a data URI.

    Raises:
        UserError: it is no picture, or it cannot be read.
    """
    path = run.pictures / Path(name).name
    remedy = "delete the folder pictures for a report without them"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    kind = next((kind for kind, mark in _KINDS.items() if content.startswith(mark)), None)
    if kind is None or len(content) > MOST_BYTES:
        raise UserError(f"{path}: is no picture that semiseg wrote; {remedy}")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _layers(group: Group, number: int, one: Picture) -> list[dict[str, Any]]:
    return [
        _layer(group.first.run, file, _named(group, network), True, number) | {"network": network}
        for network, file in one.predictions.items()
    ]


def _layer(run: Run, file: str, label: str, mask: bool, number: int | None) -> dict[str, Any]:
    return {"label": label, "uri": uri(run, file), "mask": mask, "run": number}


def _named(group: Group, network: str) -> str:
    """Names a prediction; of several seeds it says which one."""
    seed = f" (seed {group.first.seed})" if len(group.members) > 1 else ""
    return f"{group.name}, {network}{seed}"
