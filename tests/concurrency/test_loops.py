"""An event loop on a thread of its own: order, start, stop, and what it outlives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from contextvars import Context, ContextVar
from functools import partial
from typing import Any

import pytest

from tests.doubles import wait_until
from threadserve.concurrency.loops import (
    LoopThread,
    LoopWaiter,
    is_cancellation,
    may_time_out,
    post,
    run_coroutine,
)
from threadserve.concurrency.real import RealKernel
from threadserve.testing.scheduler import SimulatedKernel, explore


class Running:
    """A loop thread whose notes the test waits for."""

    def __init__(self) -> None:
        self.thread = LoopThread(RealKernel(), "test loop")

    def do(self, fn: Any) -> Any:
        """Call `fn` on the loop and wait for what it returns."""
        done, found = threading.Event(), []

        def act() -> None:
            found.append(fn())
            done.set()

        assert self.thread.submit(act)
        assert done.wait(20)
        return found[0]

    def task(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self.do(lambda: self.loop.create_task(coroutine))
        return task

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self.thread.loop is not None
        return self.thread.loop


@pytest.fixture
def running() -> Any:
    running = Running()
    yield running
    assert running.thread.stop(20)


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "test loop"]


class TestALoopThread:
    def test_starts_with_the_first_thing_to_do(self) -> None:
        running = Running()
        assert running.thread.loop is None
        assert alive() == []

        assert running.do(lambda: threading.current_thread().name) == "test loop"

        assert alive() == ["test loop"]
        assert running.thread.stop(20)
        assert alive() == []

    def test_that_never_started_stops_at_once_and_takes_nothing_more(self) -> None:
        thread = LoopThread(RealKernel(), "test loop")

        assert thread.stop(20)

        assert not thread.submit(lambda: None)
        assert alive() == []

    def test_does_things_in_order(self, running: Running) -> None:
        done: list[int] = []
        for number in range(5000):
            running.thread.submit(partial(done.append, number))

        running.do(lambda: None)

        assert done == list(range(5000))

    def test_is_the_running_loop_of_what_it_does(self, running: Running) -> None:
        assert running.do(asyncio.get_running_loop) is running.loop

    def test_takes_work_from_its_own_thread(self, running: Running) -> None:
        done = threading.Event()

        running.do(lambda: running.thread.submit(done.set))

        assert done.wait(20)

    def test_survives_what_raises(self, running: Running, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR):
            running.thread.submit(lambda: 1 // 0)
            assert running.do(lambda: "goes on") == "goes on"

        assert "ZeroDivisionError" in caplog.text

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
    def test_survives_a_task_that_wants_to_end_the_process(
        self, running: Running, error: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        async def leave() -> None:
            raise error

        with caplog.at_level(logging.CRITICAL):
            task = running.task(leave())
            assert running.do(lambda: "goes on") == "goes on"

        with contextlib.suppress(BaseException):
            task.exception()

    def test_survives_code_that_stops_the_loop(self, running: Running) -> None:
        running.do(lambda: running.loop.stop())

        assert running.do(lambda: "goes on") == "goes on"


class TestStopping:
    def test_does_first_what_was_submitted_before(self) -> None:
        running, done = Running(), list[int]()
        for number in range(100):
            running.thread.submit(partial(done.append, number))

        assert running.thread.stop(20)

        assert done == list(range(100))

    def test_takes_nothing_more(self) -> None:
        running = Running()
        running.do(lambda: None)
        running.thread.stop(20)

        assert not running.thread.submit(lambda: None)
        assert running.loop.is_closed()

    def test_may_be_repeated(self) -> None:
        running = Running()
        running.do(lambda: None)

        assert running.thread.stop(20)
        assert running.thread.stop(20)

    def test_cancels_what_still_runs_and_lets_it_tidy_up(self) -> None:
        running, ended = Running(), list[str]()

        async def sleep() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                ended.append("tidied up")

        running.task(sleep())
        running.do(lambda: None)

        assert running.thread.stop(20)
        assert ended == ["tidied up"]

    def test_ends_generators_and_the_executor(self) -> None:
        running, ended = Running(), list[str]()
        kept: list[Any] = []

        async def items() -> Any:
            try:
                yield 1
                yield 2
            finally:
                ended.append("generator")

        async def begin() -> None:
            generator = items()
            kept.append(generator)
            await generator.__anext__()
            await asyncio.to_thread(lambda: None)

        task = running.task(begin())
        while not running.do(task.done):
            pass

        assert running.thread.stop(20)
        assert ended == ["generator"]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]

    def test_says_so_when_the_loop_would_not_end(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            thread = LoopThread(kernel, "test loop")
            thread.submit(lambda: kernel.waiter().wait(60))

            assert not thread.stop(5)
            assert kernel.now() == 5
            assert thread.stop(120)
            assert kernel.now() == 60

        kernel.run(main)

    def test_at_the_moment_of_the_start_leaves_nothing_behind(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            thread, done = LoopThread(kernel, "test loop"), list[str]()
            accepted: list[bool] = []
            submitter = kernel.spawn(
                "submitter", lambda: accepted.append(thread.submit(lambda: done.append("done")))
            )

            assert thread.stop(60)

            submitter.join()
            assert done == ["done"] * accepted[0]
            assert thread._thread is None or not thread._thread.is_alive()
            assert thread.loop is None or thread.loop.is_closed()

        explore(story, 200)

    def test_while_others_submit_does_exactly_what_was_accepted(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            thread, done = LoopThread(kernel, "test loop"), list[str]()
            accepted: dict[str, bool] = {}

            def submit(name: str) -> None:
                for number in range(3):
                    note = f"{name}{number}"
                    accepted[note] = thread.submit(partial(done.append, note))

            submitters = [kernel.spawn(name, partial(submit, name)) for name in "ab"]
            assert thread.stop(60)
            for submitter in submitters:
                submitter.join()
            kernel.waiter().wait(1)
            assert sorted(done) == sorted(note for note, is_accepted in accepted.items() if is_accepted)

        explore(story, 200)


class TestAThreadThatCannotBeStarted:
    def test_is_an_error_that_leaves_everything_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        running = Running()

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(RealKernel, "spawn", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                running.thread.submit(lambda: None)

        assert running.do(lambda: "goes on") == "goes on"
        assert running.thread.stop(20)


MINE: ContextVar[bool] = ContextVar("mine", default=False)


def is_mine(context: Context) -> bool:
    return context.get(MINE, False)


class TestMayTimeOut:
    """Whether a timer may interrupt a task that waits; asked from another thread than the loop's."""

    @pytest.fixture
    def task(self, running: Running) -> Any:
        """A task that waits for ever."""
        task = running.task(asyncio.Event().wait())
        yield task
        running.do(task.cancel)

    @staticmethod
    def set_a_timer(running: Running, callback: Any, *args: Any, context: Context | None = None) -> None:
        running.do(lambda: running.loop.call_later(600, callback, *args, context=context))
        running.do(lambda: None)  # what woke the loop before has been done

    def test_not_where_nobody_has_set_one(self, running: Running, task: Any) -> None:
        self.set_a_timer(running, print, "somebody else's")
        running.do(lambda: running.loop.call_later(600, task.cancel)).cancel()
        running.do(lambda: None)

        assert not may_time_out(task, is_mine)

    @pytest.mark.parametrize("way", ["method", "argument", "closure", "partial", "owner", "nested"])
    def test_where_one_refers_to_the_task(self, running: Running, task: Any, way: str) -> None:
        class Scope:
            def __init__(self) -> None:
                self.hidden = task

            def cancel(self) -> None:
                self.hidden.cancel()

        scope = Scope()
        ways: dict[str, tuple[Any, ...]] = {
            "method": (task.cancel,),
            "argument": (print, task),
            "closure": (lambda: task.cancel(),),
            "partial": (partial(print, task),),
            "owner": (scope.cancel,),
            "nested": (lambda: scope.cancel(),),
        }
        self.set_a_timer(running, *ways[way])

        assert may_time_out(task, is_mine)

    def test_where_the_code_of_the_task_has_set_it_for_whatever_it_is(
        self, running: Running, task: Any
    ) -> None:
        context = Context()
        context.run(MINE.set, True)
        self.set_a_timer(running, print, context=context)

        assert may_time_out(task, is_mine)

    def test_where_the_task_is_being_cancelled_already(self) -> None:
        async def ask() -> tuple[bool, bool]:
            task = asyncio.create_task(asyncio.Event().wait())
            await asyncio.sleep(0)
            before = may_time_out(task, is_mine)
            task.cancel()
            return before, may_time_out(task, is_mine)

        assert asyncio.run(ask()) == (False, True)

    def test_where_the_loop_does_not_show_its_timers(self) -> None:
        class Task:
            def get_loop(self) -> object:
                return object()

        assert may_time_out(Task(), is_mine)

    def test_not_where_a_thread_waits(self) -> None:
        assert not may_time_out(threading.get_ident(), is_mine)

    def test_runs_no_code_of_the_users(self, running: Running, task: Any) -> None:
        class Touchy:
            def __getattr__(self, name: str) -> Any:
                raise AssertionError(name)

            def __eq__(self, other: object) -> bool:
                raise AssertionError(other)

            __hash__ = object.__hash__

            def __call__(self) -> None: ...

        touchy = Touchy()
        self.set_a_timer(running, lambda: touchy(), touchy)

        assert not may_time_out(task, is_mine)

    @pytest.mark.slow
    def test_may_be_asked_while_the_loop_is_busy_with_timers(self, running: Running, task: Any) -> None:
        async def churn() -> None:
            for _ in range(2000):
                timers = [running.loop.call_later(0.0001 * (n % 3), int) for n in range(40)]
                for timer in timers[::2]:
                    timer.cancel()
                await asyncio.sleep(0)

        churning = running.task(churn())
        has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        while not churning.done():
            assert (
                not may_time_out(task, is_mine) or not has_gil
            )  # without it a busy loop cannot always be seen


class TestPost:
    """How an answer reaches a loop, be it one of ours or somebody else's."""

    def test_on_the_loop_itself_does_it_at_once(self, running: Running) -> None:
        def act() -> list[str]:
            done: list[str] = []
            post(running.loop, lambda: done.append("done"))
            return done

        assert running.do(act) == ["done"]

    def test_from_elsewhere_does_it_on_the_loop(self, running: Running) -> None:
        running.do(lambda: None)
        done, found = threading.Event(), list[object]()

        post(running.loop, lambda: (found.append(asyncio.get_running_loop()), done.set()))

        assert done.wait(20)
        assert found == [running.loop]

    def test_many_are_one_wake_up(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        wakes: list[str] = []
        write = running.do(lambda: running.loop._write_to_self)  # type: ignore[attr-defined]
        monkeypatch.setattr(running.loop, "_write_to_self", lambda: (wakes.append("woken"), write()))

        def while_it_is_busy() -> None:
            other = threading.Thread(target=lambda: [post(running.loop, int) for _ in range(100)])
            other.start()
            other.join()

        running.do(while_it_is_busy)
        running.do(lambda: None)

        assert len(wakes) <= 3

    def test_on_a_loop_of_somebody_elses(self) -> None:
        async def main() -> str:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[str] = loop.create_future()
            poster = threading.Thread(target=lambda: post(loop, lambda: future.set_result("done")))
            poster.start()
            found = await future
            poster.join()
            return found

        assert asyncio.run(main()) == "done"

    def test_on_a_closed_loop_is_an_error(self) -> None:
        running = Running()
        running.do(lambda: None)
        running.thread.stop(20)

        with pytest.raises(RuntimeError, match="closed"):
            post(running.loop, int)

    def test_on_a_loop_that_ends_still_reaches_the_tasks_that_tidy_up(self) -> None:
        running, ended = Running(), list[str]()
        waiters: list[LoopWaiter] = []

        async def tidy() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                waiter = LoopWaiter(running.loop, running.loop.create_future())
                waiters.append(waiter)
                await waiter.future
                ended.append("tidied up")

        task = running.task(tidy())
        running.do(lambda: None)
        running.thread.stop(0)
        wait_until(lambda: bool(waiters))

        waiters[0].tell()

        assert running.thread.stop(20)
        assert task.cancelled()
        assert ended == ["tidied up"]


class TestRunCoroutine:
    def test_returns_and_raises_what_the_coroutine_does(self) -> None:
        async def value() -> int:
            return 1

        async def error() -> None:
            raise KeyError("k")

        assert run_coroutine(RealKernel(), value()) == 1
        with pytest.raises(KeyError):
            run_coroutine(RealKernel(), error())

    def test_leaves_no_loop_behind(self) -> None:
        loops: list[asyncio.AbstractEventLoop] = []

        async def main() -> None:
            loops.append(asyncio.get_running_loop())

        run_coroutine(RealKernel(), main())

        assert loops[0].is_closed()


def test_a_cancellation_is_asyncios_own_error_and_no_other() -> None:
    assert is_cancellation(asyncio.CancelledError())
    assert not is_cancellation(ValueError())
    assert not is_cancellation(KeyboardInterrupt())
