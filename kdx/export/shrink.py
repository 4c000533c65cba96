"""Removes neurons and channels that cannot matter: a smaller dense network that computes the same function.

A neuron is removed if all its outgoing weights are zero, or if all its incoming weights are: then it is a constant,
which is added to the biases of the next layer. Which layers feed which is found by `kdx.models.graph`.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from kdx.models.graph import LayerPair, Norm, layer_pairs
from kdx.models.surgery import select_inputs, select_outputs, with_used_inputs

# Layers that may precede the first linear layer, because they do not change the pixels.
_SINGLE = nn.Dropout | nn.Identity | nn.Flatten


def shrink(network: nn.Module, *, inputs: bool = True) -> nn.Module:
    """A copy of `network` in eval mode without neurons and channels that cannot matter; at least one per layer is left.

    With `inputs` a first linear layer's unused pixels are left out too, by a `used_inputs` layer. The function is the
    same up to rounding.
    """
    smaller = deepcopy(network).eval()
    # Removing a neuron can leave another one without weights, before or behind it.
    while any(_shrunk(link) for link in layer_pairs(smaller)):
        pass
    return _without_unused_inputs(smaller) if inputs else smaller


def _shrunk(link: LayerPair) -> bool:
    """Remove what can be removed between two layers, in place; return whether anything was."""
    layer, following = link.layer, link.following
    unused = link.unused()
    constant = (layer.weight.detach() == 0).flatten(1).all(dim=1)
    values, exact = _constants(link)
    removed = unused | (constant & exact)
    if removed.all():
        # A layer must have at least one neuron, no matter which.
        removed[0] = False
    if not removed.any():
        return False
    folded = torch.where(removed & ~unused, values, 0.0)
    moved = link.outgoing().double().sum(dim=2) @ folded
    if moved.any():
        bias = torch.zeros_like(moved) if following.bias is None else following.bias.detach().double()
        following.bias = nn.Parameter((bias + moved).to(following.weight.dtype))
    # One neuron is several inputs of `following` where channels were flattened.
    positions = following.weight.shape[1] // len(layer.weight)
    select_outputs(layer, ~removed)
    for module in link.between:
        if isinstance(module, Norm):
            select_outputs(module, ~removed)
    select_inputs(following, (~removed).repeat_interleave(positions))
    return True


def _constants(link: LayerPair) -> tuple[Tensor, Tensor]:
    """The outputs of neurons without inputs, float64 (neurons,), and the mask of those that are the same everywhere.

    Behind zero padding, only a constant of zero is the same at every position.
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
    """Let the first linear layer see only the pixels that it uses, if nothing but a flattening precedes it."""
    if not isinstance(network, nn.Sequential):
        return network
    for name, layer in network.named_children():
        if isinstance(layer, nn.Linear):
            used = (layer.weight.detach() != 0).any(dim=0)
            if used.all() or not used.any():
                return network
            select_inputs(layer, used)
            return with_used_inputs(network, name, used.nonzero().flatten())
        if not isinstance(layer, _SINGLE):
            return network
    return network
