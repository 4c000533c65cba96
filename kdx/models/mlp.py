"""Fully connected networks: T1, S1, Le-L and 784-800-800-10."""

from collections import OrderedDict
from math import prod

from torch import nn

from kdx.config import NetworkSettings


def fully_connected(inputs: int, hidden: list[int], classes: int) -> "OrderedDict[str, nn.Module]":
    """Flattening, then `fc1`, `fc2`, ... with a ReLU after every hidden layer (VS table captions; SPEC 1.1)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, width in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, width)
        layers[f"fc{number}_relu"] = nn.ReLU()
        inputs = width
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(inputs, classes)
    return layers


def mlp(settings: NetworkSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """A multilayer perceptron: images (batch, C, H, W) to logits (batch, classes)."""
    return nn.Sequential(fully_connected(prod(image_shape), settings.hidden, classes))
