"""Building blocks of several architectures: residual and dense shortcuts, pooling, zero padding of small images."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def named(**layers: nn.Module) -> nn.Sequential:
    """A sequence of layers with the given names."""
    return nn.Sequential(OrderedDict(layers))


class Residual(nn.Module):
    """The sum of a branch and its shortcut, then `after` (He et al. 2016)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, C, H, W) to the sum, in the shape that branch and shortcut both give."""
        return self.after(self.branch(inputs) + self.shortcut(inputs))


class Dense(nn.Module):
    """The inputs with the outputs of a branch appended as further channels (Huang et al. 2017)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, C, H, W) to (batch, C + channels of the branch, H, W)."""
        return torch.cat([inputs, self.branch(inputs)], dim=1)


class GlobalAverage(nn.AdaptiveAvgPool2d):
    """The mean of every channel: images (batch, C, H, W) to (batch, C, 1, 1).

    torch's own implementation changes the memory layout of channels_last images in a way that vmap does not support.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        """Images (batch, C, H, W) to (batch, C, 1, 1)."""
        return input.mean((2, 3), keepdim=True)


def padding_to(side: int, height: int, width: int) -> "OrderedDict[str, nn.Module]":
    """A layer `pad` that zero-pads images smaller than `side` to that side, or no layer if they are large enough."""
    rows, columns = max(0, side - height), max(0, side - width)
    if not rows and not columns:
        return OrderedDict()
    return OrderedDict(pad=nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))
