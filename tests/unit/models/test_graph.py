"""Neurons that nothing uses lose their weights, and the function stays."""

import pytest
import torch
from helpers.miniature import convolutional, normal, perceptron, randomise
from torch import nn

from kdx.models.graph import zero_dead_neurons


def residual() -> nn.Sequential:
    """A sum in the middle, whose summands nobody may silence one by one."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + self.inner(images)

    return nn.Sequential(nn.Conv2d(1, 3, 3), Block(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


@pytest.mark.parametrize(("build", "channels"), [(perceptron, 1), (convolutional, 2), (residual, 1)])
def test_the_function_stays(build, channels):
    network, images = build().eval(), normal(4, channels, 6, 6, seed=1)
    network(images)
    randomise(network, 2)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
                layer.weight[:, : layer.weight.shape[1] // 2] = 0.0
    before = network(images)
    count = sum(int(p.count_nonzero()) for p in network.parameters())
    zero_dead_neurons(network)
    torch.testing.assert_close(network(images), before)
    assert sum(int(p.count_nonzero()) for p in network.parameters()) < count


def test_what_was_used_by_silenced_neurons_alone_is_silenced_too():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    randomise(network, 1)
    with torch.no_grad():
        network[4].weight[:, 0] = 0.0
        network[2].weight[1, :3] = 0.0
    zero_dead_neurons(network)
    assert (network[2].weight != 0).tolist() == [[False] * 4, [False, False, False, True]]
    assert (network[0].weight != 0).any(dim=1).tolist() == [False, False, False, True]
    assert network[0].bias.count_nonzero() == 1
