"""The whole validation set, each image once, at the size of its mask."""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from semiseg.data.loader import EvalItem
from semiseg.engine.runtime import Runtime
from semiseg.metrics import Scores, add_confusion, scores
from semiseg.models.build import Network
from semiseg.models.predict import resize_probability, sliding, whole


class Config(BaseModel):
    """How an image is run through the network when it is evaluated or predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["whole", "sliding"] = "whole"
    window: int | None = Field(None, ge=16)  # px, side of the square windows of sliding
    stride: int | None = Field(None, ge=1)  # px between windows; None: two thirds of the window
    batch_size: int = Field(1, ge=1)  # images read at a time; those of equal size go through the network together

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.mode == "sliding" and self.window is None:
            raise ValueError("sliding needs a window, in px, e.g. the training crop")
        if self.mode == "whole" and (self.window or self.stride):
            raise ValueError("window and stride belong to mode: sliding; remove them or choose it")
        return self

    def probabilities(self, network: Network, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Class probabilities of a batch of images."""
        if self.mode == "whole":
            return whole(network, image)
        assert self.window is not None
        stride = self.stride or max(1, self.window * 2 // 3)
        return sliding(network, image, (self.window, self.window), (stride, stride))


def evaluate(
    network: Network,
    batches: Iterable[list[EvalItem]],
    num_classes: int,
    config: Config,
    runtime: Runtime,
    on_batch: Callable[[int], None] = lambda num_images: None,
) -> Scores:
    """Scores of `network` over everything that the processes' loaders yield together.

    Args:
        network: evaluated in eval mode, in the runtime's precision.
        batches: lists of images with their masks; neighbours of equal size go through the network together.
        num_classes: number of classes.
        config: whole image or sliding window.
        runtime: where to compute; confusion matrices are summed over its processes.
        on_batch: told how many images were done, after each list.
    """
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=runtime.device)
    for items in batches:
        for _, group in groupby(items, key=lambda item: item.image.shape):
            same_size = list(group)
            image = torch.stack([item.image for item in same_size]).to(runtime.device)
            with runtime.autocast():
                probability = config.probabilities(network, network.normalisation(image))
            for item, of_item in zip(same_size, probability, strict=True):
                mask = item.mask.to(runtime.device)
                prediction = resize_probability(of_item[None], *mask.shape).argmax(1)[0]
                matrix = add_confusion(matrix, prediction, mask)
        on_batch(len(items))
    return scores(runtime.sum(matrix).cpu())
