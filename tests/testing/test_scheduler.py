from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threadserve.concurrency.waiter import ThreadWaiter, deliver
from threadserve.testing import scheduler
from threadserve.testing.scheduler import SimulatedKernel, StuckError, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ROOT = Path(scheduler.__file__).parents[2]
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def a_bit_of_everything(kernel: SimulatedKernel) -> list[str]:
    """Threads, locks, timeouts, timers, a loop and chance; returns in which order things happened."""
    events: list[str] = []
    lock = kernel.lock()
    news = kernel.waiter()
    loop = kernel.new_event_loop()

    def note(event: str) -> None:
        with lock:
            events.append(f"{kernel.now():g} {event}")

    def serve() -> None:
        loop.run_forever()

    def work(name: str) -> None:
        for step in range(3):
            note(f"{name} {step}")
            kernel.waiter().wait(kernel.random.choice([0, 1, 2]))
        loop.call_soon_threadsafe(note, f"{name} on the loop")

    threads = [kernel.spawn(name, lambda name=name: work(name)) for name in ("a", "b", "c")]  # type: ignore[misc]
    kernel.spawn("loop", serve)
    kernel.call_at(2.0, lambda: note("alarm"))
    kernel.call_at(3.0, news.set)
    for thread in threads:
        thread.join()
    news.wait()
    return events


def unprotected_counter(kernel: SimulatedKernel) -> None:
    """Two threads count to two; but each lets go of the lock between reading and writing."""
    lock = kernel.lock()
    count = 0

    def increment() -> None:
        nonlocal count
        with lock:
            read = count
        with lock:
            count = read + 1

    threads = [kernel.spawn(name, increment) for name in ("one", "two")]
    for thread in threads:
        thread.join()
    assert count == 2


def protected_counter(kernel: SimulatedKernel) -> None:
    lock = kernel.lock()
    count = 0

    def increment() -> None:
        nonlocal count
        with lock:
            count += 1

    threads = [kernel.spawn(name, increment) for name in ("one", "two")]
    for thread in threads:
        thread.join()
    assert count == 2


def run(main: Callable[[SimulatedKernel], Any], seed: int = 0, **options: int) -> SimulatedKernel:
    kernel = SimulatedKernel(seed, **options)
    kernel.run(lambda: main(kernel))
    return kernel


def alive() -> set[threading.Thread]:
    return set(threading.enumerate())


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
                [sys.executable, __file__], env=environment, check=True, capture_output=True, text=True
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


class TestTime:
    def test_passes_at_once_and_exactly(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            assert kernel.now() == 0.0

            assert not kernel.waiter().wait(86_400)
            assert kernel.now() == 86_400

            lock = kernel.lock()
            lock.acquire()
            thread = kernel.spawn("late", lambda: lock.acquire(timeout=60))
            thread.join(15)
            assert thread.is_alive()
            assert kernel.now() == 86_415
            thread.join()
            assert kernel.now() == 86_460

        run(main)

    def test_stands_still_while_anybody_can_run(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waited = False

            def wait() -> None:
                nonlocal waited
                waited = not kernel.waiter().wait(0.001)

            thread = kernel.spawn("waits", wait)
            for _ in range(1000):
                kernel.waiter().wait(0)
            assert not waited
            thread.join()
            assert waited

        explore(main, 5)

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

    def test_does_not_stop_at_a_timeout_that_came_to_nothing(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            thread = kernel.spawn("waits", lambda: waiter.wait(10))
            waiter.set()
            thread.join()
            kernel.waiter().wait(20)

            assert [line for line in kernel.trace if "clock" in line] == ["the clock: 20"]

        explore(main, 20)

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
                deliver([ThreadWaiter(waiter)])
                box.append(1)

            kernel.spawn("answers", answer)
            waiter.wait()
            assert box

        with pytest.raises(AssertionError):
            explore(main, 20)

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

    @pytest.mark.slow
    @pytest.mark.timing
    def test_takes_seconds_for_a_thousand_seeds(self) -> None:
        start = time.perf_counter()
        explore(protected_counter, 1000)

        assert time.perf_counter() - start < 5

    @pytest.mark.timing
    def test_costs_microseconds_a_switch(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            ball = [kernel.waiter() for _ in range(1001)]

            def play(first: int) -> None:
                for hit in range(first, 1000, 2):
                    ball[hit].wait()
                    ball[hit + 1].set()

            kernel.spawn("left", lambda: play(0))
            kernel.spawn("right", lambda: play(1))
            ball[0].set()
            ball[1000].wait()

        start = time.perf_counter()
        run(main)

        assert (time.perf_counter() - start) / 1000 < 0.000_200


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
        assert scheduler.__file__ not in text
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

        assert alive() == before

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

        assert alive() == before

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
        deaf = kernel._threads[1]
        assert deaf.last_steps <= 2 * scheduler._LAST_STEPS + 1
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
        blocked = kernel._threads[1].real
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


class TestControl:
    @pytest.mark.parametrize(
        "use",
        [
            lambda kernel, lock, waiter: lock.acquire(),
            lambda kernel, lock, waiter: lock.release(),
            lambda kernel, lock, waiter: waiter.wait(0),
            lambda kernel, lock, waiter: kernel.spawn("thread", print),
            lambda kernel, lock, waiter: kernel.call_at(1, print),
            lambda kernel, lock, waiter: kernel.new_event_loop().run_forever(),
        ],
        ids=["acquire", "release", "wait", "spawn", "call_at", "event loop"],
    )
    def test_is_asked_of_every_thread_that_uses_the_kernel(self, use: Callable[..., object]) -> None:
        errors: list[str] = []

        def main(kernel: SimulatedKernel) -> None:
            lock, waiter = kernel.lock(), kernel.waiter()

            def intrude() -> None:
                with pytest.raises(RuntimeError) as caught:
                    use(kernel, lock, waiter)
                errors.append(str(caught.value))

            thread = threading.Thread(target=intrude, name="stranger")
            thread.start()
            thread.join()

        run(main)

        assert "'stranger' is not under control" in errors[0]

    def test_is_asked_before_and_after_the_run(self) -> None:
        kernel = SimulatedKernel()
        lock = kernel.lock()

        with pytest.raises(RuntimeError, match="not under control"):
            lock.acquire()
        kernel.run(lambda: None)
        with pytest.raises(RuntimeError, match="not under control"):
            lock.acquire()

    def test_is_not_asked_of_who_sets_a_waiter_or_posts_an_errand(self) -> None:
        done: list[str] = []

        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            kernel.errands.start()

            def notify() -> None:
                waiter.set()
                kernel.errands.post(lambda: done.append("errand"))

            thread = threading.Thread(target=notify)
            thread.start()
            thread.join()
            waiter.wait()

        explore(main, 10)

        assert done == ["errand"] * 10

    def test_makes_a_thread_a_real_one_with_its_name(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            seen: list[threading.Thread] = []
            thread = kernel.spawn("worker 7", lambda: seen.append(threading.current_thread()))

            assert thread.is_alive()
            thread.join()

            assert not thread.is_alive()
            assert (seen[0].name, seen[0].daemon, seen[0].ident) == ("worker 7", True, thread.ident)
            assert thread.name == "worker 7"

        run(main)

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


class Interrupting(list[str]):
    """A trace that lets something happen in the middle of the kernel, when `what` is traced."""

    def __init__(self, what: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._what = what
        self._act = act

    def append(self, line: str) -> None:
        super().append(line)
        if self._what in line:
            self._act()


class Finalized:
    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __del__(self) -> None:
        self._act()


def in_a_finalizer(act: Callable[[], object]) -> None:
    hostage = Finalized(act)
    del hostage


def in_a_signal_handler(act: Callable[[], object]) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: act())
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


class TestInterruption:
    @pytest.mark.parametrize("interrupt", [in_a_finalizer, in_a_signal_handler])
    @pytest.mark.parametrize(
        "moment", ["main: takes", "main: releases", "main: waits", "main: starts", "main: sets"]
    )
    def test_in_the_middle_of_the_kernel_may_set_a_waiter(
        self, interrupt: Callable[[Callable[[], object]], None], moment: str
    ) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, news = kernel.lock(), kernel.waiter()
            kernel.trace = Interrupting(moment, lambda: interrupt(news.set))
            with lock:
                pass
            kernel.spawn("worker", lambda: None)
            kernel.waiter().set()
            kernel.waiter().wait(1)

            assert news.wait(10)

        explore(main, 20)

    @pytest.mark.parametrize("interrupt", [in_a_finalizer, in_a_signal_handler])
    def test_in_the_middle_of_the_kernel_may_post_an_errand(
        self, interrupt: Callable[[Callable[[], object]], None]
    ) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, done = kernel.lock(), kernel.waiter()
            kernel.errands.start()
            kernel.trace = Interrupting(
                "main: takes", lambda: interrupt(lambda: kernel.errands.post(done.set))
            )
            with lock:
                pass

            assert done.wait(1)

        explore(main, 20)

    @pytest.mark.parametrize("place", ["closure", "context"])
    def test_by_what_dies_with_a_thread_comes_while_the_thread_has_its_turn(self, place: str) -> None:
        variable: ContextVar[Finalized] = ContextVar("variable")

        def main(kernel: SimulatedKernel) -> None:
            last_words, go = kernel.waiter(), kernel.waiter()

            def closure() -> Callable[[], object]:
                hostage = Finalized(last_words.set)
                return lambda: go.wait() and hostage

            def context() -> object:
                return variable.set(Finalized(last_words.set))

            kernel.spawn("worker", closure() if place == "closure" else context)
            go.set()
            last_words.wait()
            assert "worker: sets waiter 2" in kernel.trace

        explore(main, 20)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_that_takes_a_lock_fails_the_run(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, other = kernel.lock(), kernel.lock()
            kernel.trace = Interrupting("main: takes lock 3", lambda: in_a_finalizer(other.acquire))
            lock.acquire()
            kernel.waiter().wait(1)

        with pytest.raises(RuntimeError, match="a finalizer or signal handler took a lock"):
            run(main)

    def test_by_the_garbage_collector_at_any_moment_may_set_a_waiter(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            class Cycle:
                def __init__(self) -> None:
                    self.itself = self
                    self.waiter = kernel.waiter()

                def __del__(self) -> None:
                    self.waiter.set()
                    collected.append(self)

            lock = kernel.lock()
            for _ in range(300):
                Cycle()
                with lock:
                    kernel.waiter().wait(0)

        collected: list[object] = []
        kernel = SimulatedKernel(3)
        threshold = gc.get_threshold()
        gc.set_threshold(3, 1, 1)

        def collecting() -> None:
            gc.enable()
            main(kernel)

        try:
            kernel.run(collecting)
        finally:
            gc.set_threshold(*threshold)

        assert len(collected) > 100


class TestCtrlC:
    def test_ends_the_run_in_order_while_main_waits(self) -> None:
        before = alive()
        handler = signal.getsignal(signal.SIGINT)
        unwound: list[str] = []
        main_thread = threading.get_ident()

        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()

            def press_and_go_on() -> None:
                try:
                    signal.pthread_kill(main_thread, signal.SIGINT)
                    while True:
                        with lock:
                            pass
                finally:
                    unwound.append("worker")

            try:
                kernel.spawn("worker", press_and_go_on).join()
            finally:
                unwound.append("main")

        with pytest.raises(KeyboardInterrupt):
            run(main, max_steps=10**9)

        assert unwound == ["main", "worker"]
        assert alive() == before
        assert signal.getsignal(signal.SIGINT) is handler

    def test_strikes_at_once_in_the_code_of_main(self) -> None:
        def main(kernel: SimulatedKernel) -> str:
            kernel.spawn("worker", kernel.waiter().wait)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            kernel.waiter().wait(1)
            return "went on"

        kernel = SimulatedKernel()

        assert kernel.run(lambda: main(kernel)) == "went on"

    def test_in_the_middle_of_the_kernel_ends_the_run_at_the_next_switch_point(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            kernel.trace = Interrupting("main: takes", lambda: signal.raise_signal(signal.SIGINT))
            with lock:
                taken.append(lock)
            kernel.waiter().wait(1)
            pytest.fail("it went on")

        taken: list[object] = []
        with pytest.raises(KeyboardInterrupt):
            run(main)

        assert len(taken) == 1

    def test_pressed_twice_frees_a_main_that_waits_for_a_blocked_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler, "_PATIENCE_S", 0.01)
        real = threading.Lock()
        real.acquire()
        main_thread = threading.get_ident()
        kernel = SimulatedKernel()

        def press_twice() -> None:
            signal.pthread_kill(main_thread, signal.SIGINT)
            while not kernel._is_interrupted:
                pass
            signal.pthread_kill(main_thread, signal.SIGINT)
            with real:
                pass

        with pytest.raises(KeyboardInterrupt) as caught:
            kernel.run(lambda: kernel.spawn("blocked", press_twice).join())

        assert "blocked" in caught.value.__notes__[0]
        real.release()
        blocked = kernel._threads[1].real
        assert blocked is not None
        blocked.join()


def on_a_loop(coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> SimulatedKernel:
    def main(kernel: SimulatedKernel) -> None:
        loop = kernel.new_event_loop()
        loop.run_until_complete(coroutine())
        loop.close()

    return run(main)


class TestEventLoop:
    def test_sleeps_five_minutes_at_once(self) -> None:
        start = time.monotonic()

        assert on_a_loop(lambda: asyncio.sleep(300)).now() == 300
        assert time.monotonic() - start < 60

    def test_keeps_the_order_of_virtual_time(self) -> None:
        order: list[tuple[str, float]] = []

        async def sleep(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            order.append((name, asyncio.get_running_loop().time()))

        async def main() -> None:
            await asyncio.gather(sleep("c", 30), sleep("a", 10), sleep("b", 20))

        on_a_loop(main)

        assert order == [("a", 10), ("b", 20), ("c", 30)]

    def test_knows_timeouts(self) -> None:
        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.sleep(6)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 5)
            assert await asyncio.wait_for(asyncio.sleep(1, "slept"), 5) == "slept"

        assert on_a_loop(main).now() == 11

    def test_runs_in_a_thread_and_is_woken_by_others(self) -> None:
        orders = set()

        def main(kernel: SimulatedKernel) -> None:
            loop = kernel.new_event_loop()
            order: list[str] = []
            server = kernel.spawn("loop", loop.run_forever)

            def send(name: str) -> None:
                loop.call_soon_threadsafe(order.append, name)

            clients = [kernel.spawn(name, lambda name=name: send(name)) for name in "ab"]  # type: ignore[misc]
            for client in clients:
                client.join()
            kernel.waiter().wait(100)
            loop.call_soon_threadsafe(loop.stop)
            server.join()
            loop.close()
            orders.add("".join(order))

        explore(main, 30)

        assert orders == {"ab", "ba"}

    def test_runs_what_blocks_in_a_thread_of_the_kernel(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            async def call() -> int:
                with pytest.raises(ZeroDivisionError):
                    await asyncio.to_thread(lambda: 1 // 0)
                sleeping = asyncio.to_thread(kernel.waiter().wait, 50)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(sleeping, 20)
                return await asyncio.to_thread(lambda: 42)

            loop = kernel.new_event_loop()
            assert loop.run_until_complete(call()) == 42
            loop.close()

        explore(main, 20)

    def test_refuses_files_signals_and_executors(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(RuntimeError, match="has no files, sockets or pipes"):
                loop.add_reader(0, print)
            with pytest.raises(RuntimeError, match="gets no signals"):
                loop.add_signal_handler(signal.SIGUSR1, print)
            with pytest.raises(RuntimeError, match="not under control"):
                await loop.run_in_executor(object(), print)  # type: ignore[arg-type]

        on_a_loop(main)

    def test_that_is_left_running_is_closed_and_its_tasks_end(self, caplog: pytest.LogCaptureFixture) -> None:
        ended: list[str] = []

        async def work(name: str) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append(name)

        def main(kernel: SimulatedKernel) -> asyncio.AbstractEventLoop:
            loop = kernel.new_event_loop()

            def serve() -> None:
                tasks = [loop.create_task(work(str(number))) for number in range(12)]
                loop.run_forever()
                del tasks

            kernel.spawn("loop", serve)
            return loop

        kernel = SimulatedKernel()
        loop = kernel.run(lambda: main(kernel))

        assert loop.is_closed()
        assert ended == [str(number) for number in range(12)]
        gc.collect()
        assert not caplog.records

    def test_may_be_ended_properly_by_its_own_thread(self) -> None:
        ended: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0)
                ended.append("task")

        def main(kernel: SimulatedKernel) -> None:
            def serve() -> None:
                loop = kernel.new_event_loop()
                task = loop.create_task(work())
                try:
                    loop.run_forever()
                finally:
                    task.cancel()
                    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
                    loop.close()
                    ended.append("loop")

            kernel.spawn("loop", serve)

        run(main)

        assert ended == ["task", "loop"]

    def test_is_what_imports_asyncio(self) -> None:
        code = """
import sys
from threadserve.testing.scheduler import SimulatedKernel
SimulatedKernel().run(lambda: None)
assert "asyncio" not in sys.modules
"""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}

        subprocess.run([sys.executable, "-c", code], env=environment, check=True)


if __name__ == "__main__":
    for seed in range(20):
        for line in run(a_bit_of_everything, seed).trace:
            print(line)  # noqa: T201
