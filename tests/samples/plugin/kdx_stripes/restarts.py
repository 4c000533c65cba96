"""Fits one after another, each from the weights of the one before."""

from copy import deepcopy

from torch import nn

from kdx.config.base import Count
from kdx.device.backend import Backend
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.method import Method
from kdx.methods.procedure import FitResult, Procedure, join_histories


class Restarts(Procedure):
    """`fits` of the same length; the optimiser and the learning rate begin anew in each."""

    fits: Count

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Train; the figure is how many fits there were."""
        stages = []
        for number in range(1, self.fits + 1):
            network, progress = fit(deepcopy(network), method, inputs, spec.at(f"fit-{number}"), backend)
            stages.append(progress)
        return FitResult(network, join_histories(stages), {"fits": self.fits})
