"""Means, deviations and intervals against values worked out by hand, and against scipy's."""

import math
import random

import pytest
from scipy import stats

from kdx.report.statistics import Estimate, estimate


def test_three_values_by_hand():
    # The mean is 2, the squared deviations 1 + 0 + 1 over 2; t(2, 0.975) = 4.302653, over the root of 3: 2.484138.
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_one_value_has_neither_deviation_nor_interval():
    assert estimate([1.5]) == Estimate(1, 1.5, None, None, None)


def test_equal_values_have_an_interval_of_no_width():
    assert estimate([0.1] * 3) == Estimate(
        3, pytest.approx(0.1), pytest.approx(0), pytest.approx(0.1), pytest.approx(0.1)
    )


@pytest.mark.parametrize("n", [2, 5, 30])
def test_the_interval_is_scipys(n: int):
    draw = random.Random(n)
    values = [draw.gauss(1.3, 0.2) for _ in range(n)]
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=found.mean, scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.sd == pytest.approx(stats.tstd(values))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_cannot_be_estimated(values: list[float]):
    with pytest.raises(ValueError, match="finite values"):
        estimate(values)
