"""The KL's weight lambda_V, which rises from zero, so that the network learns from the data before it is pruned."""

from math import nextafter

from pydantic import NonNegativeFloat

from kdx.config.ranges import Weight
from kdx.methods.modifier import Modifier, Unreached
from kdx.training.objective import Schedule


def warming_up(weight: float, start: float, end: float) -> Schedule:
    """A schedule: 0 until epoch `start`, then linear up to `weight` at `end`; at once if `end` is no later."""
    if end <= start:
        # The first step at `start` has the full weight, so that start = end = 0 means no warm-up.
        return lambda epoch: weight if epoch >= start else 0.0
    return lambda epoch: weight * min(max((epoch - start) / (end - start), 0.0), 1.0)


class WarmUp(Modifier):
    """The KL's weight: 0 until epoch `warmup_start`, then linear up to `lambda_V` at epoch `warmup_end`."""

    lambda_V: Weight
    warmup_start: NonNegativeFloat
    warmup_end: NonNegativeFloat

    def unused_settings(self) -> dict[str, str]:
        """The warm-up's epochs, if `lambda_V` is 0."""
        return {} if self.lambda_V else dict.fromkeys(("warmup_start", "warmup_end"), "method.lambda_V=0")

    def unreached(self, epochs: int) -> dict[str, Unreached]:
        """`lambda_V`, if training ends before the warm-up does."""
        # The last step is just before the end.
        share = warming_up(1.0, self.warmup_start, self.warmup_end)(nextafter(epochs, 0.0))
        if self.lambda_V and share == 0.0:
            return {"lambda_V": Unreached(0.0, "warmup_start", self.warmup_start)}
        if self.lambda_V and share < 1.0 and self.warmup_end > epochs:
            return {"lambda_V": Unreached(share * self.lambda_V, "warmup_end", self.warmup_end)}
        return {}

    def hyperparameters(self) -> dict[str, Schedule]:
        """`lambda_V` as a function of the time in epochs."""
        schedule = warming_up(self.lambda_V, self.warmup_start, self.warmup_end)
        return {"lambda_V": schedule, **super().hyperparameters()}
