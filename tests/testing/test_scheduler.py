from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.doubles import IS_FREE_THREADED, garbage_of
from tests.testing import programs
from tests.testing.programs import (
    a_bit_of_everything,
    alive,
    protected_counter,
    run,
    unprotected_counter,
)
from threadserve.concurrency.waiter import deliver
from threadserve.testing import primitives, scheduler, turns
from threadserve.testing.scheduler import SimulatedKernel, StuckError, explore

ROOT = Path(scheduler.__file__).parents[2]
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


class TestSameSeed:
    @pytest.mark.parametrize("seed", range(10))
    def test_gives_the_same_run_and_the_same_trace(self, seed: int) -> None:
        first, second = SimulatedKernel(seed), SimulatedKernel(seed)

        events = first.run(lambda: a_bit_of_everything(first))

        assert second.run(lambda: a_bit_of_everything(second)) == events
        assert second.trace == first.trace
        assert len(events) == 13

    @pytest.mark.slow
    def test_gives_the_same_trace_in_another_process_under_another_hash_seed(self) -> None:
        expected = [line for seed in range(20) for line in run(a_bit_of_everything, seed).trace]

        for hash_seed in ("0", "1", "4711"):
            environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
            output = subprocess.run(
                [sys.executable, programs.__file__],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            assert output.splitlines() == expected

    def test_gives_the_same_chance(self) -> None:
        assert SimulatedKernel(7).random.random() == SimulatedKernel(7).random.random()
        assert SimulatedKernel(7).random.random() != SimulatedKernel(8).random.random()

    def test_gives_the_same_trace_whatever_the_garbage_collector_does(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            class Dropped:
                def __init__(self) -> None:
                    self.itself = self
                    self.waiter = kernel.waiter()

                def __del__(self) -> None:
                    self.waiter.set()

            for _ in range(300):
                Dropped()
                kernel.waiter().wait(0)

        threshold = gc.get_threshold()
        usual = run(main).trace
        gc.set_threshold(5, 1, 1)
        try:
            eager = run(main).trace
        finally:
            gc.set_threshold(*threshold)

        assert eager == usual
        assert gc.isenabled()

    def test_is_one_of_many_that_differ(self) -> None:
        traces = {tuple(run(a_bit_of_everything, seed).trace) for seed in range(50)}

        assert len(traces) == 50

    def test_is_traced_by_names_that_count(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            kernel.spawn("worker", lock.acquire).join()

        assert [line for line in run(main).trace if line.startswith("worker")] == [
            "worker: takes lock 3",  # the kernel's own errands and callbacks have the first two
            "worker: ends",
        ]


class TestExploring:
    def test_finds_a_lost_update(self) -> None:
        with pytest.raises(AssertionError):
            explore(unprotected_counter, 30)

    def test_finds_a_lost_wake_up(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            waiting = []
            is_ready = False

            def consume() -> None:
                with lock:
                    sleep = not is_ready
                if sleep:  # and here the news may come
                    waiter = kernel.waiter()
                    with lock:
                        waiting.append(waiter)
                    waiter.wait()

            def produce() -> None:
                nonlocal is_ready
                with lock:
                    is_ready = True
                    waiters = list(waiting)
                for waiter in waiters:
                    waiter.set()

            consumer = kernel.spawn("consumer", consume)
            kernel.spawn("producer", produce)
            consumer.join()

        with pytest.raises(StuckError, match=r"consumer waits for waiter \d+"):
            explore(main, 100)

    def test_finds_locks_that_are_taken_in_two_orders(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            locks = [kernel.lock(), kernel.lock()]

            def take(first: int, second: int) -> None:
                with locks[first], locks[second]:
                    pass

            kernel.spawn("left", lambda: take(0, 1))
            kernel.spawn("right", lambda: take(1, 0))

        with pytest.raises(StuckError) as caught:
            explore(main, 100)

        assert "left waits for lock 4, held by right" in str(caught.value)
        assert "right waits for lock 3, held by left" in str(caught.value)

    def test_finds_what_is_written_after_the_one_who_needs_it_was_woken(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            box: list[int] = []

            def answer() -> None:
                deliver([waiter])
                box.append(1)

            kernel.spawn("answers", answer)
            waiter.wait()
            assert box

        with pytest.raises(AssertionError):
            explore(main, 20)

    def test_finds_nothing_where_nothing_is_wrong(self) -> None:
        explore(protected_counter, 300)

    def test_shows_each_order_of_three_threads(self) -> None:
        orders = set()

        def main(kernel: SimulatedKernel) -> None:
            order: list[str] = []
            for name in "abc":
                kernel.spawn(name, lambda name=name: order.append(name))  # type: ignore[misc]
            kernel.waiter().wait(1)
            orders.add("".join(order))

        explore(main, 100)

        assert orders == {"abc", "acb", "bac", "bca", "cab", "cba"}

    def test_names_the_seed_and_the_end_of_the_trace(self) -> None:
        with pytest.raises(AssertionError) as caught:
            explore(unprotected_counter, range(3, 60))

        (note,) = caught.value.__notes__
        seed = int(note.partition(";")[0].removeprefix("with seed "))
        kernel = SimulatedKernel(seed)
        with pytest.raises(AssertionError):
            kernel.run(lambda: unprotected_counter(kernel))
        assert seed >= 3
        assert note.splitlines()[1:] == [f"  {line}" for line in kernel.trace[-40:]]


class TestFailure:
    def test_of_a_run_that_is_stuck_says_who_waits_where_and_for_what(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, never = kernel.lock(), kernel.waiter()

            def hold_on() -> None:
                with lock:
                    never.wait()

            kernel.spawn("holder", hold_on)
            kernel.waiter().wait(1)
            kernel.spawn("second", lock.acquire).join()

        with pytest.raises(StuckError) as caught:
            run(main)

        text = str(caught.value)
        assert "holder waits for waiter 2" in text
        assert "never.wait()" in text
        assert "in hold_on" in text
        assert "second waits for lock 3, held by holder" in text
        assert "main waits for the end of second" in text
        assert not any(str(module.__file__) in text for module in (primitives, scheduler, turns))
        assert isinstance(caught.value, AssertionError)

    def test_of_a_thread_comes_out_of_run_with_its_name(self) -> None:
        error = ValueError("wrong")

        def fail() -> None:
            raise error

        def main(kernel: SimulatedKernel) -> None:
            kernel.spawn("worker 1", fail)
            with contextlib.suppress(Exception):
                kernel.waiter().wait()

        with pytest.raises(ValueError, match="wrong") as caught:
            run(main)

        assert caught.value is error
        assert "raised in the simulated thread 'worker 1'" in error.__notes__

    def test_of_a_thread_counts_after_main_has_returned(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()

            def fail() -> None:
                for _ in range(20):
                    lock.acquire()
                    lock.release()
                raise ValueError

            kernel.spawn("worker", fail)

        with pytest.raises(ValueError):
            run(main)

    def test_of_a_thread_that_exits_is_none(self) -> None:
        run(lambda kernel: kernel.spawn("worker", sys.exit).join())

    def test_of_an_alarm_comes_out_of_run(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            kernel.call_at(1, lambda: 1 // 0)
            kernel.waiter().wait(2)

        with pytest.raises(ZeroDivisionError):
            run(main)

    def test_of_main_comes_out_as_it_is(self) -> None:
        error = KeyError("main")

        def main(kernel: SimulatedKernel) -> None:
            kernel.spawn("worker", lambda: kernel.waiter().wait())
            raise error

        with pytest.raises(KeyError) as caught:
            run(main)

        assert caught.value is error

    def test_of_a_run_that_never_ends_is_a_livelock(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()

            def spin() -> None:
                while True:
                    with lock:
                        pass

            kernel.spawn("spinner", spin).join()

        with pytest.raises(StuckError, match=r"(?s)1000 steps: a livelock.*spinner.*in spin"):
            run(main, max_steps=1000)


class TestEnd:
    @pytest.mark.parametrize("seed", range(5))
    def test_leaves_no_thread_behind(self, seed: int) -> None:
        before = alive()

        run(a_bit_of_everything, seed)

        assert alive() <= before

    @pytest.mark.parametrize("seed", range(5))
    def test_leaves_no_thread_behind_when_the_run_failed(self, seed: int) -> None:
        def main(kernel: SimulatedKernel) -> None:
            a_bit_of_everything(kernel)
            lock = kernel.lock()
            lock.acquire()
            for number in range(5):
                kernel.spawn(f"waits {number}", kernel.waiter().wait)
                kernel.spawn(f"locked out {number}", lock.acquire)
            kernel.waiter().wait()

        before = alive()

        with pytest.raises(StuckError):
            run(main, seed)

        assert alive() <= before

    def test_lets_the_others_go_on_until_they_are_parked(self) -> None:
        steps: list[int] = []

        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()

            def work() -> None:
                for step in range(20):
                    with lock:
                        steps.append(step)
                kernel.waiter().wait()

            kernel.spawn("worker", work)

        run(main)

        assert steps == list(range(20))

    def test_does_not_move_the_clock(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            kernel.call_at(5, lambda: pytest.fail("it rang"))
            kernel.spawn("sleeper", lambda: kernel.waiter().wait(3))
            kernel.waiter().wait(1)

        assert run(main).now() == 1

    def test_unwinds_what_is_parked_one_thread_after_the_other(self) -> None:
        unwound: list[str] = []

        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()

            def work(name: str) -> None:
                try:
                    kernel.waiter().wait()
                finally:
                    with lock:
                        unwound.append(name)
                        kernel.waiter().set()
                    unwound.append(name)

            for name in ("a", "b", "c"):
                kernel.spawn(name, lambda name=name: work(name))  # type: ignore[misc]

        run(main)

        assert unwound == ["a", "a", "b", "b", "c", "c"]

    def test_does_not_let_a_thread_wait_or_start_anything_any_more(self) -> None:
        reached: list[str] = []

        def main(kernel: SimulatedKernel) -> None:
            def work() -> None:
                try:
                    kernel.waiter().wait()
                finally:
                    try:
                        kernel.spawn("another", lambda: reached.append("another"))
                    finally:
                        kernel.waiter().wait(1)
                        reached.append("after the wait")

            kernel.spawn("worker", work)

        run(main)

        assert not reached

    def test_names_a_thread_that_is_deaf_to_it(self) -> None:
        is_over = False
        kernel = SimulatedKernel()

        def listen_to_nothing() -> None:
            while not is_over:
                with contextlib.suppress(BaseException):
                    kernel.waiter().wait()

        with pytest.raises(StuckError) as caught:
            kernel.run(lambda: kernel.spawn("deaf", listen_to_nothing))

        assert "deaf" in caught.value.__notes__[0]
        is_over = True
        deaf = kernel._turns.threads[1]
        assert deaf.last_steps <= 2 * turns.LAST_STEPS + 1
        deaf.baton.release()
        assert deaf.real is not None
        deaf.real.join()

    def test_names_a_thread_that_is_blocked_on_something_real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scheduler, "_PATIENCE_S", 0.01)
        real = threading.Lock()
        real.acquire()
        kernel = SimulatedKernel()

        def work() -> None:
            with contextlib.suppress(BaseException):
                kernel.waiter().wait()
            with real:
                pass

        with pytest.raises(StuckError) as caught:
            kernel.run(lambda: kernel.spawn("blocked", work))

        assert "blocked" in caught.value.__notes__[0]
        real.release()
        blocked = kernel._turns.threads[1].real
        assert blocked is not None
        blocked.join()

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the platform cannot pin a thread")
    def test_gives_back_the_processors(self) -> None:
        during = SimulatedKernel().run(lambda: os.sched_getaffinity(0))

        assert len(during) == 1
        assert os.sched_getaffinity(0) == PROCESSORS

    def test_is_the_end_of_the_kernel(self) -> None:
        kernel = run(lambda kernel: None)

        with pytest.raises(RuntimeError, match="runs once"):
            kernel.run(lambda: None)

    def test_gives_back_what_main_returned(self) -> None:
        assert SimulatedKernel().run(lambda: 42) == 42


@pytest.mark.skipif(IS_FREE_THREADED, reason="what another thread made dies later, when that thread looks")
def test_a_run_leaves_nothing_to_the_garbage_collector() -> None:
    run(a_bit_of_everything)

    def run_three() -> None:
        for seed in range(3):
            run(protected_counter, seed)

    assert garbage_of(run_three) == 0


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the system has no batch jobs")
class TestBatchJob:
    def test_is_what_a_run_is_and_nothing_after_it(self) -> None:
        before = os.sched_getscheduler(0), os.sched_getaffinity(0)

        during = SimulatedKernel().run(lambda: (os.sched_getscheduler(0), len(os.sched_getaffinity(0))))

        assert during == (os.SCHED_BATCH, 1)
        assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before

    def test_may_be_forbidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbid(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "sched_setscheduler", forbid)

        run(protected_counter)


def test_a_thread_is_a_real_one_with_its_name() -> None:
    def main(kernel: SimulatedKernel) -> None:
        seen: list[tuple[str, bool, int | None]] = []

        def look() -> None:
            begin.wait()
            current = threading.current_thread()
            seen.append((current.name, current.daemon, current.ident))

        begin = kernel.waiter()
        thread = kernel.spawn("worker 7", look)

        assert thread.is_alive()
        begin.set()
        thread.join()

        assert not thread.is_alive()
        assert seen == [("worker 7", True, thread.ident)]
        assert thread.name == "worker 7"

    run(main)


def test_a_thread_does_not_wait_for_its_own_end() -> None:
    def main(kernel: SimulatedKernel) -> None:
        waiter = kernel.waiter()

        def wait_for_itself() -> None:
            waiter.wait()
            with pytest.raises(RuntimeError, match="cannot join itself"):
                narcissus.join()

        narcissus = kernel.spawn("narcissus", wait_for_itself)
        waiter.set()
        narcissus.join()

    run(main)
