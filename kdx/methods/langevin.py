"""Stochastic gradient Langevin dynamics: the parameters are sampled from their posterior (Welling and Teh 2011)."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdx.methods.part import Context, Part
from kdx.objective import Draw, Langevin, Schedule, Step, Term
from kdx.ranges import Exponent, StepSize, Weight


def normal_prior(parameters: Iterable[Tensor], examples: int) -> Tensor:
    """The prior's loss term |theta|^2 / 2N: -log N(0, 1) of all parameters up to a constant, over N training examples.

    Beside a data term that is a mean over examples, its weight is the prior's precision.
    """
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum() / (2 * examples)


class LangevinDynamics(Part):
    """Every parameter is sampled with step size `eta` under the prior N(0, 1/`prior`); none is trained by an optimizer.

    In epoch t the step size is eta * (1 + t / decay_epochs)^-decay: constant at decay 0, and at decay 0.55 the a (b +
    t)^-0.55 of Welling and Teh 2011.
    """

    eta: StepSize
    prior: Weight
    decay: Exponent
    decay_epochs: Annotated[float, Field(ge=0.001)]

    def sampled(self, context: Context) -> list[str]:
        """The names of the parameters that are sampled: all."""
        return [name for name, _ in context.student.named_parameters()]

    def terms(self, context: Context) -> dict[str, Term]:
        """`prior`, weighted by the prior's precision."""
        names = self.sampled(context)

        def prior(step: Step) -> Tensor:
            return normal_prior((step.parameters[name] for name in names), context.examples)

        return {"prior": Term(prior, weight="prior")}

    def numbers(self) -> dict[str, Schedule]:
        """The step size over time and the constant precision."""
        return {
            "eta": lambda epoch: self.eta * (1 + epoch / self.decay_epochs) ** -self.decay,
            "prior": lambda epoch: self.prior,
        }

    def draws(self, context: Context) -> dict[str, Draw]:
        """Standard normal numbers for every parameter that is sampled."""
        return {_draw(name): _normal_like(context.student.get_parameter(name)) for name in self.sampled(context)}

    def langevin(self, context: Context) -> dict[str, Langevin]:
        """How each sampled parameter moves; `examples` makes the mean loss a negative log posterior."""
        return {name: Langevin(_draw(name), "eta", context.examples) for name in self.sampled(context)}


def _draw(parameter: str) -> str:
    return f"langevin/{parameter}"


def _normal_like(parameter: Tensor) -> Draw:
    like = parameter.detach()
    return Draw(lambda _: torch.empty_like(like), lambda noise, generator: noise.normal_(generator=generator))
