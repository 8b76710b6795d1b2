from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.programs import run
from threadserve.testing.scheduler import SimulatedKernel, StuckError, explore


class TestLock:
    def test_is_released_by_its_holder_only(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            with pytest.raises(RuntimeError, match="release unlocked lock"):
                lock.release()
            lock.acquire()

            def steal() -> None:
                with pytest.raises(RuntimeError, match=r"thief releases lock 3, held by main"):
                    lock.release()

            kernel.spawn("thief", steal).join()

        run(main)

    def test_that_is_taken_is_asked_for_or_waited_for_as_long_as_one_likes(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            lock.acquire()

            def ask() -> None:
                assert not lock.acquire(blocking=False)
                assert kernel.now() == 0
                assert not lock.acquire(timeout=5)
                assert kernel.now() == 5
                assert lock.acquire(timeout=5)
                assert kernel.now() == 7

            other = kernel.spawn("other", ask)
            kernel.waiter().wait(7)
            lock.release()
            other.join()

        explore(main, 20)

    def test_is_for_one_at_a_time_and_for_each_in_the_end(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            inside: list[str] = []

            def enter(name: str) -> None:
                with lock:
                    inside.append(name)
                    kernel.waiter().wait(1)
                    assert inside[-1] == name

            threads = [kernel.spawn(name, lambda name=name: enter(name)) for name in "abc"]  # type: ignore[misc]
            for thread in threads:
                thread.join()
            assert sorted(inside) == ["a", "b", "c"]
            assert kernel.now() == 3

        explore(main, 20)


class TestWaiter:
    def test_that_was_set_before_does_not_wait_and_is_used_up(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            waiter.set()
            waiter.set()

            assert waiter.wait(1)
            assert kernel.now() == 0
            assert not waiter.wait(1)
            assert kernel.now() == 1

        run(main)

    def test_lets_a_timeout_and_what_ends_it_come_in_either_order(self) -> None:
        ends = set()

        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            kernel.call_at(5, waiter.set)
            ends.add((waiter.wait(5), kernel.now()))

        explore(main, 30)

        assert ends == {(True, 5), (False, 5)}

    def test_may_be_waited_on_before_it_is_set_whatever_was_announced(self) -> None:
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


class TestAlarm:
    @given(delays=st.lists(st.floats(min_value=-1, max_value=1e6)), seed=st.integers(0, 1000))
    @settings(max_examples=50)
    def test_rings_in_its_order(self, delays: list[float], seed: int) -> None:
        rung: list[tuple[float, float]] = []

        def main(kernel: SimulatedKernel) -> None:
            for delay in delays:
                kernel.call_at(delay, lambda delay=delay: rung.append((delay, kernel.now())))  # type: ignore[misc]
            kernel.waiter().wait(2e6)

        run(main, seed)

        assert sorted(delay for delay, _ in rung) == sorted(delays)
        future = [(delay, now) for delay, now in rung if delay > 0]
        assert future == sorted((delay, delay) for delay in delays if delay > 0)

    def test_at_infinity_never_rings(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            kernel.call_at(math.inf, lambda: pytest.fail("it rang"))
            kernel.waiter().wait(math.inf)

        with pytest.raises(StuckError):
            run(main)

    def test_that_is_cancelled_does_not_ring(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            alarm = kernel.call_at(5, lambda: pytest.fail("it rang"))
            kernel.call_at(1, alarm.cancel)
            kernel.waiter().wait(10)
            alarm.cancel()

        explore(main, 20)
