"""Magnitude pruning: iteratively by a quality factor (Han et al. 2015), gradually by layer (Zhu and Gupta 2017)."""

import logging
from abc import abstractmethod
from copy import deepcopy
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import nn

from kdx.config.base import Count
from kdx.config.ranges import Factor, Points
from kdx.config.schema import Config
from kdx.device.backend import Backend
from kdx.errors import UserError
from kdx.measure.accuracy import error_percent, within_tolerance
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.masking import (
    Masks,
    Weights,
    cubic_sparsity,
    masks_by_fraction,
    masks_by_layer,
    masks_by_quality,
    prune,
)
from kdx.methods.method import Method
from kdx.methods.procedure import Figure, FitResult, Procedure, join_histories
from kdx.models.weights import weight_matrices
from kdx.storage.files import write_csv
from kdx.training.checkpoint import Progress

log = logging.getLogger(__name__)


Sparsity = Annotated[float, Field(gt=0, lt=1)]


class _Fits:
    """The fits of one run, each of which starts from the weights of an earlier network."""

    def __init__(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> None:
        self.structure, self.method, self.inputs, self.spec, self.backend = network, method, inputs, spec, backend
        self.progress: list[Progress] = []

    def dense(self) -> nn.Module:
        """The trained network that pruning starts from: `network` itself if its weights come from a checkpoint."""
        if self.spec.pretrained:
            return self.method.finalize(deepcopy(self.structure)).to(self.backend.device)
        return self._fit(deepcopy(self.structure), "dense")

    def pruned(self, trained: nn.Module, masks: Masks, stage: str, lr: float, **trainer: Any) -> nn.Module:
        """Fit the surviving weights of a copy of `trained`, at `lr` times the learning rate."""
        # A copy of the untrained network, because the trained one has lost the architecture's own dropout.
        network = deepcopy(self.structure)
        network.load_state_dict(trained.state_dict())
        prune(network, masks)
        return self._fit(network, stage, lr=lr * self.spec.trainer.lr, **trainer)

    def _fit(self, network: nn.Module, stage: str, **trainer: Any) -> nn.Module:
        plain, progress = fit(network, self.method, self.inputs, self.spec.at(stage, **trainer), self.backend)
        self.progress.append(progress)
        return plain


class Pruning(Procedure):
    """Train, prune by magnitude and train the surviving weights; the last fit has `retrain_epochs` epochs.

    Its learning rate is `retrain_lr` times the trainer's. Each fit gets a network with exact zeros, which the part
    `masked` holds at zero.
    """

    retrain_epochs: Count
    retrain_lr: Factor

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Train `network`, unless its weights come from a checkpoint, and prune it."""
        fits = _Fits(network, method, inputs, spec, backend)
        pruned, figures = self.prune(fits, fits.dense())
        return FitResult(pruned, join_histories(fits.progress), figures)

    @abstractmethod
    def prune(self, fits: _Fits, dense: nn.Module) -> tuple[nn.Module, dict[str, Figure]]:
        """The pruned and retrained network, and the figures for metrics.json."""


class IterativePruning(Pruning):
    """Prune and retrain `iterations` times (Han et al. 2015).

    The fraction of surviving weights falls geometrically to `keep`, or the quality factor is `q` in every iteration.
    """

    iterations: Count
    keep: Annotated[float, Field(gt=0, le=1)] | None
    q: Factor | None

    @model_validator(mode="after")
    def _one_criterion(self) -> Self:
        if (self.keep is None) == (self.q is None):
            raise ValueError(f"exactly one of keep and q may be a number; keep is {self.keep}, q is {self.q}")
        return self

    def prune(self, fits: _Fits, dense: nn.Module) -> tuple[nn.Module, dict[str, Figure]]:
        """The network and, as figures, the last iteration's quality factor and fraction of surviving weights."""
        network, q, kept = dense, 0.0, 0.0
        for number in range(1, self.iterations + 1):
            masks, q = self._masks(weight_matrices(network), number)
            total = sum(mask.numel() for mask in masks.values())
            kept = sum(int(mask.sum()) for mask in masks.values()) / total
            log.info("iteration %d: quality factor %.4f keeps %.2f %% of the weights", number, q, 100 * kept)
            network = fits.pruned(network, masks, f"retrain-{number}", self.retrain_lr, epochs=self.retrain_epochs)
        return network, {"pruned_sparsity_percent": 100 * (1 - kept), "pruned_q": q}

    def _masks(self, weights: Weights, number: int) -> tuple[Masks, float]:
        if self.keep is not None:
            return masks_by_fraction(weights, self.keep ** (number / self.iterations))
        assert self.q is not None, "the validator admits exactly one of both"
        return masks_by_quality(weights, self.q), self.q


class GradualPruning(Pruning):
    """Prune each layer in `steps` steps along a cubic schedule, with `epochs_per_step` of training after each.

    The schedule is that of Zhu and Gupta 2017. The final sparsity is `sparsity`, or the highest of `ladder` that raises
    the validation error by at most `tolerance` percent points; every rung of the ladder starts from the dense network.
    """

    sparsity: Sparsity | None
    tolerance: Points | None
    ladder: Annotated[list[Sparsity], Field(min_length=1)]
    steps: Count
    epochs_per_step: Count

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.sparsity is None) == (self.tolerance is None):
            raise ValueError(
                "exactly one of sparsity and tolerance may be a number;"
                f" sparsity is {self.sparsity}, tolerance is {self.tolerance}"
            )
        if any(low >= high for low, high in pairwise(self.ladder)):
            raise ValueError(f"ladder must rise from one number to the next; it is {self.ladder}")
        return self

    def check(self, config: Config) -> None:
        """Raise UserError for a tolerance without a validation set."""
        if self.tolerance is not None and not config.dataset.validation:
            raise UserError(
                f"method.tolerance: {self.tolerance:g} is not allowed with dataset.validation=0, which leaves no"
                " validation error to choose by; allowed: null"
            )

    def prune(self, fits: _Fits, dense: nn.Module) -> tuple[nn.Module, dict[str, Figure]]:
        """The network and, as a figure, its sparsity, 0 if no rung is tolerated; a ladder writes pruning.csv."""
        if self.sparsity is not None:
            return self._pruned_to(fits, dense, self.sparsity), {"pruned_sparsity_percent": 100 * self.sparsity}
        validation = fits.inputs.data.validation
        assert validation is not None, "`check` refuses a tolerance without validation"
        assert self.tolerance is not None, "the validator admits exactly one of both"
        network, chosen = dense, 0.0
        errors = {0.0: error_percent(dense, validation)}
        for sparsity in self.ladder:
            candidate = self._pruned_to(fits, dense, sparsity)
            errors[sparsity] = error_percent(candidate, validation)
            if within_tolerance(errors[sparsity], errors[0.0], self.tolerance):
                network, chosen = candidate, sparsity
        if not chosen:
            log.warning("no sparsity of method.ladder is within method.tolerance=%s; nothing is pruned", self.tolerance)
        rows = [{"sparsity_percent": 100 * key, "val_error_percent": error} for key, error in errors.items()]
        write_csv(fits.spec.folder.path / "pruning.csv", list(rows[0]), rows)
        return network, {"pruned_sparsity_percent": 100 * chosen}

    def _pruned_to(self, fits: _Fits, dense: nn.Module, final: float) -> nn.Module:
        initial = {name: 1 - int(w.count_nonzero()) / w.numel() for name, w in weight_matrices(dense).items()}
        network = dense
        for step in range(1, self.steps + 1):
            targets = {name: cubic_sparsity(start, final, step, self.steps) for name, start in initial.items()}
            masks = masks_by_layer(weight_matrices(network), targets)
            # Only the last fit has the reduced learning rate.
            last = step == self.steps
            constant = {"epochs": self.epochs_per_step, "schedule": "hold", "hold": 1.0}
            trainer = {"epochs": self.retrain_epochs} if last else constant
            network = fits.pruned(network, masks, f"sparsity-{final}-step-{step}", self.retrain_lr, **trainer)
        return network
