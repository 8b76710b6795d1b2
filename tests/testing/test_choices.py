"""Strategies: who goes on at a switch point."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadserve.testing.choices import PCT, Exhaustive, Random, Replay, RoundRobin, named
from threadserve.testing.scheduler import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.testing.choices import Schedule, Strategy

MAKERS: list[Callable[[], Strategy]] = [Random, PCT, RoundRobin, lambda: Replay([3, 1, 4, 1, 5]), Exhaustive]


def order(schedule: Schedule, threads: int = 3, steps: int = 2) -> tuple[str, list[int]]:
    """Let threads log their steps under a lock, and return the log and the choices."""
    kernel = SimulatedKernel(schedule=schedule)
    log: list[str] = []

    def main() -> None:
        lock = kernel.lock()

        def work(name: str) -> None:
            for _ in range(steps):
                with lock:
                    log.append(name)

        spawned = [kernel.spawn(name, lambda name=name: work(name)) for name in "abcdef"[:threads]]  # type: ignore[misc]
        for thread in spawned:
            thread.join()

    kernel.run(main)
    return "".join(log), kernel.turns.choices


class TestEveryStrategy:
    @pytest.mark.parametrize("make", MAKERS)
    @given(data=st.data())
    def test_chooses_one_that_can_go_on(self, make: Callable[[], Strategy], data: st.DataObject) -> None:
        schedule = make().schedule(data.draw(st.integers()))
        assert schedule is not None
        for _ in range(20):
            others = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True))
            current = data.draw(st.sampled_from([None, 0]))
            assert 0 <= schedule.choose(current, others) < len(others) + (current is not None)
            limit = data.draw(st.integers(1, 5))
            assert 0 <= schedule.draw(limit) < limit

    @pytest.mark.parametrize("make", MAKERS)
    def test_gives_the_same_schedule_for_the_same_seed(self, make: Callable[[], Strategy]) -> None:
        first, second = make().schedule(5), make().schedule(5)
        assert first is not None
        assert second is not None

        assert order(first) == order(second)

    @pytest.mark.parametrize("make", MAKERS)
    def test_is_replayed_by_its_choices(self, make: Callable[[], Strategy]) -> None:
        schedule = make().schedule(11)
        assert schedule is not None
        log, choices = order(schedule)

        assert order(Replay(choices).schedule(0)) == (log, choices)


class TestRandom:
    def test_shows_most_orders(self) -> None:
        orders = {order(Random().schedule(seed), 3, 1)[0] for seed in range(200)}

        assert len(orders) == math.factorial(3)


class TestPCT:
    def test_of_depth_1_never_preempts_a_thread_for_one_that_was_there_before(self) -> None:
        for seed in range(50):
            schedule = PCT(depth=1).schedule(seed)
            ranks = [schedule.choose(None, [n, 9]) for n in range(1, 9)]
            again = [schedule.choose(None, [n, 9]) for n in range(1, 9)]
            assert ranks == again

    def test_finds_orders_with_few_switches(self) -> None:
        strategy = PCT(depth=3)
        orders = {order(strategy.schedule(seed))[0] for seed in range(300)}

        assert {"aabbcc", "ccbbaa", "abbcca"} & orders
        assert len(orders) > 10

    def test_learns_how_long_a_run_is(self) -> None:
        strategy = PCT(depth=2)
        for _ in range(2):
            order(strategy.schedule(1), 5, 5)

        assert strategy._last is not None
        assert strategy._last.made > 10

    def test_refuses_a_depth_of_none(self) -> None:
        with pytest.raises(ValueError, match="depth must be 1 or more, not 0"):
            PCT(depth=0)


class TestRoundRobin:
    def test_lets_everybody_have_a_turn(self) -> None:
        schedule = RoundRobin(quantum=2).schedule(0)

        assert [schedule.choose(0, [1, 2]) for _ in range(6)] == [0, 1, 0, 1, 0, 1]

    def test_refuses_a_quantum_of_none(self) -> None:
        with pytest.raises(ValueError, match="quantum must be 1 or more, not 0"):
            RoundRobin(quantum=0)


class TestReplay:
    def test_without_choices_switches_nobody_who_can_go_on(self) -> None:
        log, choices = order(Replay().schedule(0))

        assert log == "aabbcc"
        assert not any(choices)

    @given(st.lists(st.integers(0, 9)))
    def test_takes_any_list(self, choices: list[int]) -> None:
        log, _ = order(Replay(choices).schedule(0))

        assert sorted(log) == list("aabbcc")


class TestExhaustive:
    def test_sees_every_order_and_says_so(self) -> None:
        strategy = Exhaustive(preemptions=2)
        orders, runs = set(), 0
        while (schedule := strategy.schedule(0)) is not None:
            orders.add(order(schedule, 2, 2)[0])
            runs += 1

        assert len(orders) == math.comb(4, 2)
        assert runs < 1000

    def test_runs_no_schedule_twice(self) -> None:
        strategy = Exhaustive(preemptions=1)
        seen = []
        while (schedule := strategy.schedule(0)) is not None:
            seen.append(tuple(order(schedule, 2, 1)[1]))

        assert len(seen) == len(set(seen)) > 2

    def test_begins_with_no_preemption_and_keeps_to_its_bound(self) -> None:
        strategy = Exhaustive(preemptions=0)
        logs = []
        while (schedule := strategy.schedule(0)) is not None:
            logs.append(order(schedule, 3, 2)[0])

        assert logs[0] == "aabbcc"
        assert set(logs) == {"aabbcc", "aaccbb", "bbaacc", "bbccaa", "ccaabb", "ccbbaa"}


def test_a_strategy_is_found_by_its_name() -> None:
    assert isinstance(named("pct"), PCT)
    assert named(replay := Replay()) is replay
    with pytest.raises(ValueError, match="no strategy 'none'"):
        named("none")
