"""Distillation by soft labels: cross entropy with the teacher's softened predictions (KDDP eq. 4; SPEC 3)."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, T: Tensor) -> Tensor:
    """Cross entropy of the predictions at temperature T with the teacher's at T, a mean over the batch, in nats.

    Of (batch, classes) logits; KDDP eq. 2, whose minus sign is not printed. No factor T^2: its gradient falls as
    1 / T^2, which is why the published accuracy at alpha = 1 and T = 5000 is that of chance (SPEC 3).
    """
    return F.cross_entropy(logits / T, F.softmax(teacher_logits / T, dim=1))


class SoftLabels(Part):
    """(1 - alpha) of the cross entropy with the labels, alpha of that with the teacher at temperature `T` (eq. 4)."""

    alpha: Annotated[float, Field(ge=0, le=1)]
    T: PositiveFloat

    @property
    def needs_teacher(self) -> bool:
        """Always: the soft labels are the teacher's."""
        return True

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and `soft_cross_entropy`, both in nats."""

        def soft(step: Step) -> Tensor:
            assert step.teacher_logits is not None, "the trainer was given no teacher logits"
            return soft_cross_entropy(step.logits, step.teacher_logits, step.numbers["T"])

        return {
            "cross_entropy": Term(lambda step: F.cross_entropy(step.logits, step.labels), weight="one_minus_alpha"),
            "soft_cross_entropy": Term(soft, weight="alpha"),
        }

    def numbers(self) -> dict[str, Schedule]:
        """The temperature and the two weights, constant over the run."""
        return {
            "T": lambda epoch: self.T,
            "alpha": lambda epoch: self.alpha,
            "one_minus_alpha": lambda epoch: 1 - self.alpha,
        }
