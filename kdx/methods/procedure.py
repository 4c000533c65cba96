"""A procedure: the sequence of fits that a method consists of; most methods are one fit."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from torch import nn

from kdx.config.base import Settings
from kdx.config.schema import Config
from kdx.device.backend import Backend
from kdx.errors import UserError
from kdx.methods.fit import FitSpec, TrainingInputs, fit, initial_figures
from kdx.methods.method import Method
from kdx.training.checkpoint import Progress

Figure = float | int | str | None


@dataclass(frozen=True)
class FitResult:
    """The result of a procedure: the plain network, the history of all fits, and figures for metrics.json.

    `teacher` is the teacher that the procedure itself made, if it makes one.
    """

    network: nn.Module
    progress: Progress
    figures: dict[str, Figure] = field(default_factory=dict)
    teacher: nn.Module | None = None


class Procedure(Settings):
    """How often a method is fitted and what happens to the network between fits; the fields are keys of the YAML."""

    @property
    def makes_teacher(self) -> bool:
        """Whether this procedure trains the teacher itself, starting from its initial weights."""
        return False

    def unused_settings(self) -> dict[str, str]:
        """The keys without effect, as they are typed, each with the setting that is the reason."""
        return {}

    def check(self, config: Config) -> None:
        """Raise UserError if the procedure does not go with the rest of the configuration."""

    def check_network(self, network: nn.Module, method: Method) -> None:
        """Raise UserError if the method does not apply to `network`; called before a teacher is trained."""

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Train `network` from its initial weights.

        Each fit has a `FitSpec.at` of its own, so that resuming does not repeat the finished ones; what happens between
        fits must depend on nothing but the networks and `spec`.
        """
        raise TypeError(f"{type(self).__name__} does not say how it trains")


class SingleFit(Procedure):
    """One fit."""

    def check_network(self, network: nn.Module, method: Method) -> None:
        """Raise UserError if a part of the method does not apply to the layers of `network`."""
        try:
            method.prepare(deepcopy(network))
        except ValueError as error:
            raise UserError(str(error)) from None

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Fit once; the figures are those of the network before training, such as its initial sparsity."""
        figures: dict[str, Figure] = {**initial_figures(network, method, spec)}
        return FitResult(*fit(network, method, inputs, spec, backend), figures)


def join_histories(stages: Sequence[Progress]) -> Progress:
    """The histories of several fits as one: `stage` counts the fits, `epoch` is counted through all of them."""
    rows = [{"stage": number, **row} for number, stage in enumerate(stages, 1) for row in stage.history]
    history = [{**row, "epoch": epoch} for epoch, row in enumerate(rows, 1)]
    steps, seconds = sum(stage.steps for stage in stages), sum(stage.seconds for stage in stages)
    whole = replace(stages[-1], history=history, best_epoch=None, steps=steps, seconds=seconds, executed=[])
    for facts in (facts for stage in stages for facts in stage.executed):
        whole.note(facts)
    return whole
