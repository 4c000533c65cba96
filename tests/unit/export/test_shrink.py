"""Shrinking: the same function from fewer neurons and channels, and never one too few."""

import pytest
import torch
from helpers.masks import assert_same_function, sparse
from helpers.miniature import CLASSES, convolutional, named, perceptron
from helpers.networks import IMAGE, SETTINGS, small
from torch import nn

from kdx.export.shrink import shrink
from kdx.measure.footprint import parameter_count
from kdx.measure.multiplications import multiplications
from kdx.models.surgery import UsedInputs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", SETTINGS)
def test_the_function_is_the_same(family: str, seed: int):
    network = sparse(small(family), seed)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    smaller = shrink(network)
    assert_same_function(smaller, network)
    assert parameter_count(smaller) < parameter_count(network)
    assert multiplications(smaller, IMAGE) < multiplications(network, IMAGE)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items()), "a copy is shrunk"


def test_a_dense_network_stays_as_it_is():
    network = perceptron().eval()
    assert str(shrink(network)) == str(network)
    assert_same_function(shrink(network), network, (1, 6, 6))


def test_what_vanishes_makes_others_vanish():
    network = named({"fc1": nn.Linear(3, 4), "relu1": nn.ReLU(), "fc2": nn.Linear(4, 4), "relu2": nn.ReLU(),
                     "fc3": nn.Linear(4, 2)}, seed=0).eval()  # fmt: skip
    with torch.no_grad():
        # Nothing uses neuron 0 of fc2, which alone used neurons 0 and 1 of fc1.
        network.fc3.weight[:, 0] = 0
        network.fc2.weight[1:, :2] = 0
    smaller = shrink(network)
    assert (smaller.fc1.out_features, smaller.fc2.out_features) == (2, 3)
    assert_same_function(smaller, network, (3,))


def test_a_layer_without_any_weight_keeps_one_neuron():
    network = perceptron().eval()
    with torch.no_grad():
        network.fc2.weight.zero_()
    smaller = shrink(network)
    assert smaller.fc1.out_features == 1
    assert_same_function(smaller, network, (1, 6, 6))


def test_groups_are_left_alone():
    network = sparse(convolutional())
    smaller = shrink(network)
    assert smaller.conv1.weight.shape == network.conv1.weight.shape
    assert_same_function(smaller, network, (2, 6, 6))


def constant_channel(padding: int) -> nn.Sequential:
    """A channel that is 3 everywhere, in front of a convolution with or without zeros around it."""
    network = named({"conv1": nn.Conv2d(1, 3, 3), "bn1": nn.BatchNorm2d(3), "relu1": nn.ReLU(), "pool": nn.MaxPool2d(2),
                     "conv2": nn.Conv2d(3, 4, 3, padding=padding, bias=False), "average": nn.AdaptiveAvgPool2d(1),
                     "flatten": nn.Flatten(), "fc": nn.Linear(4, CLASSES)}, seed=2).eval()  # fmt: skip
    with torch.no_grad():
        network.conv1.weight[1] = 0
        network.conv1.bias[1] = 2.0
        network.bn1.weight[1], network.bn1.bias[1] = 1.0, 1.0
    return network


def test_a_constant_channel_moves_into_the_bias_behind():
    network = constant_channel(padding=0)
    smaller = shrink(network)
    assert (smaller.conv1.out_channels, smaller.conv2.in_channels, smaller.bn1.num_features) == (2, 2, 2)
    assert smaller.conv2.bias is not None
    assert_same_function(smaller, network, (1, 12, 12))


def test_a_constant_channel_in_front_of_zeros_stays():
    network = constant_channel(padding=1)
    smaller = shrink(network)
    assert smaller.conv1.out_channels == 3, "at the border it is another constant"
    assert_same_function(smaller, network, (1, 12, 12))


def test_a_channel_that_is_zero_vanishes_in_front_of_zeros():
    network = constant_channel(padding=1)
    with torch.no_grad():
        network.bn1.bias[1] = -9.0
    smaller = shrink(network)
    assert smaller.conv1.out_channels == 2
    assert_same_function(smaller, network, (1, 12, 12))


def test_what_a_residual_sum_joins_stays():
    network = small("kddp").eval()
    with torch.no_grad():
        # The last convolution of the branch, and the first one of the network.
        network.block.branch.conv3.weight[0] = 0
        network.conv1.weight[0] = 0
        network.block.branch.conv1.weight[0] = 0
        network.block.branch.bn1.bias[0] = -9.0
    smaller = shrink(network)
    assert smaller.conv1.out_channels == network.conv1.out_channels
    assert smaller.block.branch.conv3.out_channels == network.block.branch.conv3.out_channels
    assert smaller.block.branch.conv1.out_channels == network.block.branch.conv1.out_channels - 1
    assert_same_function(smaller, network)


def test_unused_pixels_are_not_read():
    network = perceptron().eval()
    with torch.no_grad():
        network.fc1.weight[:, ::3] = 0
    smaller = shrink(network)
    assert isinstance(smaller.used_inputs, UsedInputs)
    assert smaller.fc1.in_features == 24
    assert_same_function(smaller, network, (1, 6, 6))
    assert str(shrink(network, inputs=False)) == str(network)


def test_a_layer_that_is_used_twice_keeps_its_neurons():
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        shared.weight[0] = 0
    assert_same_function(shrink(network), network, (4,))
