"""Neurons and channels that cannot matter, removed: a smaller dense network that computes the same function.

A neuron is removed where every weight that leaves it is zero, or where every weight that enters it is zero: then it
is a constant, which moves into the biases of the layer behind. A network is read as chains of plain layers. What a
residual sum or a concatenation joins is the end of a chain, so within a block only what is between its own
convolutions is removed.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdx.models.widths import keep_inputs, keep_outputs, with_used_inputs

Weighted = nn.Linear | nn.Conv2d
_NORMS = nn.BatchNorm1d | nn.BatchNorm2d
# What hands each neuron on by itself, and the same constant everywhere as that constant.
_PASSING = nn.Dropout | nn.Identity | nn.Flatten | nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d
_SINGLE = nn.Dropout | nn.Identity | nn.Flatten


@dataclass(frozen=True)
class Link:
    """A layer, the next one that has weights, and what lies between them."""

    layer: Weighted
    between: tuple[nn.Module, ...]
    following: Weighted


def shrink(network: nn.Module, *, inputs: bool = True) -> nn.Module:
    """A copy of `network` in eval mode without the neurons and channels that cannot matter; at least one is left.

    With `inputs` also the pixels are left out that no weight of a first linear layer uses, by a `used_inputs` layer.
    The function is the same but for rounding.
    """
    smaller = deepcopy(network).eval()
    # Removing a neuron can leave another one without weights, before or behind it.
    while any(_shrunk(link) for link in links(smaller)):
        pass
    return _without_unused_inputs(smaller) if inputs else smaller


def links(network: nn.Module) -> list[Link]:
    """The pairs of successive ungrouped layers between which neurons can be removed one by one."""
    # Of a layer that is used at two places, either may need its neurons.
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
    """The layers of sequences within sequences, one after the other."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _in_a_row(child)
    else:
        yield module


def _linked(chain: list[nn.Module]) -> Iterator[Link]:
    layer, between = None, []
    for module in chain:
        if isinstance(module, Weighted):
            if layer is not None and _ungrouped(layer) and _ungrouped(module):
                yield Link(layer, tuple(between), module)
            layer, between = module, []
        elif isinstance(module, nn.ReLU | nn.ZeroPad2d | _PASSING) or _has_constants(module):
            between.append(module)
        else:
            layer = None


def _has_constants(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and module.affine and module.track_running_stats


def _ungrouped(layer: Weighted) -> bool:
    return isinstance(layer, nn.Linear) or layer.groups == 1


def _shrunk(link: Link) -> bool:
    """Remove what can be removed between two layers, in place; whether there was anything."""
    layer, following = link.layer, link.following
    leaving = following.weight.detach().flatten(1).unflatten(1, (len(layer.weight), -1))
    unused = (leaving == 0).all(dim=2).all(dim=0)
    constant = (layer.weight.detach() == 0).flatten(1).all(dim=1)
    values, exact = _constants(link)
    removed = unused | (constant & exact)
    if removed.all():
        # A layer needs a width; which neuron stays is all the same.
        removed[0] = False
    if not removed.any():
        return False
    folded = torch.where(removed & ~unused, values, 0.0)
    moved = leaving.double().sum(dim=2) @ folded
    if moved.any():
        bias = torch.zeros_like(moved) if following.bias is None else following.bias.detach().double()
        following.bias = nn.Parameter((bias + moved).to(following.weight.dtype))
    # One neuron is several inputs of `following` where channels were flattened.
    positions = following.weight.shape[1] // len(layer.weight)
    keep_outputs(layer, ~removed)
    for module in link.between:
        if isinstance(module, _NORMS):
            keep_outputs(module, ~removed)
    keep_inputs(following, (~removed).repeat_interleave(positions))
    return True


def _constants(link: Link) -> tuple[Tensor, Tensor]:
    """What neurons without inputs hand on, float64 (neurons,), and the mask of those that do so at every position.

    Only zero is the same everywhere behind a padding with zeros.
    """
    bias = link.layer.bias
    values = torch.zeros(len(link.layer.weight)) if bias is None else bias.detach()
    values = values.double().to(link.layer.weight.device)
    exact = torch.ones_like(values, dtype=torch.bool)
    for module in link.between:
        if isinstance(module, _NORMS):
            values = _normalised(module, values)
        elif isinstance(module, nn.ReLU):
            values = values.relu()
        if _pads_with_zeros(module):
            exact &= values == 0
    if _pads_with_zeros(link.following):
        exact &= values == 0
    return values, exact


def _normalised(norm: _NORMS, values: Tensor) -> Tensor:
    assert norm.running_mean is not None, "it has constants"
    assert norm.running_var is not None, "it has constants"
    values = (values - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
    return values * norm.weight.detach().double() + norm.bias.detach().double()


def _pads_with_zeros(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and any(module._reversed_padding_repeated_twice)
    if isinstance(module, nn.AvgPool2d):
        return module.padding not in (0, (0, 0))
    return isinstance(module, nn.ZeroPad2d)


def _without_unused_inputs(network: nn.Module) -> nn.Module:
    """Let the first linear layer see the pixels only that it uses, where nothing but a flattening is before it."""
    if not isinstance(network, nn.Sequential):
        return network
    for name, layer in network.named_children():
        if isinstance(layer, nn.Linear):
            used = (layer.weight.detach() != 0).any(dim=0)
            if used.all() or not used.any():
                return network
            keep_inputs(layer, used)
            return with_used_inputs(network, name, used.nonzero().flatten())
        if not isinstance(layer, _SINGLE):
            return network
    return network
