"""A guest on an event loop: who is the loop when, and that nobody sleeps through anything meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import selectors
import sys
import threading
import traceback
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import wait_until
from threadserve.concurrency.lease import Gate
from threadserve.concurrency.loops import LoopThread
from threadserve.concurrency.real import RealKernel
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SEEDS = int(os.environ.get("THREADSERVE_SEEDS", "1000")) // 4


def nothing() -> None: ...


def never() -> bool:
    return False


def always() -> bool:
    return True


class House:
    """A loop that runs, and whose own thread can be found asleep."""

    def __init__(self) -> None:
        self.thread = LoopThread(RealKernel(), "test loop")
        self.do(nothing)
        self.rest()
        self.wakes = 0
        write = self.loop._write_to_self

        def count() -> None:
            self.wakes += 1
            write()

        self.loop._write_to_self = count

    @property
    def loop(self) -> Any:
        assert self.thread.loop is not None
        return self.thread.loop

    @property
    def ident(self) -> int | None:
        assert self.thread.thread is not None
        return self.thread.thread.ident

    @property
    def gate(self) -> Any:
        assert self.thread._gate is not None
        return self.thread._gate

    def do(self, fn: Callable[[], Any]) -> Any:
        """Call `fn` on the loop and wait for what it returns."""
        done, found = threading.Event(), list[Any]()
        assert self.thread.submit(lambda: (found.append(fn()), done.set()))
        assert done.wait(20)
        return found[0]

    def rest(self) -> None:
        """Wait until the loop's own thread sleeps."""
        turn = self.gate._turn
        wait_until(lambda: turn.acquire(False) and turn.release() is None)

    def be(self, fn: Callable[[], Any] = nothing, is_enough: Callable[[], bool] = never) -> Any:
        """Call `fn` as the loop, on this thread, once its own sleeps; and run what is ready until it is enough."""
        found: list[Any] = []
        wait_until(lambda: self.gate.visit(lambda: found.append(fn()), is_enough))
        return found[0]


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    assert house.thread.stop(20)


class TestAGuest:
    def test_is_the_loops_thread_to_all_that_asyncio_can_ask(self, house: House) -> None:
        def ask() -> tuple[object, ...]:
            return (
                asyncio.get_running_loop(),
                asyncio.get_event_loop(),
                house.loop._thread_id,
                house.loop.is_running(),
            )

        assert house.be(ask) == (house.loop, house.loop, threading.get_ident(), True)

    def test_leaves_everything_as_it_was_on_both_threads(self, house: House) -> None:
        assert sys.get_asyncgen_hooks() == (None, None)

        hooks = house.be(sys.get_asyncgen_hooks)

        assert hooks == house.do(sys.get_asyncgen_hooks) != (None, None)
        assert sys.get_asyncgen_hooks() == (None, None)
        assert asyncio._get_running_loop() is None
        assert house.do(asyncio.get_running_loop) is house.loop
        assert house.loop._thread_id == house.ident

    def test_runs_what_is_ready_and_no_more_than_is_enough(self, house: House) -> None:
        ran: list[tuple[int, int]] = []

        def note(number: int) -> None:
            ran.append((number, threading.get_ident()))

        def fill() -> None:
            for number in range(5):
                house.loop.call_soon(note, number)

        house.be(fill, lambda: len(ran) == 3)

        me = threading.get_ident()
        assert ran[:3] == [(0, me), (1, me), (2, me)]
        wait_until(lambda: len(ran) == 5)
        assert {ident for _, ident in ran[3:]} == {house.ident}

    def test_runs_no_handle_that_was_cancelled(self, house: House) -> None:
        ran: list[str] = []

        def fill() -> None:
            house.loop.set_exception_handler(lambda *_: ran.append("failed"))
            house.loop.call_soon(ran.append, "cancelled").cancel()
            house.loop.call_soon(ran.append, "run")

        house.be(fill)

        assert ran == ["run"]

    def test_is_not_kept_by_a_loop_that_never_rests(self, house: House) -> None:
        turns: list[int] = []
        is_over = False

        def turn() -> None:
            turns.append(threading.get_ident())
            if not is_over:
                house.loop.call_soon(turn)

        house.be(lambda: house.loop.call_soon(turn))

        assert turns.count(threading.get_ident()) == 64
        wait_until(lambda: len(turns) > 200)  # the loop's own thread goes on with it
        is_over = True

    def test_runs_what_was_submitted_before_it_came(self, house: House) -> None:
        house.be(lambda: None)
        house.thread._is_woken = True  # as when the wake-up is on its way and takes its time
        ran: list[int] = []
        assert house.thread.submit(lambda: ran.append(threading.get_ident()))

        assert house.thread.visit(never)

        assert ran == [threading.get_ident()]
        house.loop.call_soon_threadsafe(nothing)

    def test_is_one_at_a_time(self, house: House) -> None:
        refused: list[bool] = []

        def try_to() -> None:
            other = threading.Thread(target=lambda: refused.append(house.gate.visit(nothing, never)))
            other.start()
            other.join()

        house.be(try_to)

        assert refused == [False]

    def test_is_none_while_the_loops_own_thread_is_at_work(self, house: House) -> None:
        assert house.do(lambda: self.visit_from_elsewhere(house)) == [False]

    @staticmethod
    def visit_from_elsewhere(house: House) -> list[bool]:
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(house.thread.visit(never)))
        other.start()
        other.join()
        return found

    def test_is_none_in_debug_mode_nor_from_the_moment_it_begins(self, house: House) -> None:
        depth = sys.get_coroutine_origin_tracking_depth()

        house.be(lambda: house.loop.set_debug(True))

        assert sys.get_coroutine_origin_tracking_depth() == depth
        wait_until(lambda: house.do(sys.get_coroutine_origin_tracking_depth) > depth)
        for _ in range(5):
            house.rest()
            assert not house.thread.visit(never)

    def test_is_none_once_the_loop_is_to_stop(self) -> None:
        house = House()
        house.thread.stop(20)

        assert not house.thread.visit(never)
        assert not house.gate.visit(nothing, never)

    def test_may_be_there_while_the_loop_ends(self) -> None:
        """It asked just before."""
        house, kept = House(), list[Any]()
        released = asyncio.Event()

        async def tidy() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await released.wait()

        house.do(lambda: kept.append(house.loop.create_task(tidy())))
        house.rest()
        house.thread.stop(0)
        wait_until(lambda: kept[0].cancelling() > 0)

        house.be(released.set)

        assert house.thread.stop(20)

    @pytest.mark.parametrize("kind", ["SelectSelector", "PollSelector"])
    def test_is_none_where_the_files_to_wait_for_cannot_change_during_the_wait(self, kind: str) -> None:
        loop = asyncio.SelectorEventLoop(getattr(selectors, kind)())
        try:
            assert not Gate.fits(loop)
        finally:
            loop.close()

    @pytest.mark.parametrize("name", ["_ready", "_thread_id", "_scheduled"])
    def test_is_none_on_a_loop_that_lacks_what_it_needs(self, name: str) -> None:
        loop = asyncio.new_event_loop()
        try:
            assert Gate.fits(loop)
            with pytest.MonkeyPatch.context() as patch:
                value = loop.__dict__.pop(name)
                assert not Gate.fits(loop)
                patch.setitem(loop.__dict__, name, value)
                assert Gate.fits(loop)
                patch.undo()
                setattr(loop, name, value)
        finally:
            loop.close()

    def test_is_shown_where_one_asks_why_the_loop_would_not_end(self, house: House) -> None:
        shown: list[str] = []

        def look_from_elsewhere() -> None:
            other = threading.Thread(target=lambda: shown.append(house.thread.stuck()))
            other.start()
            other.join()

        house.be(look_from_elsewhere)

        assert "look_from_elsewhere" in shown[0]


class TestWhatAGuestLeaves:
    """The loop's own thread sleeps on unless it has been left something to do."""

    def test_nothing_wakes_nobody(self, house: House) -> None:
        for _ in range(20):
            house.be()

        assert house.wakes == 0

    def test_a_handle_wakes_it(self, house: House) -> None:
        ran = threading.Event()

        house.be(lambda: house.loop.call_soon(ran.set), always)

        assert ran.wait(20)

    @pytest.mark.parametrize("other_s", [None, 3600])
    def test_a_timer_that_rings_before_it_would_have_woken_wakes_it(
        self, house: House, other_s: float | None
    ) -> None:
        if other_s is not None:
            house.do(lambda: house.loop.call_later(other_s, nothing))
        rang = threading.Event()

        house.be(lambda: house.loop.call_later(0.01, rang.set))

        assert rang.wait(20)

    def test_a_timer_that_rings_later_than_it_wakes_lets_it_sleep(self, house: House) -> None:
        house.do(lambda: house.loop.call_later(1800, nothing))
        house.be()
        house.wakes = 0

        for _ in range(20):
            house.be(lambda: house.loop.call_later(3600, nothing))

        assert house.wakes == 0

    def test_a_cancelled_timer_is_not_missed(self, house: House) -> None:
        first = house.do(lambda: house.loop.call_later(0.05, nothing))
        rang = threading.Event()

        house.be(lambda: (first.cancel(), house.loop.call_later(0.06, rang.set)))

        assert rang.wait(20)

    def test_a_loop_that_is_to_stop_is_woken(self, house: House) -> None:
        house.be(lambda: house.loop.stop())

        assert house.do(lambda: "started again") == "started again"

    def test_a_file_that_it_added_is_watched(self, house: House) -> None:
        import socket

        near, far = socket.socketpair()
        with near, far:
            came = threading.Event()
            house.be(lambda: house.loop.add_reader(near, lambda: (near.recv(1), came.set())))

            far.send(b"x")

            assert came.wait(20)
            house.be(lambda: house.loop.remove_reader(near))

    def test_a_file_that_changes_hands_is_heard_of_by_who_has_it_now(self, house: House) -> None:
        """The event had woken the loop's own thread, which waited for the guest to leave."""
        import socket

        near, far = socket.socketpair()
        heard: list[str] = []
        with near, far:
            house.do(lambda: house.loop.add_reader(near, heard.append, "by the former one"))
            house.rest()
            selector, has_woken = house.gate._selector, threading.Event()
            house.gate._selector = Telling(selector, has_woken)
            house.do(nothing)
            house.rest()

            def change() -> None:
                has_woken.clear()
                far.send(b"x")
                assert has_woken.wait(20)
                house.loop.remove_reader(near)
                house.loop.add_reader(near, lambda: heard.append(near.recv(1).decode()))

            house.be(change)

            wait_until(lambda: bool(heard))
            house.be(lambda: house.loop.remove_reader(near))
            house.gate._selector = selector

        assert heard == ["x"]


class Telling:
    """A selector that says when it has returned."""

    def __init__(self, selector: Any, has_woken: threading.Event) -> None:
        self._selector = selector
        self._has_woken = has_woken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)

    def select(self, timeout: float | None = None) -> Any:
        events = self._selector.select(timeout)
        if events:
            self._has_woken.set()
        return events


class TestBeforeItSleeps:
    """The byte in the wake-up pipe is gone: it was read together with one for what came before."""

    @staticmethod
    def submit_behind_the_drain(house: House, fn: Callable[[], object]) -> None:
        """Submit `fn` after the inbox was looked at for a wake-up, and before the pipe is emptied."""
        look, was_drained = house.gate._on_wake, list[bool]()

        def on_wake() -> bool:
            has_worked: bool = look()
            if has_worked and not was_drained:
                was_drained.append(True)
                house.thread.submit(fn)
            return has_worked

        house.gate._on_wake = on_wake
        house.do(nothing)

    def test_it_looks_at_the_inbox(self, house: House) -> None:
        came = threading.Event()

        self.submit_behind_the_drain(house, came.set)

        assert came.wait(20)

    def test_a_timer_that_is_set_there_rings(self, house: House) -> None:
        rang = threading.Event()

        self.submit_behind_the_drain(house, lambda: house.loop.call_later(0.01, rang.set))

        assert rang.wait(20)

    def test_a_handle_that_is_added_there_runs(self, house: House) -> None:
        ran = threading.Event()

        self.submit_behind_the_drain(house, lambda: house.loop.call_soon(ran.set))

        assert ran.wait(20)

    def test_a_stop_that_is_found_there_is_heeded(self) -> None:
        house = House()

        self.submit_behind_the_drain(house, lambda: house.loop.stop())

        assert house.do(lambda: "started again") == "started again"
        self.submit_behind_the_drain(house, lambda: house.thread.stop(0))
        house.thread.thread.join(20)  # type: ignore[union-attr]
        assert house.loop.is_closed()


class TestWhatEndsAVisit:
    def test_a_task_that_wants_to_end_the_process_does_not(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        ran: list[str] = []

        def leave() -> None:
            raise SystemExit(3)

        with caplog.at_level(logging.CRITICAL):
            house.be(lambda: (house.loop.call_soon(leave), house.loop.call_soon(ran.append, "the next")))

        assert ran == ["the next"]
        assert house.do(lambda: "goes on") == "goes on"

    @staticmethod
    def interrupt() -> None:
        raise KeyboardInterrupt

    def test_ctrl_c_goes_on_in_the_main_thread_and_the_rest_on_the_loops_own(self, house: House) -> None:
        ran = threading.Event()

        with pytest.raises(KeyboardInterrupt):
            house.be(lambda: (house.loop.call_soon(self.interrupt), house.loop.call_soon(ran.set)))

        assert ran.wait(20)
        assert asyncio._get_running_loop() is None
        assert house.be(lambda: "goes on") == "goes on"

    def test_ctrl_c_loses_nothing_that_was_submitted(self, house: House) -> None:
        house.be()
        house.thread._is_woken = True  # the loop's own thread is on its way
        ran: list[str] = []
        last = threading.Event()
        for fn in (partial(ran.append, "first"), self.interrupt, partial(ran.append, "second"), last.set):
            house.thread.submit(fn)

        with pytest.raises(KeyboardInterrupt):
            wait_until(lambda: house.thread.visit(never))
        assert ran == ["first"]
        house.loop._write_to_self()

        assert last.wait(20)
        assert ran == ["first", "second"]

    def test_the_same_error_in_another_thread_is_just_an_error(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended: list[object] = []

        def visit() -> None:
            try:
                house.be(lambda: house.loop.call_soon(self.interrupt))
                ended.append("well")
            except BaseException as error:
                ended.append(error)

        with caplog.at_level(logging.CRITICAL):
            guest = threading.Thread(target=visit)
            guest.start()
            guest.join()

        assert ended == ["well"]


@pytest.mark.slow
class TestInEveryOrder:
    """The same on the simulator, where a lost wake-up is a thread that waits for ever."""

    @staticmethod
    def guests(kernel: SimulatedKernel, thread: LoopThread, count: int = 2) -> list[Any]:
        def visit() -> None:
            for _ in range(3):
                thread.visit(never)

        return [kernel.spawn(f"guest {number}", visit) for number in range(count)]

    def test_all_that_is_submitted_is_done_once_in_order(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            thread, done = LoopThread(kernel, "loop"), deque[str]()

            def submit(name: str) -> None:
                for number in range(3):
                    ended = kernel.waiter()
                    thread.submit(partial(done.append, f"{name}{number}"))
                    thread.submit(ended.set)
                    thread.visit(never)
                    ended.wait()

            submitters = [kernel.spawn(name, partial(submit, name)) for name in "ab"]
            others = self.guests(kernel, thread, 1)
            for one in (*submitters, *others):
                one.join()
            assert thread.stop(60)
            assert [name for name in done if name[0] == "a"] == ["a0", "a1", "a2"]
            assert len(done) == 6

        explore(story, SEEDS)

    def test_timers_ring_in_time_whoever_sets_them(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            thread, late = LoopThread(kernel, "loop"), list[float]()
            rung: list[Any] = []

            def set_timer(seconds: float, ended: Any) -> None:
                due = kernel.now() + seconds

                def ring() -> None:
                    late.append(kernel.now() - due)
                    ended.set()

                assert thread.loop is not None
                thread.loop.call_later(seconds, ring)

            def submit(name: str) -> None:
                for seconds in (30, 10, 20):
                    ended = kernel.waiter()
                    rung.append(ended)
                    thread.submit(partial(set_timer, seconds, ended))
                    thread.visit(never)

            everybody = [kernel.spawn(name, partial(submit, name)) for name in "ab"]
            for one in (*everybody, *self.guests(kernel, thread)):
                one.join()
            for ended in rung:
                assert ended.wait(60)
            assert thread.stop(60)
            assert len(late) == 6
            assert max(late) < 0.1

        explore(story, SEEDS)

    def test_tasks_go_on_whoever_is_the_loop(self) -> None:
        shares: set[bool] = set()

        def story(kernel: SimulatedKernel) -> None:
            thread, kept = LoopThread(kernel, "loop"), list[Any]()
            steps: list[str] = []

            async def body(ended: Any) -> None:
                me = asyncio.current_task()
                for _ in range(3):
                    steps.append(threading.current_thread().name)
                    await asyncio.sleep(0)
                    assert asyncio.current_task() is me
                await asyncio.sleep(1)
                ended.set()

            def ask() -> None:
                ended = kernel.waiter()

                def begin() -> None:
                    assert thread.loop is not None
                    kept.append(thread.loop.create_task(body(ended)))

                thread.submit(begin)
                thread.visit(lambda: len(steps) > 4)
                ended.wait()

            thread.submit(nothing)
            kernel.waiter().wait(1)  # it is asleep
            for one in [kernel.spawn(name, ask) for name in "abc"]:
                one.join()
            assert thread.stop(60)
            shares.update(step == "loop" for step in steps)

        explore(story, SEEDS)
        assert shares == {True, False}

    def test_the_loop_stops_while_guests_come_and_go(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            thread, done = LoopThread(kernel, "loop"), list[int]()
            accepted: list[bool] = []

            def submit() -> None:
                for number in range(3):
                    accepted.append(thread.submit(partial(done.append, number)))
                    thread.visit(never)

            everybody = [kernel.spawn("submitter", submit), *self.guests(kernel, thread)]
            assert thread.stop(60)
            for one in everybody:
                one.join()
            assert len(done) == sum(accepted)
            assert thread.loop is None or thread.loop.is_closed()

        explore(story, SEEDS)

    def test_code_that_stops_the_loop_takes_nothing_from_who_stops_it(self) -> None:
        """What has been submitted runs all the same, and tasks tidy up."""

        def story(kernel: SimulatedKernel) -> None:
            thread, ended = LoopThread(kernel, "loop"), list[str]()
            kept, begun = list[Any](), list[str]()

            async def sleep() -> None:
                begun.append("tidied up")
                try:
                    await asyncio.sleep(100)
                finally:
                    await asyncio.sleep(1)
                    ended.append("tidied up")

            def begin() -> None:
                assert thread.loop is not None
                kept.append(thread.loop.create_task(sleep()))
                thread.loop.stop()
                kernel.waiter().wait(kernel.random.choice([0, 1]))

            for fn in (begin, begin, lambda: ended.append("last")):
                thread.submit(fn)
            guests = self.guests(kernel, thread)
            assert thread.stop(60)
            for guest in guests:
                guest.join()
            assert ended == ["last", *begun]

        explore(story, SEEDS)

    def test_a_task_that_wants_to_end_the_process_keeps_nobody_from_stopping_the_loop(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def story(kernel: SimulatedKernel) -> None:
            thread = LoopThread(kernel, "loop")

            def leave() -> None:
                raise SystemExit

            thread.submit(nothing)
            kernel.waiter().wait(1)
            thread.submit(lambda: thread.loop.call_soon(leave))  # type: ignore[union-attr]
            guests = self.guests(kernel, thread)
            assert thread.stop(60)
            assert thread.loop is not None
            assert thread.loop.is_closed()
            for guest in guests:
                guest.join()

        with caplog.at_level(logging.CRITICAL):
            explore(story, SEEDS)


class TestFairness:
    @pytest.mark.slow
    def test_a_tight_loop_of_guests_starves_neither_timers_nor_files(self, house: House) -> None:
        import socket

        done: list[str] = []
        near, far = socket.socketpair()
        near.setblocking(False)

        async def tick() -> None:
            for _ in range(100):
                await asyncio.sleep(0.002)
                done.append("tick")

        async def echo() -> None:
            for _ in range(100):
                far.send(b"x")
                await house.loop.sock_recv(near, 1)
                done.append("echo")

        with near, far:
            tasks = house.do(lambda: [house.loop.create_task(tick()), house.loop.create_task(echo())])
            is_over = threading.Event()

            def call() -> None:
                ran: list[int] = []
                while not is_over.is_set():
                    ran.clear()
                    house.thread.submit(lambda: ran.append(1))
                    house.thread.visit(lambda: bool(ran))

            callers = [threading.Thread(target=call) for _ in range(2)]
            for caller in callers:
                caller.start()
            try:
                wait_until(lambda: all(task.done() for task in tasks))
            finally:
                is_over.set()
                for caller in callers:
                    caller.join()

        assert sorted(done) == ["echo"] * 100 + ["tick"] * 100

    def test_a_visit_leaves_no_garbage_behind(self, house: House) -> None:
        house.be()
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                house.be(lambda: house.loop.call_soon(nothing))
            with contextlib.suppress(RuntimeError):
                raise RuntimeError
            house.do(nothing)
            assert gc.collect() < 10
        finally:
            gc.enable()


def test_no_frame_of_a_visit_stands_in_what_a_task_raises(house: House) -> None:
    async def fail() -> None:
        raise ValueError("mine")

    task = house.be(lambda: house.loop.create_task(fail()))
    wait_until(task.done)

    names = [frame.name for frame in traceback.extract_tb(task.exception().__traceback__)]
    assert names == ["fail"]
