"""Statistics over seeds, and over the rounds of a timing."""

from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Literal

from scipy import special

CONFIDENCE = 0.95
SIGNIFICANT = 0.05

Relation = Literal["lower", "higher"]
Answer = Literal["holds", "fails", "undecided", "untested"]
"""undecided: the test leaves it open, or there are too few values for a test; untested: there is no run for it."""


@dataclass(frozen=True)
class Estimate:
    """Sample mean, standard deviation (n - 1) and 95 % interval of the mean (Student's t) of independent values.

    With one value there is neither deviation nor interval. Raises ValueError without values or with NaN.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(map(isfinite, self.values)):
            raise ValueError(f"an estimate needs finite values; these are {list(self.values)}")

    @property
    def n(self) -> int:
        """The number of values, at least one."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The sample mean."""
        return fmean(self.values)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation; None for one value."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def half_width(self) -> float | None:
        """t(0.975, n - 1) sd / sqrt(n), half the width of the interval; None for one value."""
        if self.sd is None:
            return None
        return float(special.stdtrit(self.n - 1, (1 + CONFIDENCE) / 2)) * self.sd / sqrt(self.n)

    @property
    def low(self) -> float | None:
        """The lower end of the interval; None for one value."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The upper end of the interval; None for one value."""
        return None if self.half_width is None else self.mean + self.half_width


@dataclass(frozen=True)
class TTest:
    """A two-sided t test: statistic, degrees of freedom and p; all None if there are too few values."""

    t: float | None
    df: float | None
    p: float | None


def welch(a: Estimate, b: Estimate) -> TTest:
    """Welch's t test of equal means (unequal variances), with the Welch-Satterthwaite degrees of freedom."""
    if a.sd is None or b.sd is None or a.sd == b.sd == 0:
        return TTest(None, None, None)
    of_a, of_b = a.sd**2 / a.n, b.sd**2 / b.n
    df = (of_a + of_b) ** 2 / (of_a**2 / (a.n - 1) + of_b**2 / (b.n - 1))
    return _two_sided((a.mean - b.mean) / sqrt(of_a + of_b), df)


def against(a: Estimate, number: float) -> TTest:
    """Student's t test that the mean is `number`."""
    if not a.sd:
        return TTest(None, None, None)
    return _two_sided((a.mean - number) / (a.sd / sqrt(a.n)), a.n - 1)


def _two_sided(t: float, df: float) -> TTest:
    return TTest(t, df, 2 * float(special.stdtr(df, -abs(t))))


def answer(difference: float, relation: Relation, test: TTest) -> Answer:
    """Whether a difference (first minus second) shows the first to be lower or higher; undecided unless p < 0.05."""
    return "undecided" if test.p is None or test.p >= SIGNIFICANT else direction(difference, relation)


def direction(difference: float, relation: Relation) -> Answer:
    """Whether an exact difference (first minus second), without randomness, shows the first to be lower or higher."""
    return "holds" if (difference < 0 if relation == "lower" else difference > 0) else "fails"
