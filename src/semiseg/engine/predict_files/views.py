"""Predicts several views of an image, and averages them: mirrored, and at several scales."""

from collections.abc import Sequence

from jaxtyping import Float, UInt8
from torch import Tensor

from semiseg.data.read import resize_image
from semiseg.engine.predict_files.model import Model
from semiseg.models.predict import resize_probability


def mean_of_views(
    model: Model, image: UInt8[Tensor, "3 h w"], flip: bool = False, scales: Sequence[float] = (1.0,)
) -> Float[Tensor, "1 c h w"]:
    """Computes class probabilities at the size of the image: the mean over its views.

    Args:
        model: the model.
        image: the image, at the size that the model was trained for.
        flip: whether to predict each view mirrored (left and right), too.
        scales: factors of the size; each is one view.
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        view = (image if size == (height, width) else resize_image(image, size))[None].to(model.device)
        for mirrored in (False, True) if flip else (False,):
            found = model.probabilities(view.flip(-1) if mirrored else view)
            found = resize_probability(found.flip(-1) if mirrored else found, height, width)
            total = found if total is None else total + found
    assert total is not None
    number = len(scales) * (1 + flip)
    return total if number == 1 else total / number
