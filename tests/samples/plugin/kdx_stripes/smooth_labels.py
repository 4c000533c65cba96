"""Label smoothing (Szegedy et al. 2016)."""

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from kdx.methods.modifier import Context, Hyperparameter, Modifier
from kdx.training.objective import LossInputs, Term


class SmoothLabels(Modifier):
    """Cross entropy with the uniform distribution, weighted by `smoothing`."""

    smoothing: Hyperparameter[NonNegativeFloat]

    def terms(self, context: Context) -> dict[str, Term]:
        """`uniform`, in nats."""

        def uniform(step: LossInputs) -> Tensor:
            return -F.log_softmax(step.logits, dim=1).mean()

        return {"uniform": Term(uniform, weight="smoothing")}
