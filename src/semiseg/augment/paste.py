"""Copy-paste of classes: all pixels of some classes of a labeled image are pasted into another image (AEL).

Sampling and applying are separate. Who gives, and which classes, the method decides: AEL draws classes that perform
badly.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from semiseg.errors import UserError
from semiseg.rng import uniform
from semiseg.types import IGNORE, ClassTable, PseudoLabels


@dataclass(frozen=True)
class Drawn:
    """What was drawn for each image, by the image that receives."""

    happens: Bool[Tensor, " b"]
    pick: Float[Tensor, "b k"]  # uniform values in [0, 1) that pick the classes, e.g. in `ClassConfidence.draw`
    scale: Float[Tensor, " b"]  # of the giving image
    place: Float[Tensor, "b 2"]  # of the giving image, (x, y): 0 is left or top, 1 is right or bottom

    def __getitem__(self, images: slice) -> "Drawn":
        """Returns what was drawn for some of the images."""
        return Drawn(*(value[images] for value in vars(self).values()))

    def to(self, device: torch.device) -> "Drawn":
        """Moves the draws to `device`, without waiting."""
        return Drawn(*(value.to(device, non_blocking=True) for value in vars(self).values()))


class Config(BaseModel):
    """Settings of copy-paste. The defaults are those of AEL on Cityscapes.

    Attributes:
        probability: probability that an image receives pixels.
        classes: number of classes that are drawn for an image, some maybe twice. None: 3, or all but one of
            fewer than four classes.
        scale: the giving image is resized by a factor that is drawn from this range.
        skip: names of classes that are never pasted. None: the declared background, if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    probability: float = Field(0.5, gt=0, le=1)
    classes: int | None = Field(None, ge=1)
    scale: tuple[float, float] = (0.1, 2.0)
    skip: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale needs [low, high] with 0 < low <= high, got {list(self.scale)}")
        return self

    def allowed(self, table: ClassTable, key: str) -> Bool[Tensor, " c"]:
        """Returns which classes may be pasted.

        Args:
            table: the classes of the data.
            key: the setting that holds this section, for messages, e.g. "method.paste".

        Raises:
            UserError: a class in `skip` does not exist, no class is left, or all classes could be pasted at once.
        """
        skipped = set(self.skip or ())
        if self.skip is None and table.background is not None:
            skipped = {table.names[table.background]}
        for name in self.skip or ():
            if name not in table.names:
                raise UserError(f"{key}.skip: there is no class {name!r}; the classes are {', '.join(table.names)}")
        allowed = [name not in skipped for name in table.names]
        if not any(allowed):
            raise UserError(f"{key}.skip: it skips all classes, so none can be pasted; skip fewer, or use {key}=null")
        most = len(table) - 1
        if self.classes is not None and self.classes > most:
            raise UserError(
                f"{key}.classes: {self.classes} of {len(table)} classes could cover the whole image; use 1 to {most}"
            )
        return torch.tensor(allowed)

    def sample(self, generator: torch.Generator, num_images: int, num_classes: int) -> Drawn:
        """Draws for `num_images` images."""
        num_draws = min(3, num_classes - 1) if self.classes is None else self.classes
        return Drawn(
            happens=uniform(generator, 0.0, 1.0, num_images) < self.probability,
            pick=uniform(generator, 0.0, 1.0, num_images, num_draws),
            scale=uniform(generator, *self.scale, num_images),
            place=uniform(generator, 0.0, 1.0, num_images, 2),
        )


def rescaled(
    image: Float[Tensor, "b 3 h w"],
    label: Int[Tensor, "b h w"],
    scale: Float[Tensor, " b"],
    place: Float[Tensor, "b 2"],
) -> tuple[Float[Tensor, "b 3 h w"], Int[Tensor, "b h w"]]:
    """Resizes images and their labels by a factor each, and keeps their size: images are cut, or others are empty.

    Labels are those of the nearest pixel, and IGNORE outside the image. Colors are interpolated between labeled pixels
    alone, so ignored and padded pixels do not mix into their neighbors. Colors of unlabeled pixels have no meaning.

    Args:
        image: the images.
        label: their labels.
        scale: factors.
        place: where a smaller image lies in the frame, or which part of a larger one: (x, y) from 0 (left, top) to 1.
    """
    sides = []
    for axis, length in enumerate((image.shape[-1], image.shape[-2])):  # x, y
        position = (torch.arange(length, device=image.device) + 0.5) / length
        source = (position - (place[:, axis] * (1 - scale))[:, None]) / scale[:, None]
        sides.append(2 * source - 1)  # -1 and 1 are the edges of the image
    grid = torch.stack([sides[0][:, None].expand(label.shape), sides[1][:, :, None].expand(label.shape)], dim=-1)
    known = (label != IGNORE)[:, None].float()
    seen = F.grid_sample(torch.cat([image.float() * known, known], 1), grid, align_corners=False)
    nearest = F.grid_sample((label[:, None] + 1).float(), grid, mode="nearest", align_corners=False)[:, 0].long() - 1
    # where the nearest pixel is labeled, the weights of labeled pixels sum up to at least 1/4
    return seen[:, :3] / seen[:, 3:].clamp(min=0.1), torch.where(nearest < 0, IGNORE, nearest)


def paste_classes(
    view: PseudoLabels,
    giver: Float[Tensor, "b 3 h w"],
    giver_label: Int[Tensor, "b h w"],
    drawn: Drawn,
    classes: Int[Tensor, "b k"],
) -> PseudoLabels:
    """Pastes all pixels of some classes of labeled images, rescaled, with their labels and confidence 1.

    Only valid pixels receive others, so their number does not change.

    Args:
        view: the images that receive.
        giver: the labeled image that gives to each of them.
        giver_label: its labels.
        drawn: what was drawn for each image.
        classes: the classes that are pasted.
    """
    image, label = rescaled(giver, giver_label, drawn.scale, drawn.place)
    where = pixels_of(label, classes) & drawn.happens[:, None, None] & view.valid
    return view.pasted(PseudoLabels(image, label, torch.ones_like(view.confidence), view.valid), where)


def pixels_of(label: Int[Tensor, "b h w"], classes: Int[Tensor, "b k"]) -> Bool[Tensor, "b h w"]:
    """Returns which pixels show one of the classes of their image.

    Example:
        >>> pixels_of(torch.tensor([[[0, 1, 2, 255]]]), torch.tensor([[2, 0, 2]]))
        tensor([[[ True, False,  True, False]]])
    """
    return (label[:, None] == classes[:, :, None, None]).any(1)
