"""Cross entropy with the labels and a distillation loss, mixed with weights that sum to 1 (IKD eq. 1, KDDP eq. 4)."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdx.methods.hint import Reduction, distillation_loss
from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term
from kdx.ranges import Temperature


class Mixed(Part):
    """(1 - `alpha`) times the cross entropy with the labels + `alpha` times a distillation loss at temperature `T`."""

    softened_term: ClassVar[str]

    alpha: Annotated[float, Field(ge=0, le=1)]
    T: Temperature

    @property
    def needs_teacher(self) -> bool:
        """True: the distillation loss needs the teacher's logits."""
        return True

    @property
    def learns_labels(self) -> bool:
        """Whether `alpha` leaves the labels any weight."""
        return self.alpha < 1

    @property
    def varying(self) -> frozenset[str]:
        """`alpha` and `T`."""
        return frozenset({"alpha", "T"})

    def idle(self) -> dict[str, str]:
        """`T`, if the distillation loss has no weight."""
        return {} if self.alpha else dict.fromkeys({*type(self).model_fields} - {"alpha"}, "method.alpha=0")

    def softened(self, step: Step) -> Tensor:
        """The distillation loss, a scalar in nats."""
        raise TypeError(f"{type(self).__name__} does not say what it learns of the teacher")

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and the distillation loss, in nats."""
        return {
            "cross_entropy": Term(lambda step: step.cross_entropy(step.logits), weight="one_minus_alpha"),
            self.softened_term: Term(self.softened, weight="alpha"),
        }

    def numbers(self) -> dict[str, Schedule]:
        """The temperature and both weights, constant over the run."""
        return {
            "T": lambda epoch: self.T,
            "alpha": lambda epoch: self.alpha,
            "one_minus_alpha": lambda epoch: 1 - self.alpha,
        }


class Mixture(Mixed):
    """The distillation loss is 2 T^2 KL(teacher||student) (IKD eq. 1).

    The equation prints log(1 - y) for the labels' term, which would push the label's probability to 0; it is taken as
    log(y). Its KL(P, Q) is read as `F.kl_div` reads it: KL(teacher||student).
    """

    softened_term = "hint"

    reduction: Reduction

    def softened(self, step: Step) -> Tensor:
        """The distillation loss of `kdx.methods.hint`."""
        return distillation_loss(step.logits, step.taught, step.numbers["T"], "ts", self.reduction)
