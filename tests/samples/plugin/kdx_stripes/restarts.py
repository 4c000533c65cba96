"""Fits one after another, each from the weights of the one before."""

from copy import deepcopy

from torch import nn

from kdx.config.base import Count
from kdx.device.backend import Engine
from kdx.methods.fit import Lesson, Plan, fit
from kdx.methods.method import Method
from kdx.methods.procedure import Outcome, Procedure, joined


class Restarts(Procedure):
    """`fits` of the same length; the optimiser and the learning rate begin anew in each."""

    fits: Count

    def run(self, network: nn.Module, method: Method, lesson: Lesson, plan: Plan, engine: Engine) -> Outcome:
        """Train; the figure is how many fits there were."""
        stages = []
        for number in range(1, self.fits + 1):
            network, progress = fit(deepcopy(network), method, lesson, plan.at(f"fit-{number}"), engine)
            stages.append(progress)
        return Outcome(network, joined(stages), {"fits": self.fits})
