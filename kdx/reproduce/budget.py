"""Budgets: how long the runs of a table are trained."""

from typing import Literal

Budget = Literal["paper", "short", "smoke"]
BUDGETS: dict[Budget, tuple[str, ...]] = {
    "paper": (),
    # Enough to see that rows are ordered plausibly, not to compare with published numbers.
    "short": ("trainer.epochs=10", "teacher.trainer.epochs=10"),
    "smoke": ("trainer.epochs=2", "teacher.trainer.epochs=1", "device.latency_seconds=0", "device.compile=false"),
}
