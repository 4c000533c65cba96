"""Stochastic gradient Langevin dynamics: the parameters are sampled from their posterior (Welling and Teh 2011)."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kdx.config.ranges import Exponent, StepSize, Weight
from kdx.config.schema import Config
from kdx.device.backend import Backend
from kdx.errors import UserError
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.method import Method
from kdx.methods.modifier import Context, Hyperparameter, Modifier
from kdx.methods.procedure import FitResult, Procedure
from kdx.models.ensemble import Ensemble
from kdx.storage.tensors import load_weights, save_weights, template_of
from kdx.training.objective import Langevin, LossInputs, NoiseSpec, Schedule, Term


def normal_prior(parameters: Iterable[Tensor], examples: int) -> Tensor:
    """The prior's loss term |theta|^2 / 2N: -log N(0, 1) of all parameters up to a constant, over N training examples.

    Beside a data term that is a mean over examples, its weight is the prior's precision.
    """
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum() / (2 * examples)


class LangevinDynamics(Modifier):
    """Every parameter is sampled with step size `eta` under the prior N(0, 1/`prior`); none is trained by an optimizer.

    In epoch t the step size is eta * (1 + t / decay_epochs)^-decay: constant at decay 0, and at decay 0.55 the a (b +
    t)^-0.55 of Welling and Teh 2011.
    """

    eta: StepSize
    prior: Hyperparameter[Weight]
    decay: Exponent
    decay_epochs: Annotated[float, Field(ge=0.001)]

    def sampled(self, context: Context) -> list[str]:
        """The names of the parameters that are sampled: all."""
        return [name for name, _ in context.student.named_parameters()]

    def terms(self, context: Context) -> dict[str, Term]:
        """`prior`, weighted by the prior's precision."""
        names = self.sampled(context)

        def prior(step: LossInputs) -> Tensor:
            return normal_prior((step.parameters[name] for name in names), context.examples)

        return {"prior": Term(prior, weight="prior")}

    def hyperparameters(self) -> dict[str, Schedule]:
        """The step size over time and the constant precision."""
        step_sizes = {"eta": lambda epoch: self.eta * (1 + epoch / self.decay_epochs) ** -self.decay}
        return step_sizes | super().hyperparameters()

    def noise_specs(self, context: Context) -> dict[str, NoiseSpec]:
        """Standard normal numbers for every parameter that is sampled."""
        return {_draw(name): _normal_like(context.student.get_parameter(name)) for name in self.sampled(context)}

    def langevin(self, context: Context) -> dict[str, Langevin]:
        """How each sampled parameter moves; `examples` makes the mean loss a negative log posterior."""
        return {name: Langevin(_draw(name), "eta", context.examples) for name in self.sampled(context)}


def _draw(parameter: str) -> str:
    return f"langevin/{parameter}"


def _normal_like(parameter: Tensor) -> NoiseSpec:
    like = parameter.detach()
    return NoiseSpec(lambda _: torch.empty_like(like), lambda noise, generator: noise.normal_(generator=generator))


class PosteriorSampling(Procedure):
    """One fit, of which `samples` networks are kept, evenly spaced after `burn_in` epochs."""

    burn_in: NonNegativeInt | None
    samples: PositiveInt

    def unused_settings(self) -> dict[str, str]:
        """The settings of the optimizer, since every parameter moves by `method.eta`."""
        keys = ("lr", "schedule", "hold", "peak", "optimizer", "momentum", "weight_decay")
        reason = "Langevin dynamics, whose step size is method.eta"
        return {f"trainer.{key}": reason for key in keys}

    def check(self, config: Config) -> None:
        """Raise UserError for averaging and early stopping, which leave one network, and for too long a burn-in."""
        for key, other in (("patience", "no best epoch"), ("average", "not their average")):
            value = getattr(config.trainer, key)
            if value is not None:
                raise UserError(
                    f"trainer.{key}: {value} is not allowed with method={config.method['name']}, which keeps samples"
                    f" and {other}; allowed: null"
                )
        self.epochs_kept(config.trainer.epochs)

    def epochs_kept(self, epochs: int) -> list[int]:
        """The epochs, counted from 1, after which a sample is kept; the last epoch is always one of them.

        Raises UserError if fewer epochs than samples are left after the burn-in.
        """
        burn_in = epochs // 2 if self.burn_in is None else self.burn_in
        left = epochs - burn_in
        if left < self.samples:
            raise UserError(
                f"method.samples: {self.samples} is not allowed with trainer.epochs={epochs} and"
                f" {burn_in} of them burn-in (method.burn_in), since an epoch gives one sample; allowed: 1 to {left}"
                if left > 0
                else f"method.burn_in: {burn_in} is not allowed with trainer.epochs={epochs}; allowed: less than that"
            )
        return [burn_in + left * number // self.samples for number in range(1, self.samples + 1)]

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Sample; the outcome is the ensemble of the samples.

        Each sample is written to the run's folder as soon as it is drawn, so that resuming does not lose it.
        """
        # Named like checkpoints, so that they are removed with them when the run is finished.
        files = {epoch: spec.at(f"sample{epoch}").checkpoint for epoch in self.epochs_kept(spec.trainer.epochs)}

        def keep(student: nn.Module, epoch: int) -> None:
            if epoch in files:
                save_weights(files[epoch], method.finalize(deepcopy(student)))

        last, progress = fit(network, method, inputs, spec, backend, after_epoch=keep)
        return FitResult(Ensemble([load_weights(path, template_of(last)) for path in files.values()]), progress)
