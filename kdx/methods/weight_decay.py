"""Weight decay as a loss term."""

import torch
from torch import Tensor

from kdx.config.ranges import Weight
from kdx.methods.modifier import Context, Modifier, constant
from kdx.models.weights import weight_parameters
from kdx.training.objective import LossInputs, Schedule, Term


class L2(Modifier):
    """Half the sum of all squared weights, weighted by `l2` (Noisy Teachers, sec. 5.2); 0 leaves the term out."""

    l2: Weight

    @property
    def batchable(self) -> frozenset[str]:
        """`l2`, if it is not zero: at zero there is no term."""
        return frozenset({"l2"} if self.l2 else ())

    def terms(self, context: Context) -> dict[str, Term]:
        """`l2`, over weight matrices and filters only: biases, batch norm and variances do not decay."""
        if not self.l2:
            return {}
        names = list(weight_parameters(context.student))

        def half_square(step: LossInputs) -> Tensor:
            return torch.stack([step.parameters[name].square().sum() for name in names]).sum() / 2

        return {"l2": Term(half_square, weight="l2")}

    def hyperparameters(self) -> dict[str, Schedule]:
        """`l2`, constant over the run."""
        return {"l2": constant(self.l2)} if self.l2 else {}
