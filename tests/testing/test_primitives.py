from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.programs import run
from threadserve.testing.scheduler import SimulatedKernel, StuckError, explore

# TODO
    @given(delays=st.lists(st.floats(min_value=-1, max_value=1e6)), seed=st.integers(0, 1000))
    @settings(deadline=None, max_examples=50)
    def test_rings_alarms_in_order(self, delays: list[float], seed: int) -> None:
        rung: list[tuple[float, float]] = []

        def main(kernel: SimulatedKernel) -> None:
            for delay in delays:
                kernel.call_at(delay, lambda delay=delay: rung.append((delay, kernel.now())))  # type: ignore[misc]
            kernel.waiter().wait(2e6)

        run(main, seed)

        assert sorted(delay for delay, _ in rung) == sorted(delays)
        future = [(delay, now) for delay, now in rung if delay > 0]
        assert future == sorted((delay, delay) for delay in delays if delay > 0)

    def test_never_comes_to_infinity(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            kernel.call_at(math.inf, lambda: pytest.fail("it rang"))
            kernel.waiter().wait(math.inf)

        with pytest.raises(StuckError):
            run(main)

    def test_lets_a_timeout_and_what_ends_it_come_in_either_order(self) -> None:
        ends = set()

        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            kernel.call_at(5, waiter.set)
            ends.add((waiter.wait(5), kernel.now()))

        explore(main, 30)

        assert ends == {(True, 5), (False, 5)}

    def test_refuses_what_can_only_be_a_mistake(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, waiter = kernel.lock(), kernel.waiter()
            lock.acquire()

            def steal() -> None:
                with pytest.raises(RuntimeError, match=r"thief releases lock 3, held by main"):
                    lock.release()

            kernel.spawn("thief", steal).join()

            def wait_for_itself() -> None:
                waiter.wait()
                with pytest.raises(RuntimeError, match="cannot join itself"):
                    narcissus.join()

            narcissus = kernel.spawn("narcissus", wait_for_itself)
            waiter.set()
            narcissus.join()

        run(main)

    def test_finds_what_is_no_longer_so_when_a_waiter_is_set(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            announced: list[str] = []

            def announce() -> None:
                announced.append("it is set")
                waiter.set()

            def believe() -> None:
                if announced:
                    assert waiter.wait(0)

            kernel.spawn("announces", announce)
            kernel.spawn("believes", believe)

        with pytest.raises(AssertionError):
            explore(main, 50)
