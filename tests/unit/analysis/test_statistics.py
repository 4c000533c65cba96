"""Statistics over seeds, by hand, against scipy and against the numbers that a paper prints."""

import math
import random

import pytest
from scipy import stats

from kdx.analysis.statistics import Estimate, TTest, against, answer, welch
from kdx.reproduce.published import read_published

A, B = Estimate((1.5, 1.7, 1.9, 1.4)), Estimate((2.0, 2.4, 1.9))


def test_mean_deviation_and_interval_by_hand():
    # Mean 3, squares 1 + 0 + 1, so sd 1; t(0.975, 2) = 4.302653.
    three = Estimate((2.0, 3.0, 4.0))
    assert (three.n, three.mean, three.sd) == (3, 3.0, 1.0)
    assert three.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_one_value_has_neither_deviation_nor_interval():
    one = Estimate((2.5,))
    assert (one.mean, one.sd, one.half_width) == (2.5, None, None)
    assert welch(one, A) == against(one, 1.0) == TTest(None, None, None)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_the_interval_is_scipys(n: int):
    draw = random.Random(n)
    values = tuple(draw.gauss(1.3, 0.2) for _ in range(n))
    found = Estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=found.mean, scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.sd == pytest.approx(stats.tstd(values))


@pytest.mark.parametrize("values", [(), (1.0, math.nan), (math.inf,)])
def test_what_cannot_be_estimated(values: tuple[float, ...]):
    with pytest.raises(ValueError, match="finite values"):
        Estimate(values)


def test_equal_values_allow_no_test():
    assert welch(Estimate((1.0, 1.0)), Estimate((2.0, 2.0))) == TTest(None, None, None)
    assert against(Estimate((1.0, 1.0)), 2.0) == TTest(None, None, None)


def test_welch_is_scipys():
    expected = stats.ttest_ind(A.values, B.values, equal_var=False)
    found = welch(A, B)
    assert (found.t, found.p) == pytest.approx((expected[0], expected[1]), rel=1e-12)
    low, high = stats.ttest_1samp(A.values, 1.2)
    assert (against(A, 1.2).t, against(A, 1.2).p) == pytest.approx((low, high), rel=1e-12)


def accuracies(model: str) -> Estimate:
    lines = read_published("kddp_table5")
    return Estimate(
        tuple(float(line["value"]) for line in lines if line["model"] == model and line["run_or_stat"].isdecimal())
    )


@pytest.mark.parametrize(("model", "t", "df"), [("Vanilla", 9.456, 16.7), ("Vanilla-KD", 2.835, 19.6)])
def test_table_5_of_kddp_recomputes(model: str, t: float, df: float):
    """KDDP table 5: Welch tests of the eleven published runs, with variances over n - 1."""
    ours, other = accuracies("KDDP"), accuracies(model)
    assert ours.n == other.n == 11
    found = welch(ours, other)
    assert found.t == pytest.approx(t, abs=5e-4)
    assert found.df == pytest.approx(df, abs=0.05)


@pytest.mark.parametrize(
    ("difference", "relation", "p", "expected"),
    [
        (-1.0, "lower", 0.01, "holds"),
        (1.0, "lower", 0.01, "fails"),
        (1.0, "higher", 0.01, "holds"),
        (-1.0, "higher", 0.01, "fails"),
        (-1.0, "lower", 0.05, "undecided"),
        (-1.0, "lower", None, "undecided"),
    ],
)
def test_an_answer_needs_significance(difference: float, relation, p: float | None, expected: str):
    assert answer(difference, relation, TTest(1.0, 2.0, p)) == expected
