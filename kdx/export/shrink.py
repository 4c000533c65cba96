"""Neurons and channels that cannot matter, removed: a smaller dense network that computes the same function.

A neuron is removed where every weight that leaves it is zero, or where every weight that enters it is zero: then it
is a constant, which moves into the biases of the layer behind. What belongs together says `kdx.models.links`.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from kdx.models.links import Link, Norm, links
from kdx.models.widths import keep_inputs, keep_outputs, with_used_inputs

# What lies between the pixels and the first linear layer without changing them.
_SINGLE = nn.Dropout | nn.Identity | nn.Flatten


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


def _shrunk(link: Link) -> bool:
    """Remove what can be removed between two layers, in place; whether there was anything."""
    layer, following = link.layer, link.following
    unused = link.unused()
    constant = (layer.weight.detach() == 0).flatten(1).all(dim=1)
    values, exact = _constants(link)
    removed = unused | (constant & exact)
    if removed.all():
        # A layer needs a width; which neuron stays is all the same.
        removed[0] = False
    if not removed.any():
        return False
    folded = torch.where(removed & ~unused, values, 0.0)
    moved = link.leaving().double().sum(dim=2) @ folded
    if moved.any():
        bias = torch.zeros_like(moved) if following.bias is None else following.bias.detach().double()
        following.bias = nn.Parameter((bias + moved).to(following.weight.dtype))
    # One neuron is several inputs of `following` where channels were flattened.
    positions = following.weight.shape[1] // len(layer.weight)
    keep_outputs(layer, ~removed)
    for module in link.between:
        if isinstance(module, Norm):
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
        if isinstance(module, Norm):
            values = _normalised(module, values)
        elif isinstance(module, nn.ReLU):
            values = values.relu()
        if _pads_with_zeros(module):
            exact &= values == 0
    if _pads_with_zeros(link.following):
        exact &= values == 0
    return values, exact


def _normalised(norm: Norm, values: Tensor) -> Tensor:
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
