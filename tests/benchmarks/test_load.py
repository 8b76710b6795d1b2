"""Callers start together, closed loops wait for their answers, and open ones count from the arrival that was meant."""

from __future__ import annotations

import itertools
import random
import statistics
import threading

import pytest

from benchmarks.load import arrivals, closed_loop, open_loop, together


class FakeTime:
    """Seconds that pass only by sleeping and by what calls cost."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_the_same_seed_draws_the_same_arrivals() -> None:
    assert arrivals(100, 1, random.Random(7)) == arrivals(100, 1, random.Random(7))
    assert arrivals(100, 1, random.Random(7)) != arrivals(100, 1, random.Random(8))


def test_arrivals_ascend_within_the_time_and_come_at_the_rate() -> None:
    moments = arrivals(rate=1000, seconds=20, chance=random.Random(1))

    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 20
    assert len(moments) == pytest.approx(20_000, rel=0.03)


def test_gaps_between_arrivals_are_those_of_a_poisson_process() -> None:
    moments = arrivals(rate=1000, seconds=20, chance=random.Random(1))
    gaps = [after - before for before, after in itertools.pairwise(moments)]

    # Exponential: as wide as long, and its median is ln 2 of its mean.
    assert statistics.stdev(gaps) == pytest.approx(0.001, rel=0.05)
    assert statistics.median(gaps) == pytest.approx(0.000693, rel=0.05)


def test_somebody_arrives_even_at_a_rate_of_nearly_nothing() -> None:
    assert len(arrivals(rate=0.001, seconds=0.001, chance=random.Random(1))) == 1


def test_an_open_loop_submits_at_the_moments_that_were_drawn() -> None:
    time = FakeTime()
    submitted: list[tuple[int, float]] = []

    rate, latencies = open_loop(
        [0.5, 1.0, 3.0],
        lambda number: submitted.append((number, time.now)),
        lambda: [100.6, 101.2, 104.0],
        clock=time.clock,
        sleep=time.sleep,
    )

    assert submitted == [(0, 100.5), (1, 101.0), (2, 103.0)]
    assert latencies == pytest.approx([100_000, 200_000, 1_000_000])
    assert rate == pytest.approx(3 / 4.0)


def test_who_is_submitted_late_has_waited_since_the_moment_that_was_drawn() -> None:
    time = FakeTime()

    def submit(number: int) -> None:
        time.now += 2.0 if number == 0 else 0.0  # the first call blocks its caller

    _, latencies = open_loop([0.0, 0.5], submit, lambda: [102.0, 102.1], clock=time.clock, sleep=time.sleep)

    assert latencies == pytest.approx([2_000_000, 1_600_000])
    assert time.slept == []


def test_a_closed_loop_calls_again_when_it_is_answered_until_the_time_is_over() -> None:
    time = FakeTime()
    numbers: list[int] = []

    def call(number: int) -> None:
        numbers.append(number)
        time.now += 0.25

    _, times = closed_loop(1, call, seconds=1.0, clock=time.clock)

    assert numbers == [0, 1, 2, 3]
    assert times == pytest.approx([250_000] * 4)


def test_callers_share_the_numbers_and_each_calls_at_least_once() -> None:
    numbers: list[int] = []

    _, times = closed_loop(3, numbers.append, seconds=0.0, clock=lambda: 0.0)

    assert sorted(numbers) == [0, 1, 2]
    assert len(times) == 3


def test_callers_run_at_the_same_time() -> None:
    meeting = threading.Barrier(4)

    together(4, lambda _: meeting.wait(timeout=30))


@pytest.mark.parametrize("callers", [1, 3])
def test_what_a_caller_raises_is_raised_to_who_started_them(callers: int) -> None:
    def fail(number: int) -> None:
        if number == callers - 1:
            raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        together(callers, fail)
