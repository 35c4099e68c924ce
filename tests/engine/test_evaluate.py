import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semiseg import data
from semiseg.data.dataset import MaskCoding
from semiseg.data.layouts import folder as layout
from semiseg.data.loader import EvalItem, eval_loader
from semiseg.data.masks import read_pair
from semiseg.engine.evaluate import evaluate, mean_probabilities
from semiseg.engine.runtime import Runtime
from semiseg.metrics import Scores
from semiseg.models.build import Network, Undivided
from semiseg.models.folded import folded
from semiseg.recipe.engine import EvaluateConfig
from semiseg.rng import fold_in
from semiseg.types import IGNORE, Normalization

WHOLE = EvaluateConfig()


@pytest.fixture(scope="module")
def cpu() -> Runtime:
    return Runtime("cpu")


def items(*sizes: tuple[int, int], num_classes: int = 3) -> list[EvalItem]:
    """Noise with masks of noise; a tenth of the pixels has no label."""
    generator, made = fold_in(0, "items"), []
    for index, size in enumerate(sizes):
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        mask = torch.randint(num_classes, size, generator=generator, dtype=torch.uint8)
        mask[torch.rand(size, generator=generator) < 0.1] = IGNORE
        made.append(EvalItem(index, image, mask))
    return made


def score(network: Network, *args: Any) -> Scores:
    """The scores of a single network."""
    return evaluate({"it": (network,)}, *args)["it"]


def resized(probability: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, corners not aligned, written out."""

    def weights(new: int, old: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(at)
            high = min(low + 1, old - 1)
            matrix[i, low] += 1 - (at - low)
            matrix[i, high] += at - low
        return matrix

    rows, columns = weights(height, probability.shape[1]), weights(width, probability.shape[2])
    return np.einsum("ih,chw,jw->cij", rows, probability, columns)


def slow_scores(network: Network, evaluated: list[EvalItem], num_classes: int) -> tuple[float, list[float], float]:
    """The same figures from sets of pixels, class by class."""
    network.eval()
    pairs = []
    for item in evaluated:
        with torch.no_grad():
            logits = network(network.normalization(item.image[None]))[0].double()
        probability = (logits.exp() / logits.exp().sum(0)).numpy()
        prediction = resized(probability, *item.mask.shape).argmax(0)
        pairs += [(int(t), int(p)) for t, p in zip(item.mask.flatten(), prediction.flatten(), strict=True) if t < 255]
    iou = []
    for label in range(num_classes):
        both = sum(t == p == label for t, p in pairs)
        either = sum(label in (t, p) for t, p in pairs)
        iou.append(both / either if either else math.nan)
    known = [value for value in iou if not math.isnan(value)]
    return sum(known) / len(known), iou, sum(t == p for t, p in pairs) / len(pairs)


def assert_close(scores: Scores, expected: tuple[float, list[float], float]) -> None:
    assert scores.miou == pytest.approx(expected[0], abs=1e-9)
    assert scores.iou == pytest.approx(expected[1], abs=1e-9, nan_ok=True)
    assert scores.accuracy == pytest.approx(expected[2], abs=1e-9)


def test_equals_a_slow_reference(tiny, cpu):
    network, evaluated = tiny(), items((9, 7), (8, 8), (5, 12), (1, 1))
    assert_close(score(network, evaluated, 3, WHOLE, cpu), slow_scores(network, evaluated, 3))


def test_masks_keep_their_size_where_images_are_shrunk(tiny, cpu):
    network = tiny()
    evaluated = [EvalItem(item.index, item.image[:, ::2, ::3], item.mask) for item in items((16, 18), (13, 20))]
    scores = score(network, evaluated, 3, WHOLE, cpu)
    assert_close(scores, slow_scores(network, evaluated, 3))


def test_a_class_that_occurs_nowhere_is_left_out(tiny, cpu):
    evaluated = items((8, 8))
    blank = [EvalItem(0, evaluated[0].image, torch.zeros(8, 8, dtype=torch.uint8))]

    class Zero(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(len(image), 3, *image.shape[-2:])

    scores = score(Network(Undivided(Zero()), Normalization(), 1), blank, 3, WHOLE, cpu)
    assert scores.miou == scores.accuracy == scores.iou[0] == 1
    assert all(math.isnan(value) for value in scores.iou[1:])


def test_in_eval_mode_and_back(tiny, cpu):
    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    score(network, items((8, 8)), 3, WHOLE, cpu)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("long_side", [None, 16])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_whole_validation_set_once(tiny, cpu, scenes: Path, long_side, workers):
    settings = {"val": "splits/val.txt", "labeled": "splits/labeled.txt", "unlabeled": "splits/unlabeled.txt"}
    config = layout.Config(root=scenes, crop=32, workers=workers, long_side=long_side, **settings)
    dataset = data.load(config)
    seen: list[tuple[int, int]] = []

    class Counts(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape))
            return torch.zeros(1, 6, *image.shape[-2:])

    done: list[int] = []
    loader = eval_loader(dataset.val, dataset, config)
    scores = score(Network(Undivided(Counts()), Normalization(), 1), loader, 6, WHOLE, cpu, done.append)
    assert seen == [(1, 3, long_side or 32, long_side or 32)] * 4  # one by one
    assert done == [1, 2, 3, 4]
    masks = [np.asarray(read_pair(sample, MaskCoding(6))[1]) for sample in dataset.val]
    assert scores.accuracy == np.mean(np.stack(masks) == 0)  # every pixel of every mask, at its own size


def looked_at(network: Network) -> Network:
    """Lets `folded` look for what it can fold: it passes an image through the network, once."""
    with torch.no_grad(), folded(network):
        return network


def test_low_precision_computes_in_it_and_measures_in_fp32(tiny):
    network, dtypes = looked_at(tiny()), []
    network.net.segmentation_head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    scores = score(network, items((32, 32)), 3, WHOLE, Runtime("cpu", "bf16"))
    assert dtypes == [torch.bfloat16]
    expected = score(network, items((32, 32)), 3, WHOLE, Runtime("cpu", "fp32"))
    assert dtypes[1:] == [torch.float32]
    assert scores.miou == pytest.approx(expected.miou, abs=0.02)


def test_an_earlier_runtime_keeps_its_precision():
    low, full = Runtime("cpu", "bf16"), Runtime("cpu", "fp32")
    for runtime, dtype in ((low, torch.bfloat16), (full, torch.float32)):
        with runtime.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


# several networks


class Fixed(nn.Module):
    """Says the same probabilities of two classes for every pixel."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.logits = torch.tensor([first, 1 - first]).log()

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[:, None, None].expand(len(image), 2, *image.shape[-2:])


def fixed(first: float) -> Network:
    return Network(Undivided(Fixed(first)), Normalization(), 1)


def test_each_name_has_scores_of_its_own(tiny, cpu):
    evaluated = items((9, 7), (8, 8))
    one, other = tiny(0), tiny(1)
    found = evaluate({"teacher": (one,), "student": (other,)}, evaluated, 3, WHOLE, cpu)
    assert list(found) == ["teacher", "student"]
    assert_close(found["teacher"], slow_scores(one, evaluated, 3))
    assert_close(found["student"], slow_scores(other, evaluated, 3))
    assert found["teacher"].miou != found["student"].miou


@pytest.mark.parametrize("config", [WHOLE, EvaluateConfig(mode="sliding", window=16)])
def test_networks_with_one_name_are_scored_by_the_mean_of_their_probabilities(cpu, config):
    """Their votes would be for the other class in the first case, and the mean of their logits in the second one."""
    image = torch.zeros(3, 20, 24, dtype=torch.uint8)
    mask = torch.zeros(20, 24, dtype=torch.uint8)
    mask[:5] = 1  # a quarter
    several = {
        "sure": (fixed(0.999), fixed(0.3), fixed(0.3)),  # mean 0.533
        "unsure": (fixed(0.001), fixed(0.8), fixed(0.8)),  # mean 0.534
        "low": (fixed(0.03), fixed(0.9)),
    }
    found = evaluate(several, [EvalItem(0, image, mask)], 2, config, cpu)
    assert {name: result.accuracy for name, result in found.items()} == {"sure": 0.75, "unsure": 0.75, "low": 0.25}
    assert found["sure"].iou == (0.75, 0.0)


def test_the_mean_of_probabilities_by_hand(cpu):
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    mean = mean_probabilities((fixed(0.9), fixed(0.2), fixed(0.4)), image, WHOLE)
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5])[None, :, None, None].expand(1, 2, 4, 4))
    alone = mean_probabilities((fixed(0.9),), image, WHOLE)
    torch.testing.assert_close(alone[0, :, 0, 0], torch.tensor([0.9, 0.1]))


def test_each_network_has_its_own_normalization(cpu):
    class Red(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([image[:, :1], torch.zeros_like(image[:, :1])], 1)

    image = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)  # 0.2
    normalizations = Normalization((0.2,) * 3, (1.0,) * 3), Normalization((0.1,) * 3, (0.1,) * 3)
    networks = [Network(Undivided(Red()), each, 1) for each in normalizations]
    mean = mean_probabilities(networks, image, WHOLE)[0, 0, 0, 0].item()
    assert mean == pytest.approx((0.5 + 1 / (1 + math.exp(-1))) / 2, abs=1e-6)


# sliding windows


def test_one_window_is_the_whole_image(tiny, cpu):
    network, evaluated = tiny(), items((16, 16), (12, 20))
    whole = score(network, evaluated, 3, WHOLE, cpu)
    assert score(network, evaluated, 3, EvaluateConfig(mode="sliding", window=20), cpu) == whole


def test_windows_see_no_further(cpu):
    seen = []

    class Mean(nn.Module):
        """Class 1 where the window is brighter than the mean color, class 0 elsewhere."""

        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape[-2:]))
            bright = image.mean((1, 2, 3), keepdim=True).expand(-1, 1, *image.shape[-2:])
            return torch.cat([torch.zeros_like(bright), bright], 1)

    image = torch.zeros(3, 16, 48, dtype=torch.uint8)
    image[:, :, 32:] = 255
    mask = torch.zeros(16, 48, dtype=torch.uint8)
    mask[:, 32:] = 1
    config = EvaluateConfig(mode="sliding", window=16, stride=16)
    network = Network(Undivided(Mean()), Normalization(), 1)
    assert score(network, [EvalItem(0, image, mask)], 2, config, cpu).miou == 1
    assert seen == [(16, 16)] * 3
    assert score(network, [EvalItem(0, image, mask)], 2, WHOLE, cpu).miou < 0.5


def test_windows_overlap_by_a_third_unless_told(tiny, cpu):
    seen = []
    network = looked_at(tiny())
    network.net.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    score(network, items((24, 56)), 3, EvaluateConfig(mode="sliding", window=24), cpu)
    assert seen == [24, 24, 24]  # at 0, 16, 32


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "sliding"}, "sliding needs a window"),
        ({"window": 64}, "belong to mode: sliding"),
        ({"stride": 64}, "belong to mode: sliding"),
        ({"mode": "sliding", "window": 8}, "greater than or equal to 16"),
        ({"mode": "sliding", "window": 64, "stride": 0}, "greater than or equal to 1"),
        ({"mode": "window"}, "'whole' or 'sliding'"),
        ({"overlap": 3}, "overlap"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(ValidationError, match=says):
        EvaluateConfig(**settings)
