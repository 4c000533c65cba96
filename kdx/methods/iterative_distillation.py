"""The settings of a chain: a procedure of several runs, each with a network of its own (IKD)."""

from typing import Literal

from kdx.config.base import Count, Name
from kdx.config.networks import NetworkSettings, Operator
from kdx.config.ranges import Points
from kdx.config.schema import Config
from kdx.config.validation import format_value
from kdx.errors import UserError
from kdx.methods.procedure import Procedure
from kdx.methods.weight_pruning import GradualPruning
from kdx.models.refine import refined


class PruningMethod(GradualPruning):
    """The settings of method=prune, which prunes the members of a chain at its end."""

    name: Name
    procedure: Literal["gradual-pruning"]
    parts: list[str]
    rescale_dropout: bool


class IterativeDistillation(Procedure):
    """The settings of iterative knowledge distillation (IKD algorithm 2); `kdx.chain` carries it out."""

    # Fixed, for the candidates' run names: the loss of a candidate is in the other settings of the method.
    member: Literal["kd-mixture"]
    generations: Count
    teacher: Literal["parental", "ancestral"]
    select: Literal["error", "loss"]
    refine: Operator
    tolerance: Points | None
    prune: bool
    pruning: PruningMethod

    def unused_settings(self) -> dict[str, str]:
        """The settings of pruning without `prune`, and of the selection among candidates if there is only one."""
        pruning = {} if self.prune else {"method.pruning": "method.prune=false"}
        return pruning | ({} if self.teacher == "ancestral" else {"method.select": "method.teacher=parental"})

    def structures(self, network: NetworkSettings) -> list[NetworkSettings]:
        """The networks of all generations, `network` itself first.

        Raises UserError if `network` does not allow that many refinements of this kind.
        """
        # The last generation first, because its error message says best what is wrong.
        networks = [refined(network, self.refine, times) for times in range(self.generations, -1, -1)]
        return networks[::-1]

    def check(self, config: Config) -> None:
        """Raise UserError if `config` has settings that a chain cannot be combined with."""
        self.structures(config.teacher.network())
        for key in list(config.teachers)[1:]:
            raise UserError(f"{key}: not allowed with a chain of runs, whose teachers are its own; allowed: none")
        if config.student.checkpoint is not None:
            raise UserError(
                f"student.checkpoint: '{config.student.checkpoint}' is not allowed with a chain of runs, whose networks"
                " begin with random weights; allowed: null"
            )
        if config.dataset.validation:
            return
        for key, value, allowed in (
            ("teacher", self.teacher, "parental"),
            ("tolerance", self.tolerance, None),
            ("pruning.tolerance", self.pruning.tolerance if self.prune else None, None),
        ):
            if value != allowed:
                raise UserError(
                    f"method.{key}: {format_value(value)} is not allowed with dataset.validation=0, which leaves no"
                    f" validation error to compare; allowed: {allowed or 'null'}"
                )
