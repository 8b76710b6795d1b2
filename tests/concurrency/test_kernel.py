"""The contract of a Kernel, kept by the real one and by the simulator under a number of seeds."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

from threadserve.concurrency.lock import acquire_within
from threadserve.concurrency.real import RealKernel
from threadserve.testing.scheduler import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel, Timer

    Run = Callable[[Callable[[Kernel], Any]], None]

SOON = 0.01
LATE = 30.0  # longer than anything here takes; a wait that lasts so long has failed


def on_the_real_kernel(test: Callable[[Kernel], Any]) -> None:
    test(RealKernel())


def on_the_simulator(test: Callable[[Kernel], Any]) -> None:
    explore(test, 30)


@pytest.fixture(params=[on_the_real_kernel, on_the_simulator], ids=["real", "simulated"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


class TestLock:
    def test_is_held_by_one_at_a_time(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            lock = kernel.lock()
            inside: list[str] = []
            seen: list[list[str]] = []

            def work(name: str) -> None:
                for _ in range(5):
                    with lock:
                        inside.append(name)
                        kernel.waiter().wait(0)
                        seen.append(list(inside))
                        inside.remove(name)

            threads = [kernel.spawn(name, functools.partial(work, name)) for name in "abc"]
            for thread in threads:
                thread.join(LATE)

            assert len(seen) == 15
            assert all(len(names) == 1 for names in seen)

        run(scenario)

    def test_that_is_taken_is_not_taken_again_without_waiting(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            lock = kernel.lock()
            results: list[bool] = []

            assert acquire_within(lock, 0)
            kernel.spawn("other", lambda: results.append(acquire_within(lock, 0))).join(LATE)
            assert not acquire_within(lock, 0)
            lock.release()
            kernel.spawn("other", lambda: results.append(acquire_within(lock, 0))).join(LATE)

            assert results == [False, True]

        run(scenario)

    def test_waits_only_as_long_as_it_was_told(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            lock = kernel.lock()
            lock.acquire()
            start = kernel.now()

            assert not acquire_within(lock, SOON)
            assert kernel.now() >= start + SOON
            assert not acquire_within(lock, 0)

        run(scenario)

    def test_is_had_by_all_who_wait_for_it_though_one_gives_up(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            lock = kernel.lock()
            had: list[str] = []

            def take(name: str, timeout: float) -> None:
                if acquire_within(lock, timeout):
                    had.append(name)
                    lock.release()

            lock.acquire()
            threads = [kernel.spawn(f"hasty {i}", lambda: take("hasty", SOON)) for i in range(2)]
            threads += [kernel.spawn(f"patient {i}", lambda: take("patient", LATE)) for i in range(2)]
            kernel.waiter().wait(SOON)
            lock.release()
            for thread in threads:
                thread.join(LATE)

            assert had.count("patient") == 2

        run(scenario)

    def test_that_nobody_holds_cannot_be_released_in_the_simulator(
        self,
    ) -> None:  # the real one does not look
        def scenario(kernel: Kernel) -> None:
            with pytest.raises(RuntimeError, match="release unlocked lock"):
                kernel.lock().release()

        on_the_simulator(scenario)

    def test_is_released_when_its_block_raises(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            lock = kernel.lock()

            with pytest.raises(KeyError), lock:
                raise KeyError

            assert acquire_within(lock, 0)

        run(scenario)


class TestWaiter:
    def test_ends_when_it_is_set(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            waiter = kernel.waiter()
            kernel.spawn("sets", waiter.set)

            assert waiter.wait()

        run(scenario)

    def test_may_be_set_in_advance_and_more_than_once(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            waiter = kernel.waiter()
            waiter.set()
            waiter.set()

            assert waiter.wait(0)
            waiter.set()

        run(scenario)

    @pytest.mark.parametrize("timeout", [SOON, 0, -1])
    def test_ends_when_its_time_is_over(self, run: Run, timeout: float) -> None:
        def scenario(kernel: Kernel) -> None:
            start = kernel.now()

            assert not kernel.waiter().wait(timeout)
            assert kernel.now() >= start + timeout

        run(scenario)

    def test_may_wait_without_end(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            waiter = kernel.waiter()
            kernel.call_at(kernel.now() + SOON, waiter.set)

            assert waiter.wait(math.inf)

        run(scenario)

    def test_that_gave_up_may_still_be_set(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            waiter = kernel.waiter()

            waiter.wait(0)
            waiter.set()

            assert waiter.wait(0)

        run(scenario)

    def test_hands_a_ball_back_and_forth(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            ball = [kernel.waiter() for _ in range(101)]

            def play(first: int) -> None:
                for hit in range(first, 100, 2):
                    ball[hit].wait()
                    ball[hit + 1].set()

            players = [kernel.spawn("left", lambda: play(0)), kernel.spawn("right", lambda: play(1))]
            ball[0].set()

            assert ball[100].wait(LATE)
            for player in players:
                player.join(LATE)

        run(scenario)


class TestTimer:
    def test_rings_at_its_time_and_in_order(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            rung: list[str] = []
            times: list[float] = []
            done = kernel.waiter()
            start = kernel.now()

            def ring(name: str) -> None:
                rung.append(name)
                times.append(kernel.now())

            kernel.call_at(start + 3 * SOON, done.set)
            kernel.call_at(start + 2 * SOON, lambda: ring("late"))
            kernel.call_at(start + SOON, lambda: ring("early"))
            kernel.call_at(start - 1, lambda: ring("past"))
            assert done.wait(LATE)

            assert rung == ["past", "early", "late"]
            assert times[1] >= start + SOON
            assert times[2] >= start + 2 * SOON

        run(scenario)

    def test_that_is_cancelled_does_not_ring(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            rung: list[str] = []
            done = kernel.waiter()
            timer = kernel.call_at(kernel.now() + SOON, lambda: rung.append("cancelled"))
            kernel.call_at(kernel.now() + SOON, done.set)

            timer.cancel()
            timer.cancel()

            assert done.wait(LATE)
            assert not rung

        run(scenario)

    def test_may_be_cancelled_by_one_that_rings_with_it(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            rung: list[str] = []
            ready, done = kernel.waiter(), kernel.waiter()
            kernel.call_at(kernel.now() - 1, lambda: ready.wait(LATE))  # so that both are due at once
            due = kernel.now() - 1
            timers: list[Timer] = []

            def cancel_all() -> None:
                for timer in timers:
                    timer.cancel()

            kernel.call_at(due, cancel_all)
            timers.append(kernel.call_at(due, lambda: rung.append("second")))
            kernel.call_at(due, done.set)
            ready.set()

            assert done.wait(LATE)
            assert not rung

        run(scenario)

    def test_that_has_rung_may_be_cancelled(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            done = kernel.waiter()
            timer = kernel.call_at(kernel.now(), done.set)
            assert done.wait(LATE)

            timer.cancel()

        run(scenario)


class TestThread:
    def test_runs_under_its_name_until_it_is_joined(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            go = kernel.waiter()
            seen: list[tuple[str, int | None, bool]] = []

            def work() -> None:
                current = threading.current_thread()
                seen.append((current.name, current.ident, current.daemon))
                go.wait()

            thread = kernel.spawn("shop worker 1", work)
            thread.join(SOON)
            assert thread.is_alive()
            go.set()
            thread.join()

            assert not thread.is_alive()
            assert thread.name == "shop worker 1"
            assert seen == [("shop worker 1", thread.ident, True)]

        run(scenario)

    def test_starts_in_an_empty_context(self, run: Run) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

        def scenario(kernel: Kernel) -> None:
            seen: list[str | None] = []
            variable.set("the starter's")

            kernel.spawn("worker", lambda: seen.append(variable.get(None))).join(LATE)

            assert seen == [None]

        contextvars.copy_context().run(run, scenario)

    def test_may_be_joined_by_many_and_afterwards(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            go = kernel.waiter()
            joined: list[bool] = []
            thread = kernel.spawn("worker", go.wait)

            def join() -> None:
                thread.join()
                joined.append(True)

            others = [kernel.spawn(f"joins {i}", join) for i in range(3)]
            go.set()
            for other in others:
                other.join(LATE)
            thread.join()

            assert joined == [True] * 3

        run(scenario)


class TestEventLoop:
    def test_runs_coroutines_on_the_clock(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            async def main() -> str:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(SOON):
                        await asyncio.sleep(LATE)
                return await asyncio.sleep(SOON, "slept")

            loop = kernel.new_event_loop()
            start = kernel.now()

            assert loop.run_until_complete(main()) == "slept"
            assert kernel.now() >= start + 1.9 * SOON
            loop.close()

        run(scenario)

    def test_is_woken_from_other_threads(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            loop = kernel.new_event_loop()
            heard: list[str] = []

            def send(name: str) -> None:
                for _ in range(3):
                    loop.call_soon_threadsafe(heard.append, name)

            server = kernel.spawn("loop", loop.run_forever)
            clients = [kernel.spawn(name, functools.partial(send, name)) for name in "abc"]
            for client in clients:
                client.join(LATE)
            loop.call_soon_threadsafe(loop.stop)
            server.join(LATE)

            assert sorted(heard) == sorted("abc" * 3)
            loop.close()

        run(scenario)

    def test_runs_what_blocks_beside_it(self, run: Run) -> None:
        def scenario(kernel: Kernel) -> None:
            async def main() -> int:
                return await asyncio.to_thread(lambda: 42)

            loop = kernel.new_event_loop()

            assert loop.run_until_complete(main()) == 42
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

        run(scenario)


class TestServices:
    @pytest.mark.parametrize("service", ["errands", "callbacks"])
    def test_run_what_was_posted_on_threads_of_their_own(self, run: Run, service: str) -> None:
        def scenario(kernel: Kernel) -> None:
            done = kernel.waiter()
            idents: list[int] = []

            def note() -> None:
                idents.append(threading.get_ident())
                done.set()

            chosen = getattr(kernel, service)
            chosen.start()
            chosen.post(note)

            assert done.wait(LATE)
            assert idents != [threading.get_ident()]

        run(scenario)

    def test_have_chance(self, run: Run) -> None:
        run(lambda kernel: kernel.random.choice([1, 2, 3]))
