"""What repeated measurements tell: mean, standard deviation and the 95 % interval of the mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Of `n` values the mean, the sample standard deviation, and the limits of the mean's interval.

    One value has no deviation and no interval: they are None.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its 95 % interval by Student's t; ValueError without a value or with NaN."""
    n = len(values)
    if not n or not all(map(math.isfinite, values)):
        raise ValueError(f"an estimate needs finite values; these are {list(values)}")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(n, mean, None, None, None)
    # Here, because only sweeps need it and it takes a moment.
    from scipy.special import stdtrit

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)
