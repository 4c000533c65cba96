"""Timing in rounds: several functions are timed in turn and compared within rounds, so that noise becomes visible.

Disturbances by other programs last a while. Timed one after the other, the function that meets one seems slow; and
nearly every call that is longer than the scheduler's time slice is interrupted, of short ones hardly any, so that a
median over calls is worthless on a busy machine. Here each round times everything once for the same time, interruptions
included.
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
"""With fewer values there is no 95 % interval of the median."""
NOISY = 1.5
"""A ratio is noise if its interval's upper end is more than so many times the lower end."""

Thing = TypeVar("Thing", bound=Hashable)
Rounds = Sequence[Sequence[float]]
"""The seconds of every call, one list per round."""


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one function is as another: the median of the rounds' ratios, with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval is too wide to tell the ratio."""
        return self.high > NOISY * self.low

    def columns(self, name: str) -> dict[str, float | None]:
        """The cells of a result table: `name`, None if it is noise, `name`_low and `name`_high."""
        return {name: None if self.is_noise else self.median, f"{name}_low": self.low, f"{name}_high": self.high}


def time_in_rounds(calls: Mapping[Thing, Callable[[], object]], seconds: float) -> dict[Thing, list[list[float]]]:
    """The seconds of every call by round, for each function about `seconds` in total.

    There are `ROUNDS` rounds, or fewer, but at least `LEAST_ROUNDS`, if calls take so long that the time is up. Each
    round has another random order, so that a periodic disturbance does not always meet the same function.
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
    """How many times as fast one function is as another that was timed in the same rounds."""
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
    """The seconds that one call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    start = perf_counter()
    # One untimed call, since the caches hold the previous function's data; a call longer than its share needs none.
    first = seconds_of(call)
    if first >= seconds:
        return [first]
    taken = [seconds_of(call)]
    while perf_counter() - start < seconds:
        taken.append(seconds_of(call))
    return taken
