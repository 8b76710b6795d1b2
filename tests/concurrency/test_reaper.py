from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.real import RealKernel
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

LATE = 30.0


def fail() -> None:
    raise ValueError("a note that fails")


class Value:
    """Something of the user's."""


def a_note_about(value: Value, then: Callable[[], object]) -> Callable[[], object]:
    def note() -> None:
        assert isinstance(value, Value)
        then()

    return note


class TestErrands:
    def test_are_done_in_order_by_one_thread(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done: list[int] = []
            threads: set[str] = set()

            def note(number: int) -> None:
                done.append(number)
                threads.add(threading.current_thread().name)

            kernel.errands.start()
            kernel.errands.start()
            for number in range(10):
                kernel.errands.post(lambda number=number: note(number))  # type: ignore[misc]
            kernel.waiter().wait(1)

            assert done == list(range(10))
            assert threads == {"threadserve reaper"}

        explore(scenario, 50)

    def test_are_never_overlooked_though_many_post_at_once(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done: list[str] = []

            def work(name: str) -> None:
                for _ in range(3):
                    kernel.errands.post(lambda: done.append(name))
                    kernel.waiter().wait(kernel.random.choice([0, 1]))

            kernel.errands.start()
            threads = [kernel.spawn(name, lambda name=name: work(name)) for name in "abc"]  # type: ignore[misc]
            for thread in threads:
                thread.join()
            kernel.waiter().wait(1)

            assert sorted(done) == sorted("abc" * 3)

        explore(scenario, 200)

    def test_that_were_posted_before_the_start_are_done_after_it(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done: list[str] = []
            kernel.errands.post(lambda: done.append("early"))
            kernel.waiter().wait(1)
            assert not done

            kernel.errands.start()
            kernel.waiter().wait(1)

            assert done == ["early"]

        explore(scenario, 20)

    def test_that_fail_are_logged_and_the_next_are_done(self, caplog: pytest.LogCaptureFixture) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done = kernel.waiter()
            kernel.errands.start()
            kernel.errands.post(fail)
            kernel.errands.post(done.set)

            assert done.wait(1)

        with caplog.at_level(logging.ERROR, logger="threadserve"):
            explore(scenario, 1)

        assert "a note that fails" in caplog.text

    def test_may_be_posted_by_finalizers_in_the_middle_of_anything(self) -> None:
        kernel = RealKernel()
        reaped: list[int] = []
        done = kernel.waiter()

        class Cycle:
            def __init__(self, number: int) -> None:
                self.itself = self
                self.number = number

            def __del__(self) -> None:
                number = self.number
                kernel.errands.post(lambda: reaped.append(number))

        kernel.errands.start()
        threshold = gc.get_threshold()
        gc.set_threshold(3, 1, 1)
        try:
            for number in range(500):
                Cycle(number)
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        kernel.errands.post(done.set)

        assert done.wait(LATE)
        assert sorted(reaped) == list(range(500))

    def test_that_are_done_are_let_go(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done = kernel.waiter()
            value = Value()
            ghost = weakref.ref(value)
            kernel.errands.start()

            kernel.errands.post(a_note_about(value, done.set))
            del value
            done.wait()
            kernel.waiter().wait(1)

            assert ghost() is None

        explore(scenario, 20)


class TestCallbacks:
    def test_do_not_wait_for_one_that_blocks(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            first_may_end, both_done = kernel.waiter(), kernel.waiter()

            def first() -> None:
                first_may_end.wait()
                both_done.set()

            kernel.callbacks.start()
            kernel.callbacks.post(first)
            kernel.callbacks.post(first_may_end.set)

            assert both_done.wait(1)

        explore(scenario, 100)

    def test_are_each_run_once_though_many_post_at_once(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done: list[str] = []

            def work(name: str) -> None:
                for _ in range(3):
                    kernel.callbacks.post(lambda: done.append(name))
                    kernel.waiter().wait(kernel.random.choice([0, 1]))

            threads = [kernel.spawn(name, lambda name=name: work(name)) for name in "abc"]  # type: ignore[misc]
            for thread in threads:
                thread.join()
            kernel.waiter().wait(1)

            assert sorted(done) == sorted("abc" * 3)

        explore(scenario, 200)

    def test_keep_one_thread_for_the_next(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            idents: set[int] = set()
            for _ in range(5):
                kernel.callbacks.post(lambda: idents.add(threading.get_ident()))
                kernel.waiter().wait(1)
            assert len(idents) == 1

            together = [kernel.waiter() for _ in range(4)]
            for waiter in together:
                kernel.callbacks.post(waiter.wait)
            kernel.waiter().wait(1)
            for waiter in together:
                waiter.set()
            kernel.waiter().wait(1)

            started = sum("starts threadserve callbacks" in line for line in kernel.trace)
            ended = sum("threadserve callbacks: ends" in line for line in kernel.trace)
            assert started - ended == 1

        explore(scenario, 50)

    def test_that_fail_are_logged_and_the_thread_stays(self, caplog: pytest.LogCaptureFixture) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done = kernel.waiter()
            kernel.callbacks.post(fail)
            kernel.waiter().wait(1)
            kernel.callbacks.post(done.set)

            assert done.wait(1)
            assert sum("starts threadserve callbacks" in line for line in kernel.trace) == 1

        with caplog.at_level(logging.ERROR, logger="threadserve"):
            explore(scenario, 1)

        assert "a note that fails" in caplog.text

    def test_that_were_run_are_let_go(self) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            for _ in range(2):  # on the new thread, and on the one that stayed
                done = kernel.waiter()
                value = Value()
                ghost = weakref.ref(value)

                kernel.callbacks.post(a_note_about(value, done.set))
                del value
                done.wait()
                kernel.waiter().wait(1)

                assert ghost() is None

        explore(scenario, 20)

    def test_that_no_thread_can_be_started_for_are_run_by_whoever_posts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done: list[int] = []
            with monkeypatch.context() as poor:
                poor.setattr(kernel, "spawn", no_thread)
                kernel.callbacks.post(lambda: done.append(threading.get_ident()))
            assert done == [threading.get_ident()]

            kernel.callbacks.post(lambda: done.append(threading.get_ident()))
            kernel.waiter().wait(1)
            assert len(set(done)) == 2

        explore(scenario, 5)

    def test_that_no_thread_can_be_started_for_wait_for_one_that_runs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scenario(kernel: SimulatedKernel) -> None:
            done: list[int] = []
            idents: list[int] = []
            begun, may_end = kernel.waiter(), kernel.waiter()

            def slow() -> None:
                idents.append(threading.get_ident())
                begun.set()
                may_end.wait()

            kernel.callbacks.post(slow)
            begun.wait()
            with monkeypatch.context() as poor:
                poor.setattr(kernel, "spawn", no_thread)
                for _ in range(3):
                    kernel.callbacks.post(lambda: done.append(threading.get_ident()))
                may_end.set()
                kernel.waiter().wait(1)

            assert done == idents * 3

        explore(scenario, 100)


def no_thread(*_: object) -> Any:
    raise RuntimeError("can't start new thread")
