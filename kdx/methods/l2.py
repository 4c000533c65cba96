"""Weight decay as a loss term."""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term


class L2(Part):
    """Half the sum of squares of all weight matrices and filters, weighted by `l2`; biases are free."""

    l2: NonNegativeFloat

    def terms(self, context: Context) -> dict[str, Term]:
        """`l2`, so that the gradient of a weight w is l2 times w (Krogh and Hertz 1992, eq. 1)."""
        # By name and dimension, because a substituted layer is no nn.Linear; the scales of batch norm are vectors.
        names = [name for name, weight in context.student.named_parameters() if _is_matrix(name, weight)]

        def l2(step: Step) -> Tensor:
            return 0.5 * torch.stack([step.parameters[name].square().sum() for name in names]).sum()

        return {"l2": Term(l2, weight="l2")}

    def numbers(self) -> dict[str, Schedule]:
        """The weight, constant over the run."""
        return {"l2": lambda epoch: self.l2}


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return name.endswith("weight") and parameter.dim() > 1
