"""Times are compared within rounds: noise cancels, or it shows. The clock is a fake one, which only the calls move."""

from collections.abc import Callable
from itertools import chain
from statistics import median

import pytest
from scipy.stats import quantile_test

from kdx.deploy.rounds import LEAST_ROUNDS, NOISY, ROUNDS, Rounds, Speedup, median_interval, speedup, time_in_rounds


class Machine:
    """A clock that runs on while something is called, perhaps slower than alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.used = 0.0
        self.slower: Callable[[str], float] = lambda name: 1.0
        self.stretch, self.wait = float("inf"), 0.0
        monkeypatch.setattr("kdx.deploy.rounds.perf_counter", lambda: self.now)

    def takes(self, name: str, seconds: float) -> Callable[[], None]:
        """Something that takes so long where nothing disturbs it."""

        def call() -> None:
            interruptions = (self.used % self.stretch + seconds) // self.stretch if self.wait else 0
            self.used += seconds
            self.now += seconds * self.slower(name) + interruptions * self.wait

        return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def taken_by(machine: Machine, seconds: float = 0.42) -> dict[str, list[list[float]]]:
    """The teacher is four times as slow as the student."""
    return time_in_rounds(
        {"teacher": machine.takes("teacher", 0.004), "student": machine.takes("student", 0.001)}, seconds
    )


def over_medians(taken: dict[str, list[list[float]]]) -> float:
    """The ratio of the medians over all calls."""
    return median(chain(*taken["teacher"])) / median(chain(*taken["student"]))


def test_on_a_quiet_machine_every_round_says_the_same(machine: Machine):
    taken = taken_by(machine)
    # The last call of a share ends after it.
    assert [len(rounds) for rounds in taken.values()] == [ROUNDS - 1, ROUNDS - 1]
    assert machine.now == pytest.approx(0.84, rel=0.05)
    ratio = speedup(taken["student"], over=taken["teacher"])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((4, 4, 4))
    assert speedup(taken["teacher"], over=taken["student"]).median == pytest.approx(0.25)


def test_noise_that_hits_one_for_a_while_does_not_change_the_ratio(machine: Machine):
    """In some rounds the teacher takes ten times as long."""
    machine.slower = lambda name: 10.0 if name == "teacher" and 0.2 < machine.now < 0.4 else 1.0
    taken = taken_by(machine)
    assert sum(min(calls) > 0.03 for calls in taken["teacher"]) == 4
    ratio = speedup(taken["student"], over=taken["teacher"])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((4, 4, 4))
    assert not ratio.is_noise


def test_noise_that_hits_one_half_of_the_time_is_said(machine: Machine):
    """No number says what the ratio is: it was 4 in three rounds and 2,000 in three."""
    machine.slower = lambda name: 500.0 if name == "teacher" and machine.now > 0.13 else 1.0
    taken = taken_by(machine)
    assert [len(calls) for calls in taken["teacher"]] == [5, 5, 5, 1, 1, 1]
    ratio = speedup(taken["student"], over=taken["teacher"])
    assert (ratio.low, ratio.high) == pytest.approx((4, 2000))
    assert ratio.is_noise
    assert ratio.columns("against") == {"against": None, "against_low": ratio.low, "against_high": ratio.high}


def test_what_slows_everything_for_a_while_cancels(machine: Machine):
    """The processor's clock, say: the times are three times as long in half of the rounds, the ratio is the same."""
    machine.slower = lambda name: 3.0 if machine.now > 0.4 else 1.0
    taken = taken_by(machine)
    assert max(map(max, taken["student"])) == pytest.approx(3 * min(map(min, taken["student"])))
    ratio = speedup(taken["student"], over=taken["teacher"])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((4, 4, 4), rel=0.02)


def test_interruptions_count_for_short_calls_too(machine: Machine):
    """A program that runs 3 ms and waits 15: every call of the teacher meets a wait, few of the student's do."""
    machine.stretch, machine.wait = 0.003, 0.015
    taken = taken_by(machine, seconds=4.0)
    assert over_medians(taken) > 15
    ratio = speedup(taken["student"], over=taken["teacher"])
    assert ratio.median == pytest.approx(4, rel=0.1)
    assert not ratio.is_noise


def test_slow_calls_have_fewer_rounds_and_one_call_in_each(machine: Machine):
    taken = time_in_rounds({"slow": machine.takes("slow", 2.0), "quick": machine.takes("quick", 0.01)}, 1.0)
    assert [len(calls) for calls in taken["slow"]] == [1] * LEAST_ROUNDS
    # A twentieth of a second, but for the first call, which is not counted.
    assert all(len(calls) in (4, 5) for calls in taken["quick"])


def test_everything_is_timed_once_a_round_in_changing_order(machine: Machine):
    order: list[str] = []
    slow = machine.takes("any", 2.0)
    time_in_rounds({name: lambda name=name: (order.append(name), slow()) for name in "abc"}, 1.0)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(rounds) == LEAST_ROUNDS
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 2


def test_rounds_of_what_does_not_exist_are_none(machine: Machine):
    assert time_in_rounds({}, 1.0) == {}


@pytest.mark.parametrize("n", [6, 7, 8, 9, 12, 15, 20, 50, 51])
def test_the_interval_of_the_median_is_that_of_the_quantile_test(n: int):
    values = [float((7 * number) % n) ** 2 for number in range(n)]
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert median_interval(values) == (interval.low, interval.high)


def test_five_values_have_no_interval():
    with pytest.raises(ValueError, match=r"^the median of 5 values has no interval of 95 %$"):
        median_interval(range(5))
    assert median_interval(range(LEAST_ROUNDS)) == (0, LEAST_ROUNDS - 1)


@pytest.mark.parametrize(("high", "noise"), [(2 * NOISY, False), (2 * NOISY + 0.01, True)])
def test_where_noise_begins(high: float, noise: bool):
    ratio = Speedup(2.5, 2.0, high)
    assert ratio.is_noise == noise
    assert ratio.columns("x") == {"x": None if noise else 2.5, "x_low": 2.0, "x_high": high}


def test_things_that_were_not_timed_together_cannot_be_compared():
    one: Rounds = [[1.0]] * 6
    with pytest.raises(ValueError, match="zip"):
        speedup(one, over=[*one, [1.0]])
