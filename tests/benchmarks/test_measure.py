"""Figures are medians of rounds in which rivals take turns, and what was measured outlives an interrupt."""

from __future__ import annotations

import os
import threading
from itertools import count

import pytest

from benchmarks.measure import EFFORTS, Case, Key, Run, can_pin, latency, pinned, quantile


def constant(log: list[str], name: str, value: float) -> Case:
    def sample() -> dict[str, float]:
        log.append(name)
        return {"p50": value}

    return Case("subject", name, sample)


def test_everybody_is_warmed_up_and_then_sampled_once_a_round_in_an_order_that_is_shuffled() -> None:
    log: list[str] = []
    names = list("abcdef")

    Run(EFFORTS["full"]).rounds([constant(log, name, 1.0) for name in names], rounds=20)

    turns = [log[start : start + 6] for start in range(0, len(log), 6)]
    assert turns[0] == names
    assert len(turns) == 21
    assert all(sorted(turn) == names for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 10


def test_the_same_seed_gives_the_same_order() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        Run(EFFORTS["full"], seed).rounds([constant(log, name, 1.0) for name in "abcdef"], rounds=3)
        return log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_warming_up_leaves_no_sample_but_sets_the_order_of_the_table() -> None:
    values = count(1.0)
    run = Run(EFFORTS["full"])

    run.rounds([Case("subject", name, lambda: {"p50": next(values)}) for name in "ab"], rounds=2)

    assert [key.contender for key in run.samples] == ["a", "b"]
    assert sorted(value for samples in run.samples.values() for value in samples) == [3.0, 4.0, 5.0, 6.0]


def test_where_no_rounds_are_asked_for_warming_up_is_what_was_measured() -> None:
    run = Run(EFFORTS["smoke"])

    run.rounds([Case("subject", "a", lambda: {"p50": 1.0})])

    assert run.samples == {Key("", "subject", "a", "p50"): [1.0]}


def test_what_was_sampled_before_an_interrupt_is_kept() -> None:
    values = iter([0.0, 1.0, 2.0])

    def sample() -> dict[str, float]:
        try:
            return {"p50": next(values)}
        except StopIteration:
            raise KeyboardInterrupt from None

    run = Run(EFFORTS["full"])

    with pytest.raises(KeyboardInterrupt):
        run.rounds([Case("subject", "a", sample)])

    assert run.samples == {Key("", "subject", "a", "p50"): [1.0, 2.0]}


def test_a_derived_figure_is_computed_round_by_round_from_the_rounds_that_there_are() -> None:
    run = Run(EFFORTS["full"])
    one, many, hop = (Key("", subject, "a", "p50") for subject in ("one", "many", "hop"))
    run.derive(hop, [one, many], lambda low, high: (high - low) / 2)
    run.samples = {one: [1.0, 2.0, 3.0], many: [5.0, 8.0]}

    run.finish()

    assert run.samples[hop] == [2.0, 3.0]


def test_nothing_is_derived_from_what_was_not_measured() -> None:
    run = Run(EFFORTS["full"])
    one, many, hop = (Key("", subject, "a", "p50") for subject in ("one", "many", "hop"))
    run.derive(hop, [one, many], lambda low, high: high - low)
    run.samples = {one: [1.0], many: []}

    run.finish()

    assert hop not in run.samples


def test_parts_are_all_wanted_unless_some_are_named() -> None:
    assert Run(EFFORTS["full"]).wants("tail")
    assert Run(EFFORTS["full"], only=("tail",)).wants("tail")
    assert not Run(EFFORTS["full"], only=("half",)).wants("tail")


class FakeClock:
    """Counts in nanoseconds; a call takes what is next in line."""

    def __init__(self, *durations_us: int) -> None:
        self.now = 0
        self.durations = iter(durations_us)

    def __call__(self) -> int:
        return self.now

    def call(self) -> None:
        self.now += next(self.durations) * 1000


def test_latency_is_that_of_single_calls() -> None:
    clock = FakeClock(1, 1, 2, 3, 1000)

    found = latency(clock.call, seconds=0.0, clock=clock)

    assert found == {"p50": 2.0, "p99": pytest.approx(3 + 0.96 * 997)}


def test_latency_calls_for_as_long_as_it_was_told() -> None:
    clock = FakeClock(*[100] * 50)

    latency(clock.call, seconds=0.002, clock=clock)

    assert clock.now == 2_000_000


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7], 0.25, 7),
        ([1, 2], 0.5, 1.5),
        ([5, 1, 3], 0.5, 3),
        ([1, 2, 3, 4, 5], 0.25, 2),
        ([1, 2, 3, 4], 0.25, 1.75),
        ([1, 9], 1.0, 9),
    ],
)
def test_quantile(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


@pytest.mark.skipif(not can_pin, reason="this platform cannot pin threads")
def test_pinning_reaches_threads_that_run_already_and_lets_go_of_them_again() -> None:
    before = os.sched_getaffinity(0)
    asked, told = threading.Semaphore(0), threading.Semaphore(0)
    seen: list[set[int]] = []

    def look() -> None:
        for _ in range(2):
            asked.acquire()
            seen.append(os.sched_getaffinity(0))
            told.release()

    thread = threading.Thread(target=look)
    thread.start()
    with pinned():
        asked.release()
        told.acquire()
        here = os.sched_getaffinity(0)
    asked.release()
    thread.join()

    assert len(here) == 1
    assert seen == [here, before]
    assert os.sched_getaffinity(0) == before
