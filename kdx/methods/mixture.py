"""Labels and hint as a mixture whose weights sum to 1 (IKD eq. 1)."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from kdx.methods.hint import Reduction, distillation_loss
from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term


class Mixture(Part):
    """(1 - `alpha`) cross entropy + `alpha` 2 T^2 KL(teacher||student), at temperature `T`.

    IKD's eq. 1 without its misprint log(1 - y), and with the KL's arguments in the order of its code (SPEC 2).
    """

    T: PositiveFloat
    alpha: Annotated[float, Field(ge=0, le=1)]
    reduction: Reduction

    @property
    def needs_teacher(self) -> bool:
        """Always: the hint is the teacher's."""
        return True

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and `hint`, in nats."""

        def hint(step: Step) -> Tensor:
            assert step.teacher_logits is not None, "the trainer was given no teacher logits"
            return distillation_loss(step.logits, step.teacher_logits, step.numbers["T"], "ts", self.reduction)

        return {
            "cross_entropy": Term(lambda step: F.cross_entropy(step.logits, step.labels), weight="one_minus_alpha"),
            "hint": Term(hint, weight="alpha"),
        }

    def numbers(self) -> dict[str, Schedule]:
        """The temperature and both weights, constant over the run."""
        return {
            "T": lambda epoch: self.T,
            "alpha": lambda epoch: self.alpha,
            "one_minus_alpha": lambda epoch: 1 - self.alpha,
        }
