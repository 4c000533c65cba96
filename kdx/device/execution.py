"""How the steps of one training are executed: compiled or eager, captured as CUDA graphs or launched singly."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdx.device.backend import Backend
from kdx.device.cuda_graphs import CudaGraphs, GraphRecorder
from kdx.errors import UserError

log = logging.getLogger(__name__)


Facts = dict[str, str | int]
"""How steps were executed: device, threads, precision and so on, as in metrics.json."""

Step = Callable[..., None]


def compiled_step(make: Callable[[bool], Step], *, required: bool, failed: Callable[[], None]) -> Step:
    """Compile `make(False)` at its first call; if that fails, log it and use `make(True)`, the eager step.

    `failed` is called then; with `required` a failure raises UserError instead.
    """
    # Shapes, types and modules never change within a training, so guards are skipped: checking them before every step
    # would take longer than drawing its noise. The reset keeps one training's code from being used for another.
    torch.compiler.reset()
    # Imported here, because the compiler takes a second to import, and most short runs do without it.
    from torch._dynamo.exc import BackendCompilerFailed

    # Loading the compiler warns if a CUDA toolkit is installed without a GPU, which is no mistake.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = torch.compile(
        make(False),
        dynamic=False,
        fullgraph=True,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
    )
    chosen: Step | None = None

    def step(*arguments: Any) -> None:
        nonlocal chosen
        if chosen is not None:
            chosen(*arguments)
            return
        try:
            compiled(*arguments)
            chosen = compiled
        except BackendCompilerFailed as error:
            # No operation has run yet, so the eager step can start from the same state.
            reason = str(error).strip().splitlines()[0]
            if required:
                raise UserError(f"device.compile: 'true' failed ({reason}); allowed: auto, false") from error
            log.warning("not compiled, the compiler failed (%s)", reason)
            failed()
            chosen = make(True)
            chosen(*arguments)

    return step


class Execution:
    """How a backend executes a training of `student` with so many steps."""

    def __init__(self, backend: Backend, student: nn.Module, steps: int) -> None:
        self.backend, self.compiles = backend, backend.compiles(student, steps)
        self._facts = backend.record()

    @property
    def name(self) -> str:
        """How steps are executed, in words: compiled, captured, both, or eager."""
        words = ["compiled"] * self.compiles + ["captured"] * self.backend.captures
        return " and ".join(words) or "eager"

    @property
    def facts(self) -> Facts:
        """The device and how steps are executed, for metrics.json."""
        return {**self._facts, "execution": self.name}

    @property
    def autocast(self) -> str | None:
        """The device type whose matrix products run in bfloat16, or None."""
        return self.backend.autocast

    def executed(self, make: Callable[[bool], Step]) -> Step:
        """The step that `make(eager)` makes, compiled if that was decided, else eager."""
        if not self.compiles:
            return make(True)
        return compiled_step(make, required=self.backend.compile is True, failed=self._not_compiled)

    def recorder(self) -> GraphRecorder | None:
        """The CUDA graph recorder, or None if steps are not captured."""
        return CudaGraphs() if self.backend.captures else None

    def _not_compiled(self) -> None:
        self.compiles = False
