"""Initial weights of deep networks, drawn from torch's global generator.

torch's default has a sixth of the variance of He initialisation, so that the signal of a deep network without batch
norm vanishes. Networks that are not deep keep the default.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import init

Net = TypeVar("Net", bound=nn.Module)


def he_normal(network: Net) -> Net:
    """Weights N(0, 2 / inputs) and biases 0 in every linear and convolutional layer, in place (He et al. 2015)."""
    return _drawn(network, lambda weight: init.kaiming_normal_(weight, nonlinearity="relu"))


def glorot_uniform(network: Net) -> Net:
    """Weights U(+-sqrt(6 / (inputs + outputs))) and biases 0, the default of Keras (Glorot and Bengio 2010).

    Networks with the same first layers get the same weights there, so that KDDP's students of different width start
    alike.
    """
    # torch has already drawn default weights, more of them for a wider network.
    torch.manual_seed(torch.initial_seed())
    return _drawn(network, init.xavier_uniform_)


def _drawn(network: Net, draw: Callable[[Tensor], Tensor]) -> Net:
    for layer in network.modules():
        # On the meta device only shapes are wanted; drawing there still takes most of the time.
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.is_meta:
            draw(layer.weight)
            if layer.bias is not None:
                init.zeros_(layer.bias)
    return network
