"""Distillation by soft labels: cross entropy with the teacher's softened predictions (KDDP eq. 4)."""

import torch.nn.functional as F
from torch import Tensor

from kdx.methods.mixture import Mixed
from kdx.objective import Step


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, T: Tensor | float = 1.0) -> Tensor:
    """Cross entropy of the softened predictions with the teacher's at temperature T, a mean over the batch, in nats.

    Of (batch, classes) logits; KDDP eq. 2, whose minus sign is not printed. There is no factor T^2: the gradient falls
    as 1 / T^2, as the paper's results at large T show (alpha = 1 and T = 5000 give the accuracy of chance).
    """
    return F.cross_entropy(logits / T, F.softmax(teacher_logits / T, dim=1))


class SoftLabels(Mixed):
    """The distillation loss is the cross entropy with the teacher's predictions at temperature `T` (KDDP eq. 4)."""

    softened_term = "soft_cross_entropy"

    def softened(self, step: Step) -> Tensor:
        """The cross entropy with the soft labels."""
        return soft_cross_entropy(step.logits, step.taught, step.numbers["T"])
