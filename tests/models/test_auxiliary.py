import pytest
import torch
import torch.nn.functional as F

from semiseg.models.auxiliary import AuxiliaryDecoder, last_map
from semiseg.models.build import Config, Network, build
from semiseg.rng import fold_in, seeded
from semiseg.types import Normalization


def made(channels: int, classes: int, scale: int) -> AuxiliaryDecoder:
    with seeded(0, "auxiliary"):
        return AuxiliaryDecoder(channels, classes, scale)


def test_without_scale_it_is_a_convolution():
    decoder, value = made(4, 3, 1), torch.randn(2, 4, 5, 6, generator=fold_in(0))
    (weight,) = decoder.parameters()
    assert torch.equal(decoder(value, (5, 6), (5, 6)), F.conv2d(value, weight))


def test_each_block_doubles_the_scale_and_begins_with_equal_pixels():
    decoder, value = made(4, 3, 4), torch.randn(2, 4, 3, 2, generator=fold_in(0))
    first, one, other = (parameter for parameter in decoder.parameters() if parameter.ndim == 4)
    assert first.shape == (3, 4, 1, 1)
    assert one.shape == other.shape == (12, 3, 1, 1)
    for bias in (parameter for parameter in decoder.parameters() if parameter.ndim == 1):
        torch.nn.init.zeros_(bias)
    small = F.conv2d(value, first)
    for weight in (one, other):
        small = F.conv2d(small, weight[::4]).relu()
    wanted = F.interpolate(small, scale_factor=4, mode="nearest")
    torch.testing.assert_close(decoder(value, (12, 8), (12, 8)), wanted)
    assert wanted.max() > 0


@pytest.mark.parametrize("classes", [2, 3, 21])
def test_few_decoders_begin_with_a_class_that_they_never_predict(classes):
    """A ReLU that is 0 at all places gives its weights no gradient, and the class a logit of 0 everywhere."""
    value, dead = torch.randn(4, 16, 7, 7, generator=fold_in(0)), 0
    for seed in range(40):
        with seeded(seed, "auxiliary"):
            decoder = AuxiliaryDecoder(16, classes, 16)
        with torch.no_grad():
            logits = decoder(value, (112, 112), (112, 112))
        dead += int((logits.amax((0, 2, 3)) <= 0).any())
    assert dead <= {2: 6, 3: 6, 21: 30}[classes]


def test_logits_have_the_size_of_the_image():
    decoder, value = made(4, 3, 14), torch.randn(1, 4, 2, 3, generator=fold_in(0))
    logits = decoder(value, (25, 40), (28, 42))
    assert logits.shape == (1, 3, 25, 40)
    whole = F.interpolate(decoder.layers(value), (28, 42), mode="bilinear")
    assert torch.equal(logits, whole[..., :25, :40])


def test_the_last_map_of_an_encoder(tiny):
    network = tiny().train()
    state = torch.get_rng_state()
    assert last_map(network) == (8, 1)
    assert last_map(Network(network.net, Normalization(), 4)) == (8, 1)
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("architecture", "scale"), [("deeplabv3plus", 16), ("unet", 32), ("pspnet", 8), ("segformer", 32), ("pan", 16)]
)
def test_networks_of_all_kinds(architecture, scale):
    with seeded(0, "network"):
        network = build(Config(architecture=architecture, encoder="tu-test_efficientnet", weights=None), 3)
    channels, found = last_map(network)
    assert found == scale
    features = network.encode(torch.zeros(2, 3, 70, 90))
    decoder = made(channels, 3, found)
    assert decoder(features.maps[-1], features.size, network.padded(features.size)).shape == (2, 3, 70, 90)
