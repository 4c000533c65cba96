"""Noisy Teachers: regression on the teacher's logits with multiplicative noise (Noisy Teachers, algorithm 1)."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdx.config.ranges import Deviation
from kdx.methods.modifier import Context, Modifier
from kdx.rng import make_generator
from kdx.training.objective import LossInputs, NoiseSpec, Schedule, Term

XI, SELECTION, SIGMA = "regression.xi", "regression.selection", "regression.sigma"

Range = Annotated[list[Deviation], Field(min_length=2, max_length=2)]
Probability = Annotated[float, Field(ge=0, le=1)]


def regression_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1/(2B) sum |logits - target|^2 over a batch of B: both (batch, classes) (Noisy Teachers eq. 3)."""
    return (logits - target).square().sum(dim=1).mean() / 2


def perturbed(logits: Tensor, xi: Tensor, sigma: Tensor | float, selected: Tensor) -> Tensor:
    """(1 + sigma xi) * logits for samples that are `selected` (batch, 1); the others unchanged (Noisy Teachers eq. 4).

    `logits` are (batch, classes); `xi`, standard normal, is (batch, classes), or (1, classes) for the whole batch.
    """
    return logits * (1 + sigma * xi * selected)


class Regression(Modifier):
    """Regression on the teacher's logits, with noise on either side's logits for samples selected at rate `alpha`.

    The noise is N(0, sigma^2), independent for each class and `per` sample or, as algorithm 1 of Noisy Teachers prints
    it, mini-batch. With `sigma_range` instead of `sigma`, sigma is uniform in it and drawn per mini-batch (sec. 5.4).
    Without `resample` every image and mirror image, however it is shifted, has one perturbation for the whole training
    (sec. 5.2).
    """

    sigma: Deviation | None
    sigma_range: Range | None
    alpha: Probability
    resample: bool
    per: Literal["sample", "batch"]
    noise_in: Literal["teacher", "student"]

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        sigma, bounds = self.sigma, self.sigma_range
        if (sigma is None) == (bounds is None):
            raise ValueError(
                f"method.sigma={_typed(sigma)} is not allowed with method.sigma_range={_typed(bounds)};"
                " allowed: one of them null and the other not"
            )
        if bounds is not None and bounds[0] > bounds[1]:
            raise ValueError(f"method.sigma_range={bounds} is not allowed; allowed: the smaller number first")
        if not self.resample:
            refused = {"sigma_range": bounds is not None, "per": self.per == "batch"}
            refused["noise_in"] = self.noise_in == "student"
            for key, wrong in refused.items():
                if wrong:
                    raise ValueError(
                        f"method.{key}={_typed(getattr(self, key))} is not allowed with method.resample=false, which"
                        " perturbs the teacher's stored logits, sample by sample; allowed: method.resample=true"
                    )
        return self

    @property
    def needs_teacher(self) -> bool:
        """True: its logits are the target."""
        return True

    @property
    def batchable(self) -> frozenset[str]:
        """The settings of the noise that are not null."""
        return frozenset(name for name in ("sigma", "sigma_range", "alpha") if getattr(self, name) is not None)

    def unused_settings(self) -> dict[str, str]:
        """The settings of the noise, if `sigma` or `alpha` is 0."""
        if self.sigma != 0 and self.alpha != 0:
            return {}
        without, others = ("sigma", ("alpha",)) if self.sigma == 0 else ("alpha", ("sigma", "sigma_range"))
        return dict.fromkeys((*others, "noise_in", "per", "resample"), f"method.{without}=0")

    def transform_teacher_logits(self, teacher_logits: Tensor, seed: int, shifts: int = 1) -> Tensor:
        """The logits of every view: with `resample` unchanged, otherwise perturbed once for the whole training.

        Shifted views of an image have that image's perturbation.
        """
        if self.resample:
            return teacher_logits
        assert self.sigma is not None, "the settings admit fixed noise with one sigma only"
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        generator = make_generator(seed, "targets")
        images, classes = len(teacher_logits) // shifts, teacher_logits.shape[1]
        xi = torch.randn((images, 1, classes), generator=generator)
        selected = torch.rand((images, 1, 1), generator=generator) < self.alpha
        device, views = teacher_logits.device, teacher_logits.view(images, shifts, classes)
        return perturbed(views, xi.to(device), self.sigma, selected.to(device)).view(-1, classes)

    def terms(self, context: Context) -> dict[str, Term]:
        """`regression` (Noisy Teachers eq. 3), with weight 1."""

        def regression(step: LossInputs) -> Tensor:
            if not self.resample:
                return regression_loss(step.logits, step.required_teacher_logits)
            if self.noise_in == "student":
                return regression_loss(self._noisy(step.logits, step), step.required_teacher_logits)
            return regression_loss(step.logits, self._noisy(step.required_teacher_logits, step))

        return {"regression": Term(regression)}

    def hyperparameters(self) -> dict[str, Schedule]:
        """The noise's settings, constant over the run."""
        if not self.resample:
            return {}
        numbers = {"alpha": self.alpha}
        if self.sigma is not None:
            numbers["sigma"] = self.sigma
        if self.sigma_range is not None:
            numbers["sigma_low"], numbers["sigma_high"] = self.sigma_range
        return {name: lambda epoch, value=value: value for name, value in numbers.items()}

    def noise_specs(self, context: Context) -> dict[str, NoiseSpec]:
        """Standard normal xi, and uniform numbers in [0, 1) that select samples and place sigma in its range."""
        if not self.resample:
            return {}

        def new_xi(batch: int) -> Tensor:
            return torch.empty(batch if self.per == "sample" else 1, context.classes)

        draws = {
            XI: NoiseSpec(new_xi, lambda xi, generator: xi.normal_(generator=generator)),
            SELECTION: NoiseSpec(lambda batch: torch.empty(batch, 1), _uniform),
        }
        if self.sigma_range is not None:
            draws[SIGMA] = NoiseSpec(lambda batch: torch.empty(()), _uniform)
        return draws

    def _noisy(self, logits: Tensor, step: LossInputs) -> Tensor:
        numbers, noise = step.hyperparameters, step.noise
        if self.sigma_range is None:
            sigma = numbers["sigma"]
        else:
            sigma = torch.lerp(numbers["sigma_low"], numbers["sigma_high"], noise[SIGMA])
        return perturbed(logits, noise[XI], sigma, noise[SELECTION] < numbers["alpha"])


def _uniform(numbers: Tensor, generator: torch.Generator) -> Tensor:
    return numbers.uniform_(generator=generator)


def _typed(value: object) -> object:
    return "null" if value is None else value
