"""Initial weights of deep networks, drawn from torch's global generator.

torch's own start with a sixth of the variance that He's has, so that the signal dies in a deep network without batch
norm. Its networks that are not deep keep them.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import init

Net = TypeVar("Net", bound=nn.Module)


def he_normal(network: Net) -> Net:
    """Weights N(0, 2 / inputs) and biases 0 in every linear and convolutional layer (He et al. 2015)."""
    return _drawn(network, lambda weight: init.kaiming_normal_(weight, nonlinearity="relu"))


def glorot_uniform(network: Net) -> Net:
    """Weights U(+-sqrt(6 / (inputs + outputs))) and biases 0, the default of Keras (Glorot and Bengio 2010).

    Networks that begin with the same layers have the same weights there, whatever follows (KDDP, SPEC 3).
    """
    # torch has drawn weights of its own before, more for a wider network.
    torch.manual_seed(torch.initial_seed())
    return _drawn(network, init.xavier_uniform_)


def _drawn(network: Net, draw: Callable[[Tensor], Tensor]) -> Net:
    for layer in network.modules():
        # Where only shapes are wanted, torch would pretend to draw, which takes most of the time.
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.is_meta:
            draw(layer.weight)
            if layer.bias is not None:
                init.zeros_(layer.bias)
    return network
