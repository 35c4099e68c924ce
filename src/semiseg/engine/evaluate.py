"""Evaluates a network on the whole validation set: each image once, at the size of its mask."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Float
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

    def probabilities(self, network: Network, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Computes the class probabilities of a batch of images."""
        if self.mode == "whole":
            return whole(network, image)
        assert self.window is not None
        stride = self.stride or max(1, self.window * 2 // 3)
        return sliding(network, image, (self.window, self.window), (stride, stride))


def evaluate(
    network: Network,
    items: Iterable[EvalItem],
    num_classes: int,
    config: Config,
    runtime: Runtime,
    on_image: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Computes the scores of `network` over all images that the loaders of all processes yield.

    Args:
        network: the network; it is evaluated in eval mode, in the runtime's precision.
        items: images with their masks. The network gets them one by one: for batches of varying shapes CPU libraries
            would compile their kernels again and again, which takes more time than batches save.
        num_classes: number of classes.
        config: whole image or sliding window.
        runtime: device and precision; the confusion matrices of its processes are summed.
        on_image: called after each image with the number of images done.
    """
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=runtime.device)
    for done, item in enumerate(items, 1):
        image, mask = item.image[None].to(runtime.device), item.mask.to(runtime.device).long()
        with runtime.autocast():
            probability = config.probabilities(network, network.normalization(image))
        prediction = most_likely(resize_probability(probability, *mask.shape))[0]
        matrix = add_confusion(matrix, prediction, mask)
        on_image(done)
    return scores(runtime.sum(matrix).cpu())
