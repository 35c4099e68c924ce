import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from semiseg.models import predict as predict_module
from semiseg.models.build import Network, Undivided
from semiseg.models.predict import evaluating, most_likely, most_likely_at, predict, resize_probability, sliding, whole
from semiseg.rng import fold_in, seeded
from semiseg.types import Normalization


def network(net: nn.Module) -> Network:
    return Network(Undivided(net), Normalization(), 1)


def answering(logits: Tensor) -> Network:
    class Answer(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return logits

    return network(Answer())


def noise(*size: int) -> Tensor:
    return torch.randn(size, generator=fold_in(0, "noise", *size))


def pointwise() -> Network:
    with seeded(0):
        return network(nn.Conv2d(3, 4, 1))


class Spy(nn.Module):
    """Gives every pixel of a window the window's mean as logits, and stores the windows that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[tuple[int, int, int, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        row, column = image[0, 0], image[0, 1]
        self.windows.append((int(row.min()), int(column.min()), *image.shape[-2:]))
        return image.mean((2, 3), keepdim=True).expand_as(image)


def coordinates(height: int, width: int) -> Tensor:
    """An image whose pixel values encode their row and column."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([row, column, torch.zeros_like(row)])[None].float()


sizes = {
    "height": st.integers(1, 20),
    "width": st.integers(1, 20),
    "side": st.integers(1, 9),
    "step": st.integers(1, 9),
}


@given(**sizes)
def test_sliding_a_pointwise_network_equals_the_whole_image(height, width, side, step):
    image, net = noise(2, 3, height, width), pointwise()
    window, stride = (side, side + 1), (min(step, side), min(step + 1, side + 1))
    torch.testing.assert_close(sliding(net, image, window, stride), whole(net, image))


@given(**sizes)
def test_windows_cover_the_image_shifted_and_not_shrunk(height, width, side, step):
    step = min(step, side)
    spy = Spy()
    sliding(network(spy), coordinates(height, width), (side, side), (step, step))
    for top, left, tall, wide in spy.windows:
        assert (tall, wide) == (min(side, height), min(side, width))
        assert top + tall <= height
        assert left + wide <= width
    for length, axis in ((height, 0), (width, 1)):
        starts = sorted({place[axis] for place in spy.windows})
        gaps = [after - before for before, after in pairwise(starts)]
        assert starts[0] == 0
        assert starts[-1] == max(length - side, 0)
        assert len(gaps) == math.ceil(starts[-1] / step)  # as few as can be
        assert max(gaps, default=0) <= min(gaps, default=0) + 1  # and even
    assert len(set(spy.windows)) == len(spy.windows)
    covered = {
        (y, x)
        for top, left, tall, wide in spy.windows
        for y in range(top, top + tall)
        for x in range(left, left + wide)
    }
    assert len(covered) == height * width


def test_windows_by_hand():
    spy = Spy()
    sliding(network(spy), coordinates(10, 4), (4, 4), (3, 3))
    assert spy.windows == [(0, 0, 4, 4), (3, 0, 4, 4), (6, 0, 4, 4)]
    spy.windows.clear()
    sliding(network(spy), coordinates(9, 3), (4, 4), (3, 3))
    assert spy.windows == [(0, 0, 4, 3), (2, 0, 4, 3), (5, 0, 4, 3)]
    spy.windows.clear()
    sliding(network(spy), coordinates(4, 9), (4, 4), (4, 4))
    assert spy.windows == [(0, 0, 4, 4), (0, 2, 4, 4), (0, 5, 4, 4)]


@given(**sizes)
def test_overlapping_windows_are_averaged(height, width, side, step):
    """D40: the authors sum without dividing."""
    step, image, spy = min(step, side), noise(1, 3, height, width), Spy()
    sliding(network(spy), coordinates(height, width), (side, side), (step, step))
    expected, count = torch.zeros(3, height, width), torch.zeros(height, width)
    for top, left, tall, wide in spy.windows:
        logits = image[0, :, top : top + tall, left : left + wide].mean((1, 2))
        expected[:, top : top + tall, left : left + wide] += logits.softmax(0)[:, None, None]
        count[top : top + tall, left : left + wide] += 1

    class Mean(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean((2, 3), keepdim=True).expand_as(image)

    averaged = sliding(network(Mean()), image, (side, side), (step, step))
    torch.testing.assert_close(averaged[0], expected / count)
    torch.testing.assert_close(averaged.sum(1), torch.ones(1, height, width))


def test_whole_gives_probabilities_at_the_size_of_the_image(tiny):
    net, image = tiny(), noise(2, 3, 7, 9)
    probability = whole(net, image)
    torch.testing.assert_close(probability, net.eval()(image).softmax(1))
    assert not probability.requires_grad


def test_confidence_is_the_probability_of_the_label(tiny):
    net, image = tiny(), noise(2, 3, 8, 8)
    prediction = predict(net, image)
    confidence, label = whole(net, image).max(1)
    assert prediction.num_classes == 3
    assert torch.equal(prediction.label, label)
    torch.testing.assert_close(prediction.confidence, confidence)
    assert prediction.confidence.dtype == torch.float32
    assert not prediction.confidence.requires_grad
    assert (prediction.confidence <= 1).all()


@pytest.mark.parametrize("few", [1, 7, 100])  # values at a time, of the 5 classes of a row of 6 px
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_prediction_is_that_of_the_softmax(few, layout, monkeypatch):
    monkeypatch.setattr(predict_module, "_CACHED", few * 5)
    logits = noise(2, 5, 4, 6).mul(5).to(memory_format=layout)
    found = predict(answering(logits), noise(len(logits), 3, *logits.shape[2:]))
    confidence, label = logits.softmax(1).max(1)
    assert torch.equal(found.label, label)
    assert torch.equal(most_likely(logits), label)
    torch.testing.assert_close(found.confidence, confidence, atol=2e-6, rtol=0)


def test_of_equal_classes_the_first_is_predicted_and_of_no_numbers_one_that_exists():
    nan = float("nan")
    logits = torch.tensor([[2.0, 1, 2, 0], [0, 3, 3, 3], [nan, 0, 0, 0], [nan, nan, nan, nan]])[:, :, None, None]
    found = predict(answering(logits), noise(len(logits), 3, *logits.shape[2:]))
    assert found.label[:2].flatten().tolist() == [0, 1]
    assert found.confidence[1].item() == pytest.approx(1 / (3 + torch.tensor(-3.0).exp().item()))
    assert all(0 <= label < 4 for label in found.label[2:].flatten().tolist())
    assert found.confidence[2:].isnan().all()


def test_confidence_of_a_network_of_few_bits_is_fp32():
    class Half(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.bfloat16()

    image = torch.tensor([4.0, 0.0, 0.0])[None, :, None, None]
    prediction = predict(network(Half()), image)
    assert prediction.confidence.dtype == torch.float32
    assert prediction.confidence.item() == pytest.approx(torch.tensor([4.0, 0.0, 0.0]).softmax(0)[0].item(), rel=1e-6)
    assert whole(network(Half()), image).dtype == torch.float32


@pytest.mark.parametrize("run", [predict, whole, lambda net, image: sliding(net, image, (4, 4), (2, 2))])
def test_networks_run_in_eval_mode_and_return_to_the_mode_they_were_in(tiny, run):
    for training in (True, False):
        net = tiny().train(training)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        seen: list[bool] = []
        net.net.encoder[1].register_forward_pre_hook(lambda module, _, seen=seen: seen.append(module.training))
        run(net, noise(2, 3, 8, 8))
        assert seen
        assert not any(seen)
        assert all(module.training is training for module in net.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_mode_returns_after_an_error_too(tiny):
    net = tiny().train()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert 1 / sum(module.training for module in net.modules())
    assert all(module.training for module in net.modules())


def test_every_module_returns_to_its_own_mode(tiny):
    """A batch norm that was frozen stays frozen."""
    net = tiny().train()
    net.net.encoder[1].eval()
    predict(net, noise(1, 3, 8, 8))
    assert net.net.segmentation_head.training
    assert not net.net.encoder[1].training


def test_probabilities_at_another_size():
    probability = noise(1, 3, 4, 6).softmax(1)
    assert torch.equal(resize_probability(probability, 4, 6), probability)
    resized = resize_probability(probability, 9, 5)
    assert resized.shape == (1, 3, 9, 5)
    torch.testing.assert_close(resized.sum(1), torch.ones(1, 9, 5))
    flat = torch.tensor([0.2, 0.3, 0.5])[None, :, None, None].expand(1, 3, 4, 6)
    torch.testing.assert_close(resize_probability(flat, 7, 3), flat[..., :1, :1].expand(1, 3, 7, 3))


def test_the_host_never_waits(no_host_sync, tiny):
    assert no_host_sync(predict, tiny(), noise(2, 3, 8, 8)).label.is_meta
    assert no_host_sync(most_likely, noise(2, 3, 8, 8)).is_meta
    assert no_host_sync(sliding, tiny(), noise(2, 3, 8, 8), (4, 4), (3, 3)).is_meta


@pytest.mark.parametrize("values", [1, 2**25])
@pytest.mark.parametrize("size", [(40, 50), (20, 30)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_large_image_is_resized_class_by_class(monkeypatch, values, size, memory):
    probability = noise(2, 7, 20, 30).round(decimals=1).contiguous(memory_format=memory)  # several are largest
    expected = most_likely(resize_probability(probability, *size))
    monkeypatch.setattr(predict_module, "_RESIZED", values)
    found = most_likely_at(probability, *size)
    assert torch.equal(found.long(), expected)
    assert found.unique().numel() == 7


def test_one_class_of_a_large_image_is_resized_at_once(monkeypatch):
    sizes = []
    original = predict_module.resize_probability
    monkeypatch.setattr(
        predict_module,
        "resize_probability",
        lambda part, height, width: sizes.append(part.shape[1] * height * width) or original(part, height, width),
    )
    most_likely_at(noise(1, 21, 5, 5), 2000, 3000)
    assert sizes == [2000 * 3000] * 21


def test_a_prediction_may_use_the_statistics_of_the_batch():
    """Batch norm is in train mode then, and nothing else: dropout is not."""
    with seeded(0):
        conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    own = Network(Undivided(nn.Sequential(conv, norm, nn.Dropout(0.9))), Normalization(), 1)
    image = noise(2, 3, 5, 5)
    with torch.no_grad():
        expected = norm(conv(image))
    norm.reset_running_stats()
    found = predict(own, image, batch_statistics=True)
    assert torch.equal(found.label, expected.argmax(1))
    torch.testing.assert_close(found.confidence, expected.softmax(1).amax(1))
    assert norm.num_batches_tracked == 1
    assert all(module.training for module in own.modules())
    predict(own, image)
    assert norm.num_batches_tracked == 1
