"""Stochastic gradient Langevin dynamics as a procedure: samples are kept on the way and make an ensemble (SPEC 6)."""

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
    """One fit, whose network is kept at `samples` epochs' ends, evenly spaced after `burn_in` epochs."""

    burn_in: NonNegativeInt | None
    samples: PositiveInt

    def idle(self) -> dict[str, str]:
        """The optimizer and its rate, since every parameter moves by `method.eta`."""
        keys = ("lr", "schedule", "hold", "peak", "optimizer", "momentum", "weight_decay")
        reason = "Langevin dynamics, whose step size is method.eta"
        return {f"trainer.{key}": reason for key in keys}

    def check(self, config: Config) -> None:
        """Refuse what would make one network of all samples, and a burn-in that leaves too few epochs."""
        for key, other in (("patience", "no best epoch"), ("average", "not their average")):
            value = getattr(config.trainer, key)
            if value is not None:
                raise UserError(
                    f"trainer.{key}: {value} is not allowed with method={config.method['name']}, which keeps samples"
                    f" and {other}; allowed: null"
                )
        self.epochs_kept(config.trainer.epochs)

    def epochs_kept(self, epochs: int) -> list[int]:
        """The epochs, from 1, after which a sample is kept; the last is always one.

        Raises UserError where the burn-in does not leave as many.
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
        """Sample, and give the ensemble of the samples that were kept.

        Each is a file of the run's folder from the moment it is drawn, so an interrupted run does not lose it.
        """
        # Named like checkpoints, because that is what they are: they go when the folder is finished.
        files = {epoch: plan.at(f"sample{epoch}").checkpoint for epoch in self.epochs_kept(plan.trainer.epochs)}

        def keep(student: nn.Module, epoch: int) -> None:
            if epoch in files:
                save_weights(files[epoch], method.finalize(deepcopy(student)))

        last, progress = fit(network, method, lesson, plan, engine, after_epoch=keep)
        return Outcome(Ensemble([load_weights(path, emptied(last)) for path in files.values()]), progress)
