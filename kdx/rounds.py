"""What things take, timed in turn, so that noise falls on all of them, and compared within rounds, so that it shows.

Whatever else the machine does lasts a while. Timed one after the other, the thing that meets it seems slow; and of
calls that are longer than a program may run at a stretch nearly every one is interrupted, of short ones hardly any, so
that a median over calls is worth nothing where others want the cores too. Here each round times everything once for the
same while, and the interruptions count.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, median
from time import perf_counter
from typing import TypeVar

from scipy import special

ROUNDS = 20
LEAST_ROUNDS = 6
"""Of fewer values the median has no interval of 95 %."""
NOISY = 1.5
"""How many times its lower end the upper end of a ratio's interval may be; beyond that the ratio is worthless."""

Thing = TypeVar("Thing", bound=Hashable)
Rounds = Sequence[Sequence[float]]
"""The seconds of every call, by round."""


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one thing is as another: the median of the rounds' ratios, and the 95 % interval of it."""

    median: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval leaves open what the ratio is."""
        return self.high > NOISY * self.low

    def columns(self, name: str) -> dict[str, float | None]:
        """The cells of a file of results: `name`, which is empty where it is noise, `name`_low and `name`_high."""
        return {name: None if self.is_noise else self.median, f"{name}_low": self.low, f"{name}_high": self.high}


def time_in_rounds(calls: Mapping[Thing, Callable[[], object]], seconds: float) -> dict[Thing, list[list[float]]]:
    """The seconds of every call by round, each thing for about `seconds` in all.

    There are `ROUNDS` rounds, fewer where calls take so long that the time is up before, but `LEAST_ROUNDS` at least.
    The order is another one in each, so that what comes back every few milliseconds does not meet the same one always.
    """
    start, order = perf_counter(), Random(0)
    taken: dict[Thing, list[list[float]]] = {thing: [] for thing in calls}
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and perf_counter() - start >= seconds * len(calls):
            break
        for thing in order.sample(list(calls), len(calls)):
            taken[thing].append(_timed(calls[thing], seconds / ROUNDS))
    return taken


def speedup(of: Rounds, over: Rounds) -> Speedup:
    """How many times as fast one thing is as another that was timed in the same rounds."""
    ratios = [fmean(slow) / fmean(fast) for slow, fast in zip(over, of, strict=True)]
    return Speedup(median(ratios), *median_interval(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of independent values of any distribution, from the k-th of either end.

    k is the largest of which fewer than k of n values lie below the median with a probability of at most 2.5 %
    (Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2). Raises ValueError for less than six values.
    """
    n, ordered = len(values), sorted(values)
    k = sum(float(special.bdtr(below, n, 0.5)) <= 0.025 for below in range(n))
    if k == 0:
        raise ValueError(f"the median of {n} values has no interval of 95 %")
    return ordered[k - 1], ordered[n - k]


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    start = perf_counter()
    # The caches still hold what was timed before; to a call that is longer than its share that does not matter.
    first = seconds_of(call)
    if first >= seconds:
        return [first]
    taken = [seconds_of(call)]
    while perf_counter() - start < seconds:
        taken.append(seconds_of(call))
    return taken
