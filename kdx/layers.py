"""Substitution of layers, and layers whose random numbers are drawn outside of the training step."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Substitute = Callable[[nn.Module], nn.Module | None]


def substitute(model: nn.Module, replacement: Substitute) -> int:
    """Replace, in place, at any depth, every submodule for which `replacement` returns a module; return how many."""
    count = 0
    for name, child in list(model.named_children()):
        new = replacement(child)
        if new is None:
            count += substitute(child, replacement)
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


class NoisyLayer(nn.Module):
    """A layer that reads its random numbers from the buffer `noise`, and is deterministic while that is None.

    The trainer draws the numbers outside of the step and passes them in by `functional_call`, so the step stays a pure
    function: it compiles without a random generator, and its noise can be stored and repeated.
    """

    noise: Tensor | None
    numbers: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", None, persistent=False)
        # When one layer computes for several models, their own numbers are passed in like the noise.
        self.register_buffer("numbers", None, persistent=False)

    def own_numbers(self) -> tuple[float, ...]:
        """The layer's numbers that may differ between models which are trained together."""
        return ()

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """An uninitialised tensor with the shape and type of `noise` for these inputs and outputs."""
        raise TypeError(f"{type(self).__name__} does not say what noise it needs")

    def draw(self, noise: Tensor, generator) -> None:
        """Fill `noise` with fresh random numbers."""
        raise TypeError(f"{type(self).__name__} does not say what noise it needs")
