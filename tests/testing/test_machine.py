"""``ServeStateMachine``: an app that keeps its promises passes, one that does not is told with the few deeds it takes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

import threadserve as serve
from threadserve.testing.doubles import Call
from threadserve.testing.machine import ServeStateMachine, World
from threadserve.testing.simulator import current_simulation, simulation

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=300, stateful_step_count=8, derandomize=True)


class Stock:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = 3

    def take(self, count: int) -> bool:
        with self.lock:
            if count < 0 or self.left < count:
                return False
            current_simulation().advance(0.01)
            self.left -= count
            return True

    def show(self) -> int:
        return self.left

    def items(self, count: int) -> Iterator[int]:
        yield from range(min(count, 5))


class CarelessStock(Stock):
    def take(self, count: int) -> bool:
        if count < 0 or self.left < count:
            return False
        current_simulation().advance(0.01)
        self.left -= count
        return True


class Suspicious(Stock):
    def take(self, count: int) -> bool:
        assert count != 2, "two is not sold"
        return True


class StockMachine(ServeStateMachine):
    app = serve.deployment(Stock).options(max_ongoing_requests=2).bind()

    @rule(count=st.integers(1, 3))
    def take(self, count: int) -> None:
        self.call("take", count)

    @invariant()
    def never_below_zero(self) -> None:
        assert self.ask("show") >= 0


@pytest.mark.slow
def test_an_app_that_keeps_its_promises_passes() -> None:
    run_state_machine_as_test(StockMachine, settings=FEW)


@pytest.mark.slow
def test_a_race_is_found_by_an_invariant_and_shrinks_to_few_calls() -> None:
    class Careless(StockMachine):
        app = serve.deployment(CarelessStock).options(max_ongoing_requests=2).bind()
        read_stream = leave_stream = let_time_pass = delete_and_run = None  # type: ignore[assignment]

    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(Careless, settings=MANY)

    told = "\n".join(caught.value.__notes__)
    assert 2 <= told.count("state.take(") + told.count("state.make_call(") <= 3
    assert "state.crash(" not in told
    assert "state.redeploy(" not in told


@pytest.mark.slow
def test_an_assertion_in_a_deployment_fails_the_machine_though_nobody_asked_for_the_answer() -> None:
    class Quiet(ServeStateMachine):
        app = serve.deployment(Suspicious).bind()
        calls = st.integers(0, 9).map(lambda count: Call("take", (count,)))

    with pytest.raises(AssertionError, match="two is not sold") as caught:
        run_state_machine_as_test(Quiet, settings=MANY)

    assert "\n".join(caught.value.__notes__).count("state.make_call") == 1


def test_a_rule_can_be_taken_away() -> None:
    class Gentle(StockMachine):
        crash = delete_and_run = redeploy = None  # type: ignore[assignment]

    names = {each.function.__name__ for each in Gentle().rules}

    assert {"take", "make_call", "cancel"} <= names
    assert not {"crash", "delete_and_run", "redeploy"} & names


class TestWorld:
    def test_deeds_are_done_inside_one_after_the_other_and_time_stands_still_between(self) -> None:
        world = World(simulation())
        try:
            world.do(lambda: current_simulation().advance(5))
            assert world.do(lambda: current_simulation().now) == pytest.approx(5)
        finally:
            world.end()

    def test_what_a_deed_raises_comes_out_and_the_world_goes_on(self) -> None:
        def fail() -> None:
            raise KeyError("deed")

        world = World(simulation())
        try:
            with pytest.raises(KeyError):
                world.do(fail)
            assert world.do(lambda: 3) == 3
        finally:
            world.end()

    def test_after_its_end_nothing_is_done(self) -> None:
        world = World(simulation())
        world.end()

        with pytest.raises(RuntimeError, match="has come to its end"):
            world.do(lambda: 3)
