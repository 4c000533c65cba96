"""The objective that the trainer minimises: a weighted sum of loss terms, each a pure function of a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Schedule = Callable[[float], float]
"""A hyper-parameter as a function of the time in epochs (0.0 at the first step)."""

LABEL_SMOOTHING = "trainer.label_smoothing"
"""The hyper-parameter of label smoothing; a setting of the trainer, not of a method, so it has the full key."""


@dataclass(frozen=True)
class LossInputs:
    """Everything that a loss term can read in one training step on `batch` examples.

    `logits` and `teacher_logits` are (batch, classes), `labels` (batch,); `hyperparameters` are 0-dimensional.
    `activations` are the outputs of the student's feature layers, `noise` the random numbers of the objective's
    `NoiseSpec`s.
    """

    logits: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    parameters: Mapping[str, Tensor]
    hyperparameters: Mapping[str, Tensor]
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def required_teacher_logits(self) -> Tensor:
        """`teacher_logits`, for methods that need a teacher."""
        assert self.teacher_logits is not None, "the trainer was given no teacher logits"
        return self.teacher_logits

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Cross entropy of (batch, classes) logits with the labels, a mean over the batch in nats.

        With label smoothing s it is (1 - s) times that with the labels + s times that with the uniform distribution
        (Szegedy et al. 2016, sec. 7).
        """
        smoothing = self.hyperparameters.get(LABEL_SMOOTHING)
        if smoothing is None:
            return F.cross_entropy(logits, self.labels)
        log_p = F.log_softmax(logits, dim=1)
        return (1 - smoothing) * F.nll_loss(log_p, self.labels) - smoothing * log_p.mean()


@dataclass(frozen=True)
class NoiseSpec:
    """Random numbers that loss terms read: `new` allocates them for a batch size, `fill` draws them."""

    new: Callable[[int], Tensor]
    fill: Callable[[Tensor, torch.Generator], object]


@dataclass(frozen=True)
class Term:
    """A scalar loss term; `weight` is the name of the hyper-parameter that multiplies it, None means 1."""

    value: Callable[[LossInputs], Tensor]
    weight: str | None = None


@dataclass(frozen=True)
class Langevin:
    """How a parameter is sampled by stochastic gradient Langevin dynamics instead of trained (Welling and Teh 2011).

    `noise` names its `NoiseSpec` of standard normal numbers, `eta` the hyper-parameter that is the step size. The
    objective is a mean over examples, so its gradient times `examples` is that of the negative log posterior.
    """

    noise: str
    eta: str
    examples: int


Monitor = Callable[[Mapping[str, Tensor]], float]
"""A figure computed from the parameters once per epoch, for the history."""


@dataclass(frozen=True)
class Objective:
    """Loss terms, the hyper-parameters that they and the optimizer read, and parameters with their own learning rates.

    `lr_multipliers` maps a parameter's name to the hyper-parameter that multiplies its learning rate, `langevin` to how
    it is sampled; `feature_layers` names the layers whose outputs the terms read, `noise_specs` the random numbers.
    """

    terms: dict[str, Term]
    hyperparameters: dict[str, Schedule] = field(default_factory=dict)
    lr_multipliers: dict[str, str] = field(default_factory=dict)
    monitors: dict[str, Monitor] = field(default_factory=dict)
    feature_layers: tuple[str, ...] = ()
    noise_specs: dict[str, NoiseSpec] = field(default_factory=dict)
    langevin: dict[str, Langevin] = field(default_factory=dict)

    def loss(self, step: LossInputs) -> tuple[Tensor, Tensor]:
        """The weighted sum of all terms, a scalar, and the unweighted terms (terms,), detached."""
        values = {name: term.value(step) for name, term in self.terms.items()}
        weighted = [
            values[name] if term.weight is None else step.hyperparameters[term.weight] * values[name]
            for name, term in self.terms.items()
        ]
        return torch.stack(weighted).sum(), torch.stack(list(values.values())).detach()

    def with_label_smoothing(self, amount: float) -> "Objective":
        """The objective with label smoothing `amount`; 0 leaves it unchanged."""
        return (
            replace(self, hyperparameters={**self.hyperparameters, LABEL_SMOOTHING: lambda epoch: amount})
            if amount
            else self
        )
