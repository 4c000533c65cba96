"""What a student learns from: labels, and a teacher's predictions at a temperature (VS eq. 5, IKD eq. 1)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdx.config.ranges import Temperature, Weight
from kdx.methods.modifier import Context, Hyperparameter, Modifier, constant
from kdx.training.objective import LossInputs, Schedule, Term

Direction = Literal["ts", "st"]
Reduction = Literal["batch", "elementwise"]


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, T: Tensor, direction: Direction, reduction: Reduction
) -> Tensor:
    """The distillation loss 2 T^2 KL at temperature T, in nats, of (batch, classes) logits (VS eq. 5).

    `direction` `ts` is KL(teacher||student), as usual; `st` is KL(student||teacher), as VS prints it. `reduction`
    `batch` is a mean over examples, `elementwise` a mean over examples and classes, as `F.kl_div` does by default.
    """
    student_log = F.log_softmax(logits / T, dim=1)
    teacher_log = F.log_softmax(teacher_logits / T, dim=1)
    divergence = _divergence(student_log, teacher_log, direction)
    mean = divergence.sum(dim=1).mean() if reduction == "batch" else divergence.mean()
    return 2 * T * T * mean


def decoupled_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    T: Tensor,
    beta: Tensor,
    direction: Direction,
    reduction: Reduction,
) -> Tensor:
    """2 T^2 (TCKD + beta NCKD), in nats (Zhao et al. 2022, sec. 3.3, where alpha is 1); labels are (batch,).

    TCKD is the KL of the label's probability against that of all other classes together, NCKD that of the predictions
    among these others. With an example's beta at the teacher's probability of the others this is `distillation_loss`
    (sec. 3.1), whose arguments all but labels and beta are.
    """
    (target, others), (teacher_target, teacher_others) = (
        _decoupled(each / T, labels) for each in (logits, teacher_logits)
    )
    tckd = _divergence(target, teacher_target, direction).sum(dim=1)
    nckd = _divergence(others, teacher_others, direction).sum(dim=1)
    mean = (tckd + beta * nckd).mean()
    return 2 * T * T * (mean if reduction == "batch" else mean / logits.shape[1])


def _decoupled(scaled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of the label and of the others together (batch, 2), and among these (batch, classes - 1)."""
    places = torch.arange(scaled.shape[1] - 1, device=scaled.device)
    # All classes but the label, by a gather, since a compiled step needs shapes that do not depend on values.
    others = scaled.gather(1, places + (places >= labels.unsqueeze(1)))
    both = torch.cat([scaled.gather(1, labels.unsqueeze(1)), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(both, dim=1), F.log_softmax(others, dim=1)


def _divergence(student_log: Tensor, teacher_log: Tensor, direction: Direction) -> Tensor:
    """The KL's summands, of log probabilities (batch, classes)."""
    if direction == "ts":
        return teacher_log.exp() * (teacher_log - student_log)
    return student_log.exp() * (student_log - teacher_log)


def standardized(logits: Tensor) -> Tensor:
    """The z-scores of each example's logits (batch, classes): mean 0, deviation 1 (Sun et al. 2024, algorithm 1).

    The deviation divides by the number of classes, as in the algorithm; the authors' public code divides by one less.
    """
    deviation = logits.std(dim=1, correction=0, keepdim=True)
    # Equal logits have no deviation.
    return (logits - logits.mean(dim=1, keepdim=True)) / (deviation + SMALLEST_DEVIATION)


SMALLEST_DEVIATION = 1e-7


class Distillation(Modifier):
    """The distillation loss at temperature `T`, weighted by `lambda_T` (VS eq. 5).

    With `standardize` it compares z-scores of the logits, with `T` as base temperature (Sun et al. 2024); with
    `decoupled` it is split into target-class and non-target-class KL, the latter weighted by `beta` (Zhao et al. 2022).
    """

    weight = "lambda_T"

    T: Hyperparameter[Temperature]
    lambda_T: Hyperparameter[Weight]
    kl_dir: Direction
    reduction: Reduction
    standardize: bool = False
    decoupled: bool = False
    beta: Hyperparameter[Weight] = 8

    @property
    def needs_teacher(self) -> bool:
        """True: the loss compares with the teacher's logits."""
        return True

    def unused_settings(self) -> dict[str, str]:
        """All other settings if `lambda_T` is 0, and `beta` unless the loss is `decoupled`."""
        return ({} if self.decoupled else {"beta": "method.decoupled=false"}) | super().unused_settings()

    def terms(self, context: Context) -> dict[str, Term]:
        """`hint`, the distillation loss with the stored teacher logits."""

        def hint(step: LossInputs) -> Tensor:
            logits, taught, T = step.logits, step.required_teacher_logits, step.hyperparameters["T"]
            if self.standardize:
                logits, taught = standardized(logits), standardized(taught)
            if self.decoupled:
                beta = step.hyperparameters["beta"]
                return decoupled_loss(logits, taught, step.labels, T, beta, self.kl_dir, self.reduction)
            return distillation_loss(logits, taught, T, self.kl_dir, self.reduction)

        return {"hint": Term(hint, weight="lambda_T")}


class Mixed(Modifier):
    """(1 - `alpha`) times the cross entropy with the labels + `alpha` times a distillation loss at temperature `T`."""

    softened_term: ClassVar[str]

    weight = "alpha"

    alpha: Hyperparameter[Annotated[float, Field(ge=0, le=1)]]
    T: Hyperparameter[Temperature]

    @property
    def needs_teacher(self) -> bool:
        """True: the distillation loss needs the teacher's logits."""
        return True

    @property
    def learns_labels(self) -> bool:
        """Whether `alpha` leaves the labels any weight."""
        return self.alpha < 1

    def softened(self, step: LossInputs) -> Tensor:
        """The distillation loss, a scalar in nats."""
        raise TypeError(f"{type(self).__name__} does not say what it learns of the teacher")

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and the distillation loss, in nats."""
        return {
            "cross_entropy": Term(lambda step: step.cross_entropy(step.logits), weight="one_minus_alpha"),
            self.softened_term: Term(self.softened, weight="alpha"),
        }

    def hyperparameters(self) -> dict[str, Schedule]:
        """The temperature and both weights, constant over the run."""
        return super().hyperparameters() | {"one_minus_alpha": constant(1 - self.alpha)}


class Mixture(Mixed):
    """The distillation loss is 2 T^2 KL(teacher||student) (IKD eq. 1).

    The equation prints log(1 - y) for the labels' term, which would push the label's probability to 0; it is taken as
    log(y). Its KL(P, Q) is read as `F.kl_div` reads it: KL(teacher||student).
    """

    softened_term = "hint"

    reduction: Reduction

    def softened(self, step: LossInputs) -> Tensor:
        """The distillation loss of `kdx.methods.distillation`."""
        return distillation_loss(
            step.logits, step.required_teacher_logits, step.hyperparameters["T"], "ts", self.reduction
        )


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, T: Tensor | float = 1.0) -> Tensor:
    """Cross entropy of the softened predictions with the teacher's at temperature T, a mean over the batch, in nats.

    Of (batch, classes) logits; KDDP eq. 2, whose minus sign is not printed. There is no factor T^2: the gradient falls
    as 1 / T^2, as the paper's results at large T show (alpha = 1 and T = 5000 give the accuracy of chance).
    """
    return F.cross_entropy(logits / T, F.softmax(teacher_logits / T, dim=1))


class SoftLabels(Mixed):
    """The distillation loss is the cross entropy with the teacher's predictions at temperature `T` (KDDP eq. 4)."""

    softened_term = "soft_cross_entropy"

    def softened(self, step: LossInputs) -> Tensor:
        """The cross entropy with the soft labels."""
        return soft_cross_entropy(step.logits, step.required_teacher_logits, step.hyperparameters["T"])


class CrossEntropy(Modifier):
    """Cross entropy with the labels, a mean over the batch (VS eq. 4)."""

    @property
    def learns_labels(self) -> bool:
        """True."""
        return True

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy`, in nats."""
        return {"cross_entropy": Term(lambda step: step.cross_entropy(step.logits))}
