"""Fully connected networks: VS's T1, S1 and Le-L, and Noisy Teachers' 784-800-800-10."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import nn

from kdx.config.networks import PlainSettings


def fully_connected(
    inputs: int, hidden: Sequence[int], classes: int, dropout: float = 0.0
) -> "OrderedDict[str, nn.Module]":
    """A flattening, then `fc1`, `fc2`, ... with a ReLU after every hidden layer (VS, captions of the tables).

    An architecture's own `dropout` follows every hidden ReLU.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, width in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, width)
        layers[f"fc{number}_relu"] = nn.ReLU()
        if dropout:
            layers[f"fc{number}_dropout"] = nn.Dropout(dropout)
        inputs = width
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(inputs, classes)
    return layers


def mlp(settings: PlainSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """A multilayer perceptron: images (batch, C, H, W) to logits (batch, classes)."""
    return nn.Sequential(fully_connected(prod(image_shape), settings.hidden, classes))
