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
    """-log N(0, 1) of all parameters up to a constant, |theta|^2 / 2, divided by the number of training examples.

    Beside a data term that is a mean over examples, its weight is the prior's precision.
    """
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum() / (2 * examples)


class LangevinDynamics(Part):
    """Every parameter is sampled with step size `eta` under the prior N(0, 1/prior); Adam updates none.

    In epoch t the step size is eta * (1 + t / decay_epochs)^-decay: that of Welling and Teh, a (b + t)^-0.55, at decay
    0.55, and constant at 0.
    """

    eta: StepSize
    prior: Weight
    decay: Exponent
    decay_epochs: Annotated[float, Field(ge=0.001)]

    def sampled(self, context: Context) -> list[str]:
        """The names of the parameters that are sampled: all."""
        return [name for name, _ in context.student.named_parameters()]

    def terms(self, context: Context) -> dict[str, Term]:
        """`prior`, with the prior's precision as its weight (SPEC 6)."""
        names = self.sampled(context)

        def prior(step: Step) -> Tensor:
            return normal_prior((step.parameters[name] for name in names), context.examples)

        return {"prior": Term(prior, weight="prior")}

    def numbers(self) -> dict[str, Schedule]:
        """The step size and the constant precision."""
        return {
            "eta": lambda epoch: self.eta * (1 + epoch / self.decay_epochs) ** -self.decay,
            "prior": lambda epoch: self.prior,
        }

    def draws(self, context: Context) -> dict[str, Draw]:
        """Standard normal numbers for every parameter that is sampled."""
        return {_draw(name): _normal_like(context.student.get_parameter(name)) for name in self.sampled(context)}

    def langevin(self, context: Context) -> dict[str, Langevin]:
        """Those parameters, with the number of examples that makes the mean loss a log posterior."""
        return {name: Langevin(_draw(name), "eta", context.examples) for name in self.sampled(context)}


def _draw(parameter: str) -> str:
    return f"langevin/{parameter}"


def _normal_like(parameter: Tensor) -> Draw:
    like = parameter.detach()
    return Draw(lambda _: torch.empty_like(like), lambda noise, generator: noise.normal_(generator=generator))
