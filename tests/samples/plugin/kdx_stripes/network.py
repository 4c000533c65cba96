"""A perceptron that is narrow in the middle."""

from collections import OrderedDict
from math import prod
from typing import ClassVar

from torch import nn

from kdx.config.base import Count
from kdx.config.networks import NetworkSettings


class Bottleneck(NetworkSettings):
    """Three layers, the second of which has a fourth of the first one's `width`."""

    halved: ClassVar = {"filters": ("width",)}

    width: Count

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Images (batch, C, H, W) to logits (batch, classes)."""
        narrow = max(1, self.width // 4)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        layers.update(fc1=nn.Linear(prod(image_shape), self.width), fc1_relu=nn.ReLU())
        layers.update(fc2=nn.Linear(self.width, narrow), fc2_relu=nn.ReLU(), fc3=nn.Linear(narrow, classes))
        return nn.Sequential(layers)
