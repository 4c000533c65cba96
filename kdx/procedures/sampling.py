"""Stochastic gradient Langevin dynamics as a procedure: an ensemble of samples (Welling and Teh 2011)."""

from copy import deepcopy

from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from kdx.config import Config
from kdx.device import Engine
from kdx.errors import UserError
from kdx.fit import Lesson, Plan, fit
from kdx.methods import Method
from kdx.models.ensemble import Ensemble
from kdx.procedures.procedure import Outcome, Procedure
from kdx.weights import emptied, load_weights, save_weights


class Sampling(Procedure):
    """One fit, of which `samples` networks are kept, evenly spaced after `burn_in` epochs."""

    burn_in: NonNegativeInt | None
    samples: PositiveInt

    def idle(self) -> dict[str, str]:
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

    def run(self, network: nn.Module, method: Method, lesson: Lesson, plan: Plan, engine: Engine) -> Outcome:
        """Sample; the outcome is the ensemble of the samples.

        Each sample is written to the run's folder as soon as it is drawn, so that resuming does not lose it.
        """
        # Named like checkpoints, so that they are removed with them when the run is finished.
        files = {epoch: plan.at(f"sample{epoch}").checkpoint for epoch in self.epochs_kept(plan.trainer.epochs)}

        def keep(student: nn.Module, epoch: int) -> None:
            if epoch in files:
                save_weights(files[epoch], method.finalize(deepcopy(student)))

        last, progress = fit(network, method, lesson, plan, engine, after_epoch=keep)
        return Outcome(Ensemble([load_weights(path, emptied(last)) for path in files.values()]), progress)
