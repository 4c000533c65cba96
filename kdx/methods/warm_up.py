"""The KL's weight lambda_V, which rises from zero, so that the data are learnt before anything is pruned."""

from math import nextafter

from pydantic import NonNegativeFloat

from kdx.methods.part import Part, Unreached
from kdx.objective import Schedule
from kdx.ranges import Weight


def warming_up(weight: float, start: float, end: float) -> Schedule:
    """Zero until epoch `start`, then rising linearly to `weight` at `end`, or at once where `end` is no later."""
    if end <= start:
        # The step at `start` itself has all of it, so that 0 and 0 are no warm-up at all.
        return lambda epoch: weight if epoch >= start else 0.0
    return lambda epoch: weight * min(max((epoch - start) / (end - start), 0.0), 1.0)


class WarmUp(Part):
    """`lambda_V`, from zero at `warmup_start` to its value at `warmup_end` (epochs)."""

    lambda_V: Weight
    warmup_start: NonNegativeFloat
    warmup_end: NonNegativeFloat

    def idle(self) -> dict[str, str]:
        """The warm-up of a weight that is zero."""
        return {} if self.lambda_V else dict.fromkeys(("warmup_start", "warmup_end"), "method.lambda_V=0")

    def unreached(self, epochs: int) -> dict[str, Unreached]:
        """The weight, where the training ends before it has any, or before it has all of it."""
        # The last step is just before the end.
        share = warming_up(1.0, self.warmup_start, self.warmup_end)(nextafter(epochs, 0.0))
        if self.lambda_V and share == 0.0:
            return {"lambda_V": Unreached(0.0, "warmup_start", self.warmup_start)}
        if self.lambda_V and share < 1.0 and self.warmup_end > epochs:
            return {"lambda_V": Unreached(share * self.lambda_V, "warmup_end", self.warmup_end)}
        return {}

    def numbers(self) -> dict[str, Schedule]:
        """`lambda_V` as a function of the time."""
        return {"lambda_V": warming_up(self.lambda_V, self.warmup_start, self.warmup_end)}
