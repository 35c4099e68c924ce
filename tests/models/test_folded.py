"""Folded networks compute the same function, and nothing of them has changed afterwards."""

import copy

import pytest
import torch
from torch import nn

from semiseg.models import folded as folded_module
from semiseg.models.build import Config, Network, build
from semiseg.models.folded import folded
from semiseg.models.predict import whole
from semiseg.rng import fold_in, seeded
from semiseg.types import Normalization

IMAGE = torch.randn(2, 3, 48, 64, generator=fold_in(0, "image"))
LITE = {"encoder_depth": 4, "decoder_channels": 64, "decoder_atrous_rates": [3, 6, 9]}


def unlike_new(network: Network) -> Network:
    """Gives batch norm the numbers of a trained network."""
    generator = fold_in(0, "norms")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                value.data.copy_(torch.empty(value.shape).uniform_(low, high, generator=generator))
    return network.eval()


def make(architecture: str, encoder: str, **options) -> Network:
    with seeded(0):
        return unlike_new(build(Config(architecture=architecture, encoder=encoder, weights=None, options=options), 5))


def norms(network: Network) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.fixture
def normalized(monkeypatch) -> list[int]:
    """The number of channels of each batch norm that is computed."""
    calls = []
    batch_norm = torch.nn.functional.batch_norm

    def counted(value, *args, **kwargs):
        calls.append(value.shape[1])
        return batch_norm(value, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "batch_norm", counted)
    return calls


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "left"),
    [
        ("deeplabv3plus", "tu-tf_efficientnet_lite0", LITE, 0),  # batch norm with activation, padding as in TensorFlow
        ("deeplabv3plus", "resnet18", {}, 0),
        ("unet", "efficientnet-b0", {}, 0),
        ("unet", "tu-convnext_atto", {}, 0),  # batch norm in its decoder only
        ("fpn", "densenet121", {}, None),  # batch norm before convolutions
    ],
)
def test_the_function_is_the_same(architecture, encoder, options, left, normalized):
    network = make(architecture, encoder, **options)
    normalized.clear()
    with torch.no_grad():
        expected = network(IMAGE)
        used = len(normalized)
        normalized.clear()
        with folded(network):
            network(IMAGE)  # finds the pairs
            normalized.clear()
            found = network(IMAGE)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert used > 0
    assert len(normalized) < used if left is None else len(normalized) == left


def test_nothing_has_changed_afterwards():
    network = make("deeplabv3plus", "resnet18")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(IMAGE)
        with folded(network):
            inside = network.state_dict()
            assert inside.keys() == before.keys()
            assert all(torch.equal(inside[name], value) for name, value in before.items())
        assert torch.equal(network(IMAGE), expected)
        with pytest.raises(KeyboardInterrupt), folded(network), folded(network):
            raise KeyboardInterrupt
        assert torch.equal(network(IMAGE), expected)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert not any("forward" in vars(module) for module in network.modules())
    copied = copy.deepcopy(network)
    assert torch.equal(copied(IMAGE), network(IMAGE))


def test_new_weights_are_folded_anew():
    network = make("deeplabv3plus", "resnet18")
    with torch.no_grad():
        with folded(network):
            first = network(IMAGE)
        for parameter in network.parameters():
            parameter.mul_(0.9)
        norms(network)[3].running_mean.add_(1)
        expected = network(IMAGE)
        with folded(network):
            second = network(IMAGE)
    assert torch.allclose(second, expected, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(second, first, atol=1e-3 * float(expected.abs().max()))


def network_of(module: nn.Module) -> Network:
    network = Network(nn.Module(), Normalization(), 2)
    network.module, network.forward = module, module.forward
    return unlike_new(network)


def test_a_network_may_rearrange_the_channels_of_the_image(normalized):
    """As TResNet does: its first convolution has 48 input channels."""
    network = network_of(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        expected = network(IMAGE)
        with folded(network):
            normalized.clear()
            assert torch.allclose(network(IMAGE), expected, atol=1e-5)
    assert normalized == []


def test_an_error_in_the_middle_of_folding_leaves_the_network_as_it_was(monkeypatch):
    network, fold, done = make("deeplabv3plus", "resnet18"), folded_module._Pair.fold, []

    def short_of_memory(pair):
        if len(done) == 3:
            raise MemoryError
        fold(pair)
        done.append(pair)

    monkeypatch.setattr(folded_module._Pair, "fold", short_of_memory)
    with torch.no_grad():
        expected = network(IMAGE)
        with pytest.raises(MemoryError), folded(network):
            pass
        assert torch.equal(network(IMAGE), expected)


class Twice(nn.Module):
    """Uses one convolution for batch norm and beside it, another one twice, and a third as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.beside, self.shared, self.alone = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, image):
        both = self.beside(image)
        value = self.norms[0](both) + both
        value = self.norms[2](self.shared(self.norms[1](self.shared(value))))
        return self.norms[3](self.alone(value))


def test_a_result_that_is_used_twice_is_not_changed(normalized):
    network = network_of(Twice())
    with torch.no_grad():
        expected = network(IMAGE)
        with folded(network):
            normalized.clear()
            assert torch.allclose(network(IMAGE), expected, atol=1e-5)
    assert len(normalized) == 3


def test_where_gradients_are_computed_nothing_is_folded(normalized):
    network = make("deeplabv3plus", "resnet18")
    normalized.clear()
    with folded(network):
        logits = network(IMAGE)
    assert logits.requires_grad
    assert len(normalized) == len(norms(network))


def test_predictions_are_made_with_it(normalized):
    network = make("deeplabv3plus", "resnet18")
    with torch.no_grad():
        expected = network(IMAGE).softmax(1)
    whole(network, IMAGE)
    normalized.clear()
    assert torch.allclose(whole(network, IMAGE), expected, atol=1e-5)
    assert normalized == []
