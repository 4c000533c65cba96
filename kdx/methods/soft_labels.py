"""Distillation by soft labels: cross entropy with the teacher's softened predictions (KDDP eq. 4; SPEC 3)."""

import torch.nn.functional as F
from torch import Tensor

from kdx.methods.mixture import Mixed
from kdx.objective import Step


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, T: Tensor | float = 1.0) -> Tensor:
    """Cross entropy of the predictions at temperature T with the teacher's at T, a mean over the batch, in nats.

    Of (batch, classes) logits; KDDP eq. 2, whose minus sign is not printed. No factor T^2: its gradient falls as
    1 / T^2, which is why the published accuracy at alpha = 1 and T = 5000 is that of chance (SPEC 3).
    """
    return F.cross_entropy(logits / T, F.softmax(teacher_logits / T, dim=1))


class SoftLabels(Mixed):
    """The teacher's side is the cross entropy with its predictions at temperature `T` (KDDP eq. 4)."""

    softened_term = "soft_cross_entropy"

    def softened(self, step: Step) -> Tensor:
        """The soft cross entropy."""
        return soft_cross_entropy(step.logits, step.taught, step.numbers["T"])
