"""What masks keep and what they leave."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from helpers.miniature import normal
from helpers.networks import IMAGE


def kept(found: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in found.values())


def no_bit_set(values: Tensor) -> bool:
    return not values.view(torch.int32).any()


def sparse(network: nn.Module, seed: int = 1) -> nn.Module:
    """The network in eval mode with random biases, statistics, single zeros, and whole rows and columns of zeros."""
    numbers = torch.Generator().manual_seed(seed)

    def chosen(count: int, share: float) -> Tensor:
        return torch.rand(count, generator=numbers) < share

    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight[torch.rand(layer.weight.shape, generator=numbers) < 0.3] = 0
                layer.weight[chosen(len(layer.weight), 0.4)] = 0
                layer.weight[:, chosen(layer.weight.shape[1], 0.2)] = 0
                if layer.bias is not None:
                    layer.bias.normal_(0, 0.5, generator=numbers)
            elif isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.running_mean, layer.weight, layer.bias):
                    tensor.normal_(0, 0.5, generator=numbers)
                layer.running_var.uniform_(0.5, 2, generator=numbers)
    return network.eval()


def assert_same_function(smaller: nn.Module, network: nn.Module, shape: tuple[int, ...] = IMAGE) -> None:
    images = normal(9, *shape, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), network(images), atol=1e-5, rtol=1e-5)
