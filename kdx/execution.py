"""How the steps of one training are executed: compiled or not, captured as CUDA graphs or one by one."""

from collections.abc import Callable

from torch import nn

from kdx.captured import Graphs, Recorder
from kdx.checkpoint import Facts
from kdx.compiled import Step, compiled_step
from kdx.device import Engine


class Execution:
    """The way that the engine chooses for a training of `student` with so many steps."""

    def __init__(self, engine: Engine, student: nn.Module, steps: int) -> None:
        self.engine, self.compiles = engine, engine.compiles(student, steps)
        self._facts = engine.record()

    @property
    def name(self) -> str:
        """What is done to the step, in words."""
        words = ["compiled"] * self.compiles + ["captured"] * self.engine.captures
        return " and ".join(words) or "eager"

    @property
    def facts(self) -> Facts:
        """How steps are executed, for the metrics."""
        return {**self._facts, "execution": self.name}

    @property
    def autocast(self) -> str | None:
        """The device type whose matrix products run in bfloat16, or None."""
        return self.engine.autocast

    def executed(self, make: Callable[[bool], Step]) -> Step:
        """The step of which `make(eager)` makes either kind, compiled where that is chosen."""
        if not self.compiles:
            return make(True)
        return compiled_step(make, required=self.engine.compile is True, failed=self._not_compiled)

    def recorder(self) -> Recorder | None:
        """What captures steps, where they are captured."""
        return Graphs() if self.engine.captures else None

    def _not_compiled(self) -> None:
        self.compiles = False
