"""Batch norm of labeled images and views of unlabeled ones."""

import copy

import pytest
import torch
from torch import nn

from semiseg.models.norms import batch_norm


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_apart_equals_two_passes_of_which_the_first_one_is_remembered():
    one = network()
    two, image = copy.deepcopy(one), torch.randn(5, 3, 4, 4)
    image[2:] += 3
    with batch_norm(one, "apart", labeled=2):
        found = one(image)
    first = two(image[:2])
    remembered = copy.deepcopy(two.state_dict())
    torch.testing.assert_close(found, torch.cat([first, two(image[2:])]))
    assert one.state_dict().keys() == remembered.keys()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, remembered[key])


def test_joint_is_one_batch():
    one = network()
    two, image = copy.deepcopy(one), torch.randn(5, 3, 4, 4)
    with batch_norm(one, "joint", labeled=2):
        found = one(image)
    assert torch.equal(found, two(image))
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


def test_afterwards_the_network_is_as_before():
    net = network()
    two, image = copy.deepcopy(net), torch.randn(4, 3, 4, 4)
    with pytest.raises(ZeroDivisionError), batch_norm(net, "apart", labeled=2):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="more than 1 value"), batch_norm(two, "apart", labeled=2):
        two(torch.randn(3, 3, 1, 1))  # the second of two passes fails
    two.load_state_dict(net.state_dict())
    assert torch.equal(net(image), two(image))
    assert torch.equal(copy.deepcopy(net)[1].running_mean, two[1].running_mean)


def test_gradients_reach_both():
    net, image = network(), torch.randn(5, 3, 4, 4, requires_grad=True)
    with batch_norm(net, "apart", labeled=2):
        found = net(image)
    found.square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum((1, 2, 3)).min() > 0
