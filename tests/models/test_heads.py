import torch

from semiseg.models.build import Network
from semiseg.models.heads import decoded_channels, has_batch_norm, representation_head, values_at
from semiseg.rng import seeded
from semiseg.types import Normalization


def test_a_head_fits_its_network(tiny):
    for norm in (False, True):
        network = tiny(norm=norm).train()
        with seeded(0, "head"):
            state = torch.get_rng_state()
            assert decoded_channels(network) == 8
            assert torch.equal(torch.get_rng_state(), state)
            head = representation_head(network, 5)
        assert network.training
        assert has_batch_norm(head) == norm
        assert head(network.decode(network.encode(torch.zeros(2, 3, 6, 6)))).shape == (2, 5, 6, 6)


def test_values_are_read_at_their_pixels(tiny):
    """The image has 6x10 px, padded to 8x12; the map has half or all of the resolution."""
    network = Network(tiny().net, Normalization(), 4)
    pixel = torch.tensor([0, 9, 35, 59])  # (0, 0), (0, 9), (3, 5), (5, 9)
    full = torch.arange(96.0).view(1, 1, 8, 12)
    assert values_at(network, full, pixel, (6, 10)).flatten().tolist() == [0, 9, 3 * 12 + 5, 5 * 12 + 9]
    half = torch.arange(24.0).view(1, 1, 4, 6)
    assert values_at(network, half, pixel, (6, 10)).flatten().tolist() == [0, 4, 6 + 2, 2 * 6 + 4]
    two = torch.stack([half, -half], dim=1)[:, :, 0].to(torch.bfloat16)
    read = values_at(network, two, pixel, (6, 10))
    assert read.dtype == torch.float32
    assert torch.equal(read[..., 1], -read[..., 0])
