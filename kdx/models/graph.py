"""Which layers of a network feed which, so that single neurons between them can be examined and removed.

A network is read as chains of plain layers. A chain ends where a residual sum or a concatenation joins branches, so of
a block only what lies between its own convolutions is found.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Weighted = nn.Linear | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d
# Layers that pass each neuron on separately, and a constant image as a constant image.
_PASSING = nn.Dropout | nn.Identity | nn.Flatten | nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d


@dataclass(frozen=True)
class LayerPair:
    """A weight layer, the next weight layer, and the layers between them."""

    layer: Weighted
    between: tuple[nn.Module, ...]
    following: Weighted

    def outgoing(self) -> Tensor:
        """The weights that leave each neuron or channel, as (out of following, neurons, weights)."""
        return self.following.weight.detach().flatten(1).unflatten(1, (len(self.layer.weight), -1))

    def unused(self) -> Tensor:
        """The mask (neurons,) of the neurons all of whose outgoing weights are zero."""
        return (self.outgoing() == 0).all(dim=2).all(dim=0)


def layer_pairs(network: nn.Module) -> list[LayerPair]:
    """The pairs of successive ungrouped weight layers between which neurons can be removed one by one."""
    # If a layer is used at two places, either one may need its neurons.
    uses = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    return [
        link
        for chain in _chains(network)
        for link in _linked(chain)
        if all(uses[id(module)] == 1 for module in (link.layer, *link.between, link.following))
    ]


def _chains(network: nn.Module) -> Iterator[list[nn.Module]]:
    chain = list(_in_a_row(network))
    yield chain
    for module in chain:
        for child in module.children():
            yield from _chains(child)


def _in_a_row(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested sequences, in order."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _in_a_row(child)
    else:
        yield module


def _linked(chain: list[nn.Module]) -> Iterator[LayerPair]:
    layer, between = None, []
    for module in chain:
        if isinstance(module, Weighted):
            if layer is not None and _ungrouped(layer) and _ungrouped(module):
                yield LayerPair(layer, tuple(between), module)
            layer, between = module, []
        elif isinstance(module, nn.ReLU | nn.ZeroPad2d | _PASSING) or _has_constants(module):
            between.append(module)
        else:
            layer = None


def _has_constants(module: nn.Module) -> bool:
    return isinstance(module, Norm) and module.affine and module.track_running_stats


def _ungrouped(layer: Weighted) -> bool:
    return isinstance(layer, nn.Linear) or layer.groups == 1


def zero_dead_neurons(network: nn.Module) -> None:
    """Set the weights and biases of neurons without outgoing weights to exact zeros, in place.

    The network's function stays the same. Earlier neurons that become unused by this are zeroed too.
    """
    with torch.no_grad():
        for link in reversed(layer_pairs(network)):
            unused = link.unused()
            link.layer.weight[unused] = 0.0
            if link.layer.bias is not None:
                link.layer.bias[unused] = 0.0
