"""Layers whose random numbers are drawn outside of the training step, dropout among them; evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdx.device.backend import full_float32
from kdx.models.surgery import replace_layers


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


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[torch.device]:
    """Put `model` into eval mode without gradients, yield its device, and restore every module's mode afterwards.

    Matrix products and convolutions are in full float32 meanwhile, whatever the precision of training: errors are
    compared between runs, and runs of every precision share a teacher's stored logits.
    """
    # Mode by mode, because a caller may hold some modules (a frozen batch norm) in eval mode on purpose.
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), None)
    model.eval()
    try:
        with torch.no_grad(), full_float32():
            yield parameter.device if parameter is not None else torch.device("cpu")
    finally:
        for module, training in modes:
            module.training = training


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
    replace_layers(student, lambda layer: NoisyDropout(layer.p) if isinstance(layer, nn.Dropout) else None)


def without_dropout(student: nn.Module) -> nn.Module:
    """The student with every dropout layer, the architecture's own included, replaced by the identity."""
    replace_layers(student, lambda layer: nn.Identity() if isinstance(layer, nn.Dropout | NoisyDropout) else None)
    return student
