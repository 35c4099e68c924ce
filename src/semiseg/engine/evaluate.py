"""Evaluates a network on the whole validation set: each image once, at the size of its mask."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from semiseg.data.loader import EvalItem
from semiseg.engine.runtime import Runtime
from semiseg.metrics import Scores, add_confusion, scores
from semiseg.models.build import Network
from semiseg.models.predict import most_likely, resize_probability, sliding, whole


class Config(BaseModel):
    """How a network gets an image in evaluation and prediction: whole, or in windows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["whole", "sliding"] = "whole"
    window: int | None = Field(None, ge=16)  # px, side of the square windows of sliding
    stride: int | None = Field(None, ge=1)  # px between windows; None: two thirds of the window

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.mode == "sliding" and self.window is None:
            raise ValueError("sliding needs a window, in px, e.g. the training crop")
        if self.stride and self.window and self.stride > self.window:
            raise ValueError(f"stride {self.stride} is larger than window {self.window}: pixels would be left out")
        if self.mode == "whole" and (self.window or self.stride):
            raise ValueError("window and stride belong to mode: sliding; remove them or choose it")
        return self

    def mean_probabilities(
        self, networks: Sequence[Network], image: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Computes the class probabilities of a batch of images: the mean over the networks."""
        each = [self.probabilities(network, network.normalization(image)) for network in networks]
        return each[0] if len(each) == 1 else torch.stack(each).mean(0)

    def probabilities(self, network: Network, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Computes the class probabilities of a batch of images."""
        if self.mode == "whole":
            return whole(network, image)
        assert self.window is not None
        stride = self.stride or max(1, self.window * 2 // 3)
        return sliding(network, image, (self.window, self.window), (stride, stride))


def evaluate(
    networks: Mapping[str, Sequence[Network]],
    items: Iterable[EvalItem],
    num_classes: int,
    config: Config,
    runtime: Runtime,
    on_image: Callable[[int], None] = lambda done: None,
) -> dict[str, Scores]:
    """Computes scores over all images that the loaders of all processes yield.

    Args:
        networks: the networks by name, evaluated in eval mode and in the runtime's precision. Of several networks with
            one name the mean of their probabilities counts.
        items: images with their masks. A network gets them one by one: for batches of varying shapes CPU libraries
            would compile their kernels again and again, which takes more time than batches save.
        num_classes: number of classes.
        config: whole image or sliding window.
        runtime: device and precision; the confusion matrices of its processes are summed.
        on_image: called after each image with the number of images done.

    Returns:
        The scores by the names of the networks.
    """
    matrices = {
        name: torch.zeros(num_classes, num_classes, dtype=torch.int64, device=runtime.device) for name in networks
    }
    for done, item in enumerate(items, 1):
        image, mask = item.image[None].to(runtime.device), item.mask.to(runtime.device).long()
        for name, members in networks.items():
            with runtime.autocast():
                probability = config.mean_probabilities(members, image)
            prediction = most_likely(resize_probability(probability, *mask.shape))[0]
            matrices[name] = add_confusion(matrices[name], prediction, mask)
        on_image(done)
    return {name: scores(runtime.sum(matrix).cpu()) for name, matrix in matrices.items()}
