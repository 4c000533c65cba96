"""Knowledge distillation: the teacher's softened predictions as a hint (VS eq. 5)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term
from kdx.ranges import Temperature, Weight

Direction = Literal["ts", "st"]
Reduction = Literal["batch", "elementwise"]


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, T: Tensor, direction: Direction, reduction: Reduction
) -> Tensor:
    """2 T^2 KL between the predictions at temperature T, of (batch, classes) logits, in nats (VS eq. 5).

    Direction `ts` is KL(teacher||student), the field's; `st` is KL(student||teacher), as VS prints it. Reduction
    `batch` is a mean over examples, `elementwise` over examples and classes, as in the code behind VS (SPEC 1.3).
    """
    student_log = F.log_softmax(logits / T, dim=1)
    teacher_log = F.log_softmax(teacher_logits / T, dim=1)
    if direction == "ts":
        divergence = teacher_log.exp() * (teacher_log - student_log)
    else:
        divergence = student_log.exp() * (student_log - teacher_log)
    mean = divergence.sum(dim=1).mean() if reduction == "batch" else divergence.mean()
    return 2 * T * T * mean


class Hint(Part):
    """The distillation term at temperature `T`, weighted by `lambda_T`."""

    T: Temperature
    lambda_T: Weight
    kl_dir: Direction
    reduction: Reduction

    @property
    def needs_teacher(self) -> bool:
        """Always: the hint is the teacher's."""
        return True

    @property
    def varying(self) -> frozenset[str]:
        """Temperature and weight."""
        return frozenset({"T", "lambda_T"})

    def idle(self) -> dict[str, str]:
        """All but the weight, where that is zero."""
        return {} if self.lambda_T else dict.fromkeys(("T", "kl_dir", "reduction"), "method.lambda_T=0")

    def terms(self, context: Context) -> dict[str, Term]:
        """`hint`, from the stored teacher logits."""

        def hint(step: Step) -> Tensor:
            return distillation_loss(step.logits, step.taught, step.numbers["T"], self.kl_dir, self.reduction)

        return {"hint": Term(hint, weight="lambda_T")}

    def numbers(self) -> dict[str, Schedule]:
        """The temperature and the weight, constant over the run."""
        return {"T": lambda epoch: self.T, "lambda_T": lambda epoch: self.lambda_T}
