"""Substitution of layers, and layers whose randomness is drawn outside of them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Substitute = Callable[[nn.Module], nn.Module | None]


def substitute(model: nn.Module, replacement: Substitute) -> int:
    """Replace, in place and at any depth, every submodule for which `replacement` gives a module; return how many."""
    count = 0
    for name, child in list(model.named_children()):
        new = replacement(child)
        if new is None:
            count += substitute(child, replacement)
        else:
            setattr(model, name, new)
            count += 1
    return count


def geometry_of(convolution: nn.Conv2d) -> dict[str, Any]:
    """The arguments by which `nn.Conv2d` makes another convolution of the same shape that pads with zeros."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(convolution, name) for name in names}


class NoisyLayer(nn.Module):
    """A layer that takes its random numbers from the buffer `noise`, and is deterministic while that is None.

    The trainer draws the numbers outside of the step and hands them in by `functional_call`, so the step stays a pure
    function: it compiles without a random generator inside, and its noise can be stored and repeated.
    """

    noise: Tensor | None
    numbers: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", None, persistent=False)
        # Where one layer stands for those of several models, its own numbers are handed in as the noise is.
        self.register_buffer("numbers", None, persistent=False)

    def own_numbers(self) -> tuple[float, ...]:
        """The numbers that it computes with and that may differ between models which are trained together."""
        return ()

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """An uninitialised tensor of the shape and type of `noise` for this input and output."""
        raise TypeError(f"{type(self).__name__} does not say what noise it needs")

    def draw(self, noise: Tensor, generator) -> None:
        """Fill `noise` with fresh random numbers."""
        raise TypeError(f"{type(self).__name__} does not say what noise it needs")
