"""How the steps of one training are executed: compiled or eager, captured as CUDA graphs or launched singly."""

from collections.abc import Callable

from torch import nn

from kdx.captured import Graphs, Recorder
from kdx.checkpoint import Facts
from kdx.compiled import Step, compiled_step
from kdx.device import Engine


class Execution:
    """How the engine executes a training of `student` with so many steps."""

    def __init__(self, engine: Engine, student: nn.Module, steps: int) -> None:
        self.engine, self.compiles = engine, engine.compiles(student, steps)
        self._facts = engine.record()

    @property
    def name(self) -> str:
        """How steps are executed, in words: compiled, captured, both, or eager."""
        words = ["compiled"] * self.compiles + ["captured"] * self.engine.captures
        return " and ".join(words) or "eager"

    @property
    def facts(self) -> Facts:
        """The device and how steps are executed, for metrics.json."""
        return {**self._facts, "execution": self.name}

    @property
    def autocast(self) -> str | None:
        """The device type whose matrix products run in bfloat16, or None."""
        return self.engine.autocast

    def executed(self, make: Callable[[bool], Step]) -> Step:
        """The step that `make(eager)` makes, compiled if that was decided, else eager."""
        if not self.compiles:
            return make(True)
        return compiled_step(make, required=self.engine.compile is True, failed=self._not_compiled)

    def recorder(self) -> Recorder | None:
        """The CUDA graph recorder, or None if steps are not captured."""
        return Graphs() if self.engine.captures else None

    def _not_compiled(self) -> None:
        self.compiles = False
