"""Binary dropout (Srivastava et al. 2014), the students marked *D* in VS."""

from collections import OrderedDict
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdx.errors import UserError
from kdx.layers import NoisyLayer, substitute
from kdx.methods.part import Part

Rate = Annotated[float, Field(ge=0, lt=1)]
LEVELS, PER_DRAW = 2**16, 4


class NoisyDropout(NoisyLayer):
    """Dropout whose mask is drawn outside of the training step: `noise` holds, for every input, whether it is kept.

    The rate is rounded to a multiple of 2^-16.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        kept = max(1, round((1 - rate) * LEVELS))
        # The greatest number that is kept: as an int16, which cannot hold the number of all levels.
        self.last, self.scale = kept - 1 - LEVELS // 2, LEVELS / kept

    def forward(self, inputs: Tensor) -> Tensor:
        """The kept inputs, scaled so that their mean stays the same; all inputs if there is no noise."""
        if self.noise is None:
            return inputs
        scale = self.scale if self.numbers is None else self.numbers[0]
        return torch.where(self.noise, inputs * scale, 0.0)

    def own_numbers(self) -> tuple[float, ...]:
        """The factor of the kept inputs; everything else about the rate is in the mask."""
        return (self.scale,)

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """An empty mask in the shape of the inputs."""
        return torch.empty(inputs.shape, dtype=torch.bool, device=inputs.device)

    def draw(self, noise: Tensor, generator: torch.Generator) -> None:
        """Draw 16 random bits for every input and compare them with the rate.

        They are drawn 64 at a time, which is fourteen times as fast as torch's Bernoulli numbers (1,200 x 128, one
        core), and compared outside of the step, since the compiler does not vectorise 16-bit integers.
        """
        *rest, last = noise.shape
        words = torch.empty((*rest, -(-last // PER_DRAW)), dtype=torch.int64, device=noise.device)
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        self.compare(bits[..., :last], noise)

    def compare(self, bits: Tensor, noise: Tensor) -> None:
        """Keep the inputs whose bits (int16) are at most `last`."""
        torch.le(bits, self.last, out=noise)


def noise_outside(student: nn.Module) -> None:
    """Replace, in place, the dropout layers of an architecture by those whose masks are drawn outside of the step."""
    substitute(student, lambda layer: NoisyDropout(layer.p) if isinstance(layer, nn.Dropout) else None)


def without_dropout(student: nn.Module) -> nn.Module:
    """The student with every dropout layer, the architecture's own included, replaced by the identity."""
    substitute(student, lambda layer: nn.Identity() if isinstance(layer, nn.Dropout | NoisyDropout) else None)
    return student


class Dropout(Part):
    """Dropout behind every hidden ReLU at rate `dropout`, on the inputs at `input_dropout` (Srivastava et al. 2014)."""

    dropout: Rate
    input_dropout: Rate

    @property
    def varying(self) -> frozenset[str]:
        """The two rates, if they are not zero: without dropout there is no layer."""
        return frozenset(name for name in ("dropout", "input_dropout") if getattr(self, name))

    def swap(self, student: nn.Module) -> nn.Module:
        """Put dropout behind every ReLU and before the first layer; raises ValueError if there is no place for it."""
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


class FullyConnectedDropout(Part):
    """Dropout at rate `fc_dropout` behind the ReLUs of fully connected layers only (Noisy Teachers, table 5)."""

    fc_dropout: Rate

    @property
    def varying(self) -> frozenset[str]:
        """The rate, if it is not zero: without dropout there is no layer."""
        return frozenset({"fc_dropout"} if self.fc_dropout else ())

    def swap(self, student: nn.Module) -> nn.Module:
        """Put a dropout layer behind every ReLU that follows a linear layer; raises UserError if there is none."""
        if not self.fc_dropout:
            return student
        layers = list(student.named_children())
        behind = [
            name
            for (_, before), (name, layer) in pairwise(layers)
            if isinstance(layer, nn.ReLU) and _is_fully_connected(before)
        ]
        if not behind:
            raise UserError(
                f"method.fc_dropout: {self.fc_dropout} is not allowed with this student, which has no ReLU behind a"
                " fully connected layer; allowed: 0"
            )
        for name in behind:
            setattr(student, name, nn.Sequential(student.get_submodule(name), NoisyDropout(self.fc_dropout)))
        return student

    def finalize(self, student: nn.Module) -> nn.Module:
        """The network without dropout."""
        return without_dropout(student)


def _is_fully_connected(layer: nn.Module) -> bool:
    # Also where another part has put a layer of its own in its place.
    weight = getattr(layer, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2
