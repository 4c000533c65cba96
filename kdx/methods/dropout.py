"""Binary dropout, the papers' *D*."""

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdx.layers import NoisyLayer, substitute
from kdx.methods.part import Part

Rate = Annotated[float, Field(ge=0, lt=1)]


class NoisyDropout(NoisyLayer):
    """Dropout whose mask is drawn outside: `noise` is 1 where an input is kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        """The kept inputs, scaled by 1 / (1 - rate); all of them while there is no noise."""
        return inputs if self.noise is None else inputs * (self.noise / (1 - self.rate))

    def noise_shape(self, inputs: Tensor, outputs: Tensor) -> tuple[int, ...]:
        """One number for every input."""
        return tuple(inputs.shape)

    def draw(self, noise: Tensor, generator: torch.Generator) -> None:
        """1 with probability 1 - rate, else 0."""
        noise.bernoulli_(1 - self.rate, generator=generator)


def noise_outside(student: nn.Module) -> None:
    """Replace the dropout that is part of an architecture by one whose mask is drawn outside of the step."""
    substitute(student, lambda layer: NoisyDropout(layer.p) if isinstance(layer, nn.Dropout) else None)


def without_dropout(student: nn.Module) -> nn.Module:
    """Dropout does nothing at test time: the identity in its place, the architecture's own included."""
    substitute(student, lambda layer: nn.Identity() if isinstance(layer, nn.Dropout | NoisyDropout) else None)
    return student


class Dropout(Part):
    """Dropout after every hidden ReLU, at `dropout`, and on the inputs, at `input_dropout` (Srivastava et al. 2014)."""

    dropout: Rate
    input_dropout: Rate

    def swap(self, student: nn.Module) -> nn.Module:
        """Put a dropout layer behind every ReLU and before the first layer; raises ValueError where it can't."""
        if self.dropout and not substitute(student, self._behind_relu):
            raise ValueError("the student has no nn.ReLU to put dropout behind")
        if not self.input_dropout:
            return student
        if not isinstance(student, nn.Sequential):
            raise ValueError("input_dropout needs a network that is a plain sequence of layers")
        return nn.Sequential(
            OrderedDict(input_dropout=NoisyDropout(self.input_dropout), **dict(student.named_children()))
        )

    def _behind_relu(self, layer: nn.Module) -> nn.Module | None:
        return nn.Sequential(layer, NoisyDropout(self.dropout)) if isinstance(layer, nn.ReLU) else None

    def finalize(self, student: nn.Module) -> nn.Module:
        """The network without dropout."""
        return without_dropout(student)
