"""Evaluates a network on the whole validation set: each image once, at the size of its mask."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from semiseg.data.loader import EvalItem
from semiseg.engine.runtime import Runtime
from semiseg.metrics import Scores, add_confusion, scores
from semiseg.models.build import Network
from semiseg.models.predict import most_likely, resize_probability, sliding, whole
from semiseg.recipe.engine import EvaluateConfig

OnPredictions = Callable[[EvalItem, Mapping[str, Int[Tensor, "h w"]], Mapping[str, Int[Tensor, "c c"]]], None]


def mean_probabilities(
    networks: Sequence[Network], image: UInt8[Tensor, "b 3 h w"], config: EvaluateConfig
) -> Float[Tensor, "b c h w"]:
    """Computes the class probabilities of a batch of images: the mean over the networks."""
    each = [_probabilities(network, network.normalization(image), config) for network in networks]
    return each[0] if len(each) == 1 else torch.stack(each).mean(0)


def evaluate(
    networks: Mapping[str, Sequence[Network]],
    items: Iterable[EvalItem],
    num_classes: int,
    config: EvaluateConfig,
    runtime: Runtime,
    on_image: Callable[[int], None] = lambda done: None,
    on_predictions: OnPredictions = lambda item, predictions, matrices: None,
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
        on_predictions: called after each image with the image, and by the names of the networks what they predict for
            it and the confusion matrix of this image alone, both on the device.

    Returns:
        The scores by the names of the networks.
    """
    empty = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=runtime.device)
    matrices = dict.fromkeys(networks, empty)
    for done, item in enumerate(items, 1):
        image, mask = item.image[None].to(runtime.device), item.mask.to(runtime.device).long()
        predictions = {}
        for name, members in networks.items():
            with runtime.autocast():
                probability = mean_probabilities(members, image, config)
            predictions[name] = most_likely(resize_probability(probability, *mask.shape))[0]
        own = {name: add_confusion(empty, prediction, mask) for name, prediction in predictions.items()}
        matrices = {name: matrix + own[name] for name, matrix in matrices.items()}
        on_predictions(item, predictions, own)
        on_image(done)
    return {name: scores(runtime.sum(matrix).cpu()) for name, matrix in matrices.items()}


def _probabilities(
    network: Network, image: Float[Tensor, "b 3 h w"], config: EvaluateConfig
) -> Float[Tensor, "b c h w"]:
    if config.mode == "whole":
        return whole(network, image)
    assert config.window is not None
    stride = config.stride or max(1, config.window * 2 // 3)
    return sliding(network, image, (config.window, config.window), (stride, stride))
