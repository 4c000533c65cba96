"""A training step compiled by torch.compile into one graph, or run eagerly if the machine's compiler fails."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from kdx.errors import UserError

Step = Callable[..., None]

log = logging.getLogger(__name__)


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
