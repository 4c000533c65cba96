"""Labels and the teacher's predictions as a mixture whose weights sum to 1 (IKD eq. 1, KDDP eq. 4)."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdx.methods.hint import Reduction, distillation_loss
from kdx.methods.part import Context, Part
from kdx.objective import Schedule, Step, Term
from kdx.ranges import Temperature


class Mixed(Part):
    """(1 - `alpha`) cross entropy with the labels + `alpha` times what is learnt of the teacher at temperature `T`."""

    softened_term: ClassVar[str]

    alpha: Annotated[float, Field(ge=0, le=1)]
    T: Temperature

    @property
    def needs_teacher(self) -> bool:
        """Always: one side of the mixture is the teacher's."""
        return True

    @property
    def learns_labels(self) -> bool:
        """Unless all weight is the teacher's."""
        return self.alpha < 1

    @property
    def varying(self) -> frozenset[str]:
        """The weights and the temperature."""
        return frozenset({"alpha", "T"})

    def idle(self) -> dict[str, str]:
        """How the predictions are softened, where they have no weight."""
        return {} if self.alpha else dict.fromkeys({*type(self).model_fields} - {"alpha"}, "method.alpha=0")

    def softened(self, step: Step) -> Tensor:
        """The term, in nats, that the teacher's softened predictions give."""
        raise TypeError(f"{type(self).__name__} does not say what it learns of the teacher")

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and the softened term, in nats."""
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
    """The teacher's side is the hint 2 T^2 KL(teacher||student).

    IKD's eq. 1 without its misprint log(1 - y), and with the KL's arguments in the order of its code (SPEC 2).
    """

    softened_term = "hint"

    reduction: Reduction

    def softened(self, step: Step) -> Tensor:
        """The hint."""
        return distillation_loss(step.logits, step.taught, step.numbers["T"], "ts", self.reduction)
