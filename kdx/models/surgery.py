"""Changes of a network's layers: replacing them, and removing neurons or channels."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
# The tensors with one entry per neuron or channel.
Norm = nn.BatchNorm1d | nn.BatchNorm2d


class UsedInputs(nn.Module):
    """Selects the inputs at `indices`, int32 (used,): flattened images (batch, inputs) to (batch, used)."""

    indices: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices.to(torch.int32))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) to (batch, used)."""
        return inputs.index_select(1, self.indices)


def select_outputs(layer: nn.Module, kept: Tensor) -> None:
    """Keep only the outputs of the mask `kept` (out,), in place, of an ungrouped weight layer or a batch norm."""
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        # Batch norm's count of batches has no entry per neuron.
        if value.dim():
            _replace(layer, name, value.detach()[kept])
    _declare_widths(layer)


def select_inputs(layer: nn.Linear | nn.Conv2d, kept: Tensor) -> None:
    """Keep only the inputs of the mask `kept` (in,), in place, of an ungrouped weight layer."""
    _replace(layer, "weight", layer.weight.detach()[:, kept])
    _declare_widths(layer)


def with_used_inputs(network: nn.Sequential, before: str, indices: Tensor) -> nn.Sequential:
    """The same layers with a `UsedInputs` layer, named `used_inputs`, in front of the layer `before`."""
    layers = nn.Sequential()
    for name, layer in network.named_children():
        if name == before:
            layers.add_module("used_inputs", UsedInputs(indices))
        layers.add_module(name, layer)
    return layers.train(network.training)


def resize_like(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """`network` with the layer widths of `tensors`, changed in place; the values are left undefined.

    A layer without a bias gets one if `tensors` has one. Names in `tensors` that the network lacks are ignored.
    """
    for prefix, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | Norm | UsedInputs):
            own = dict([*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)])
            for name in [*own, "bias"]:
                found = tensors.get(f"{prefix}.{name}")
                if found is not None and (name not in own or found.shape != own[name].shape):
                    _replace(layer, name, torch.empty_like(found, device=_device(network)))
            _declare_widths(layer)
    return network


def _replace(layer: nn.Module, name: str, value: Tensor) -> None:
    is_buffer = name in layer._buffers
    setattr(layer, name, value if is_buffer else nn.Parameter(value))


def _declare_widths(layer: nn.Module) -> None:
    """Set a layer's width attributes from its weights, since torch checks and prints them."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = len(layer.weight), layer.weight.shape[1] * layer.groups
    elif isinstance(layer, Norm):
        layer.num_features = len(layer.weight)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


Substitute = Callable[[nn.Module], nn.Module | None]


def replace_layers(model: nn.Module, replacement: Substitute) -> int:
    """Replace, in place, at any depth, every submodule for which `replacement` returns a module; return how many."""
    count = 0
    for name, child in list(model.named_children()):
        new = replacement(child)
        if new is None:
            count += replace_layers(child, replacement)
        else:
            setattr(model, name, new)
            count += 1
    return count


class Geometry:
    """The hyper-parameters of an `nn.Conv2d` (stride, padding, ...), for another one of the same shape."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        self.arguments = {name: getattr(convolution, name) for name in names}
        self.stride, self.padding, self.dilation = convolution.stride, convolution.padding, convolution.dilation
        self.groups, self.padding_mode = convolution.groups, convolution.padding_mode
        # torch's own resolved form, which covers padding="same" too.
        self.sides = list(convolution._reversed_padding_repeated_twice)

    def convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with the given filters and bias, (batch, in, H, W) to (batch, out, H', W')."""
        padding = self.padding
        if self.padding_mode != "zeros":
            images, padding = F.pad(images, self.sides, self.padding_mode), 0
        return F.conv2d(images, weight, bias, self.stride, padding, self.dilation, self.groups)
