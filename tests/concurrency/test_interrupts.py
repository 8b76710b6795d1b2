"""Signals: at once in user code and in waits, at the edge of our own code otherwise, and nothing is lost.

Most of it runs in a process of its own, where the main thread is interrupted from outside.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import threadserve
from threadserve.concurrency.interrupts import INTERRUPTED, Interrupts, is_our_code_interrupted
from threadserve.concurrency.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(threadserve.__file__).parent.parent
HAS_TIMERS = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no interval timers here")


# The functions of the C module, which see the guards.
set_in_c = sys.modules["_signal"].signal
bare = sys.modules["_signal"].getsignal

ANY_SIGNAL = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Interrupts of our own, and the handlers as they were."""
    used = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)
    before = [signal.getsignal(signum) for signum in used]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts = Interrupts()
    yield interrupts
    interrupts.forget_all()
    for signum, handler in zip(used, before, strict=True):
        signal.signal(signum, handler)


def in_module(name: str, code: str) -> types.ModuleType:
    """Run code as that of a module of this name."""
    module = types.ModuleType(name)
    exec(textwrap.dedent(code), module.__dict__)
    return module


def pretended(signum: signal.Signals) -> types.ModuleType:
    """Return a module of ours that is interrupted by `signum` at work."""
    return in_module(
        "threadserve.pretended",
        f"""
        import signal
        done = []
        def work():
            done.append("begun")
            signal.raise_signal({int(signum)})
            for number in range(1000):
                pass
            done.append("ended")
        """,
    )


def on_another_thread(fn: Callable[[], object]) -> None:
    thread = threading.Thread(target=fn)
    thread.start()
    thread.join()


def walk_on(work: Callable[[], None], steps: list[Any]) -> None:
    """Call ours, and go on behind its edge; an interrupt strikes within a few steps."""
    work()
    for _ in range(1000):
        steps += ["a step"]


class TestWhereItStrikes:
    def test_at_once_in_the_users_code(self, interrupts: Interrupts) -> None:
        interrupts.install()
        after: list[str] = []

        def mine() -> None:
            signal.raise_signal(signal.SIGINT)
            after.append("after")

        with pytest.raises(KeyboardInterrupt):
            mine()

        assert after == []

    def test_at_the_edge_of_ours(self, interrupts: Interrupts) -> None:
        interrupts.install()
        ours = in_module(
            "threadserve.pretended",
            """
            import signal
            done = []
            def work():
                try:
                    signal.raise_signal(signal.SIGINT)
                    for number in range(1000):
                        done.append(number)
                finally:
                    done.append("finally")
            """,
        )

        with pytest.raises(KeyboardInterrupt):
            walk_on(ours.work, ours.done)

        assert ours.done[:1002] == [*range(1000), "finally", "a step"][: len(ours.done)]
        assert len(ours.done) < 1005

    def test_at_the_edge_of_ours_though_the_standard_library_was_called(self, interrupts: Interrupts) -> None:
        interrupts.install()
        ours = in_module(
            "threadserve.pretended",
            """
            import collections, signal, statistics
            done = []
            Pair = collections.namedtuple("Pair", "left right")
            def work():
                signal.raise_signal(signal.SIGINT)
                done.append(Pair(1, 2))
                done.append(statistics.mean([1, 2, 3]))
            """,
        )

        with pytest.raises(KeyboardInterrupt):
            walk_on(ours.work, ours.done)

        assert ours.done[:2] == [(1, 2), 2]
        assert len(ours.done) < 5

    def test_at_once_in_code_of_the_users_that_ours_has_called(self, interrupts: Interrupts) -> None:
        interrupts.install()
        ours = in_module(
            "threadserve.pretended",
            """
            done = []
            def call(fn):
                try:
                    fn()
                finally:
                    done.append("called")
            """,
        )
        after: list[str] = []

        def mine() -> None:
            signal.raise_signal(signal.SIGINT)
            after.append("after")

        with pytest.raises(KeyboardInterrupt):
            ours.call(mine)
        assert after == []
        assert ours.done == ["called"]

    def test_at_once_in_a_wait_of_ours(self, interrupts: Interrupts) -> None:
        interrupts.install()
        main = threading.main_thread()
        assert main.ident is not None
        timer = threading.Timer(0.01, signal.pthread_kill, (main.ident, signal.SIGINT))
        timer.start()

        with pytest.raises(KeyboardInterrupt):
            Waiter().wait(20)
        timer.join()

    def test_once_however_often_it_was_tripped_in_ours(self, interrupts: Interrupts) -> None:
        interrupts.install()
        ours = in_module(
            "threadserve.pretended",
            """
            import signal
            def work():
                for _ in range(100):
                    signal.raise_signal(signal.SIGINT)
            """,
        )
        struck = 0

        for _ in range(3):
            try:
                ours.work()
                for _ in range(100):
                    pass
            except KeyboardInterrupt:
                struck += 1

        assert struck == 3


class TestTheHandler:
    def test_of_python_looks_untouched_though_it_is_guarded(self, interrupts: Interrupts) -> None:
        interrupts.install()
        interrupts.install()
        interrupts.uninstall()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert bare(signal.SIGINT) is not signal.default_int_handler

        interrupts.uninstall()

        assert bare(signal.SIGINT) is signal.default_int_handler

    @ANY_SIGNAL
    def test_of_the_users_waits_until_our_code_is_left(
        self, interrupts: Interrupts, signum: signal.Signals
    ) -> None:
        ours = pretended(signum)
        signal.signal(signum, lambda *seen: ours.done.append(seen[0]))
        interrupts.install()

        walk_on(ours.work, ours.done)

        assert ours.done[:2] == ["begun", "ended"]
        assert ours.done.count(signum) == 1
        assert ours.done.index(signum) < 5

    @ANY_SIGNAL
    def test_that_is_set_later_waits_as_well(self, interrupts: Interrupts, signum: signal.Signals) -> None:
        ours = pretended(signum)
        interrupts.install()
        signal.signal(signum, lambda *seen: ours.done.append(seen[0]))

        walk_on(ours.work, ours.done)

        assert ours.done[:2] == ["begun", "ended"]
        assert ours.done.index(signum) < 5

    def test_that_is_set_by_a_function_imported_before_waits_as_well(self, interrupts: Interrupts) -> None:
        from signal import getsignal
        from signal import signal as set_handler

        ours = pretended(signal.SIGUSR1)
        interrupts.install()

        def mine(signum: int, frame: Any) -> None:
            ours.done.append(signum)

        set_handler(signal.SIGUSR1, mine)

        assert getsignal(signal.SIGUSR1) is mine
        walk_on(ours.work, ours.done)
        assert ours.done[:2] == ["begun", "ended"]

    def test_that_raises_raises_behind_our_code(self, interrupts: Interrupts) -> None:
        def strike(signum: int, frame: Any) -> None:
            raise OSError("from a signal handler")

        ours = pretended(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, strike)
        interrupts.install()

        with pytest.raises(OSError, match="from a signal handler"):
            walk_on(ours.work, ours.done)

        assert ours.done[:2] == ["begun", "ended"]
        assert len(ours.done) < 5

    def test_is_called_as_ever_in_the_users_code(self, interrupts: Interrupts) -> None:
        seen: list[Any] = []
        interrupts.install()
        signal.signal(signal.SIGUSR1, lambda *arguments: seen.append(arguments))

        signal.raise_signal(signal.SIGUSR1)

        ((signum, frame),) = seen
        assert signum == signal.SIGUSR1
        assert frame is not None
        assert frame.f_code is sys._getframe().f_code

    def test_may_raise_a_signal_of_its_own_and_set_handlers(self, interrupts: Interrupts) -> None:
        seen: list[str] = []

        def first(signum: int, frame: Any) -> None:
            signal.signal(signal.SIGUSR1, second)
            signal.raise_signal(signal.SIGUSR1)
            seen.append("first")

        def second(signum: int, frame: Any) -> None:
            seen.append("second")

        ours = pretended(signal.SIGUSR1)
        interrupts.install()
        signal.signal(signal.SIGUSR1, first)

        walk_on(ours.work, [])

        assert seen == ["second", "first"]
        assert signal.getsignal(signal.SIGUSR1) is second

    @pytest.mark.parametrize("later", [False, True])
    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_that_is_none_stays_none(
        self, interrupts: Interrupts, handler: signal.Handlers, later: bool
    ) -> None:
        def mine(signum: int, frame: Any) -> None:
            pytest.fail("it was called")

        signal.signal(signal.SIGCHLD, handler)
        interrupts.install()
        if later:
            assert signal.signal(signal.SIGCHLD, mine) is handler
            assert signal.signal(signal.SIGCHLD, handler) is mine

        signal.raise_signal(signal.SIGCHLD)

        assert signal.getsignal(signal.SIGCHLD) is handler
        assert bare(signal.SIGCHLD) == handler
        interrupts.uninstall()
        assert signal.getsignal(signal.SIGCHLD) is handler

    def test_comes_back_as_the_object_that_was_set(self, interrupts: Interrupts) -> None:
        class Called:
            def __call__(self, signum: int, frame: Any) -> None: ...

            def method(self, signum: int, frame: Any) -> None: ...

        called = Called()
        method = called.method
        signal.signal(signal.SIGUSR1, called)
        interrupts.install()

        assert signal.getsignal(signal.SIGUSR1) is called
        assert signal.signal(signal.SIGUSR1, method) is called
        assert signal.signal(signal.SIGUSR1, method) is method
        assert signal.getsignal(signal.SIGUSR1) is method
        interrupts.uninstall()
        assert bare(signal.SIGUSR1) is method

    def test_that_is_not_one_is_refused_as_ever(self, interrupts: Interrupts) -> None:
        interrupts.install()

        with pytest.raises(TypeError, match="signal handler must be"):
            signal.signal(signal.SIGUSR1, "nothing to call")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="signal number out of range"):
            signal.signal(10_000, signal.SIG_IGN)

    def test_that_an_event_loop_is_told_by_has_no_guard(self, interrupts: Interrupts) -> None:
        """It does nothing, and its loop would be told again whenever the signal is tripped again."""
        ours = pretended(signal.SIGUSR1)
        told: list[str] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, told.append, "told")
            ours.work()
            await asyncio.sleep(0.01)
            loop.remove_signal_handler(signal.SIGUSR1)

        interrupts.install()
        asyncio.run(main())

        assert told == ["told"]
        assert ours.done == ["begun", "ended"]


class TestInstalling:
    def test_leaves_the_functions_that_set_handlers_as_they_were(self, interrupts: Interrupts) -> None:
        before = (signal.signal, signal.getsignal, signal.default_int_handler)
        interrupts.install()
        assert (signal.signal, signal.getsignal, signal.default_int_handler) == before
        interrupts.uninstall()

        assert set_in_c.__self__ is sys.modules["_signal"]
        assert sys.modules["_signal"].signal is set_in_c

    def test_on_another_thread_guards_what_is_set_later(self, interrupts: Interrupts) -> None:
        def mine(signum: int, frame: Any) -> None: ...

        on_another_thread(interrupts.install)
        assert bare(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGUSR1, mine)

        assert signal.getsignal(signal.SIGUSR1) is mine
        assert bare(signal.SIGUSR1) is not mine

    def test_on_the_main_thread_as_well_guards_what_another_one_could_not(
        self, interrupts: Interrupts
    ) -> None:
        on_another_thread(interrupts.install)
        interrupts.install()

        assert bare(signal.SIGINT) is not signal.default_int_handler

    def test_is_undone_late_where_another_thread_was_the_last(self, interrupts: Interrupts) -> None:
        ours = pretended(signal.SIGINT)
        interrupts.install()
        on_another_thread(interrupts.uninstall)

        with pytest.raises(KeyboardInterrupt):
            ours.work()
        assert ours.done == ["begun"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert bare(signal.SIGINT) is signal.default_int_handler
        assert sys.modules["_signal"].signal is set_in_c

    def test_is_done_again_after_another_thread_was_the_last(self, interrupts: Interrupts) -> None:
        interrupts.install()
        on_another_thread(interrupts.uninstall)
        interrupts.install()

        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert bare(signal.SIGINT) is not signal.default_int_handler

        interrupts.uninstall()
        assert bare(signal.SIGINT) is signal.default_int_handler

    def test_is_undone_whatever_the_count_where_there_are_no_users_any_more(
        self, interrupts: Interrupts
    ) -> None:
        interrupts.install()
        interrupts.install()

        interrupts.forget_all()

        assert bare(signal.SIGINT) is signal.default_int_handler
        interrupts.uninstall()
        interrupts.install()
        assert bare(signal.SIGINT) is not signal.default_int_handler

    def test_leaves_asyncio_run_its_own_behaviour(self, interrupts: Interrupts) -> None:
        """The first Ctrl-C cancels the main task, so its cleanup runs; KeyboardInterrupt comes out of run."""
        interrupts.install()
        seen: list[str] = []

        async def main() -> None:
            try:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                seen.append("cancelled and tidied up")
                raise

        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())

        assert seen == ["cancelled and tidied up"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class GarbageThatAsks:
    """Is found by the collector only, and asks then whether our code is interrupted."""

    def __init__(self, seen: list[bool]) -> None:
        self.me, self.seen = self, seen

    def __del__(self) -> None:
        self.seen.append(is_our_code_interrupted())


class TestWhetherOurCodeIsInterrupted:
    def test_is_not_so_behind_a_guard(self, interrupts: Interrupts) -> None:
        seen: list[bool] = []
        ours = pretended(signal.SIGUSR1)
        interrupts.install()
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(is_our_code_interrupted()))

        walk_on(ours.work, [])

        assert seen == [False]

    def test_is_so_without_one(self, interrupts: Interrupts) -> None:
        seen: list[bool] = []
        ours = pretended(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(is_our_code_interrupted()))
        on_another_thread(interrupts.install)

        walk_on(ours.work, [])

        assert seen == [True]

    def test_is_so_in_a_finalizer_that_the_collector_calls_in_the_middle_of_it(
        self, interrupts: Interrupts
    ) -> None:
        seen: list[bool] = []

        ours = in_module("threadserve.pretended", "import gc\ndef work(): gc.collect()")
        interrupts.install()
        GarbageThatAsks(seen)
        ours.work()
        GarbageThatAsks(seen)
        gc.collect()

        assert seen == [True, False]
        assert not INTERRUPTED

    @pytest.mark.parametrize(("way", "is_so"), [("wait", False), ("rest", True)])
    def test_is_so_in_one_that_strikes_a_thread_of_ours_at_rest_and_not_in_a_wait(
        self, interrupts: Interrupts, way: str, is_so: bool
    ) -> None:
        """Whoever wakes a worker counts on its coming; who waits for an answer waits for no more than before."""
        seen: list[bool] = []

        waiter: Any = Waiter()
        waiter._lock = in_module("abc", "import gc\ndef acquire(*_):\n  gc.collect()\n  return True")
        interrupts.install()
        GarbageThatAsks(seen)

        assert getattr(waiter, way)()

        assert seen == [is_so]


STORM = """
import os, random, signal, sys, threading, time
from tests.doubles import deployed, check_invariants, assert_nothing_left
from threadserve.concurrency.interrupts import Interrupts
from threadserve.concurrency.lock import acquire_within
from threadserve.concurrency.real import RealKernel
from threadserve.errors import RequestCancelledError

kind, inline, seed, wanted = sys.argv[1], sys.argv[2] == "helps", int(sys.argv[3]), int(sys.argv[4])
sys.setswitchinterval(1e-5)  # so that it strikes anywhere, and not just where the main thread blocks
chance = random.Random(seed)
kernel = RealKernel()
interrupts = Interrupts()
main = threading.get_ident()
struck = 0
may_strike = threading.Event()
responses = []  # the last one made, for a handler that cancels it
requests = []


class Struck(Exception):
    "Raised by handlers of the user's."


class TooLate(TimeoutError):
    "The same, by their alarm."


def strike(signum, frame):
    raise Struck


def expire(signum, frame):
    raise TooLate


def cancel(signum, frame):
    global struck
    struck += 1
    responses[-1].cancel()


class Work:
    def plain(self, number, *rest):
        return number

    async def coroutine(self, number, *rest):
        return number

    def items(self, count):
        yield from range(count)


def send(call, *arguments):
    response = call.remote(*arguments)
    responses[:] = [response]
    requests.append(response._request)
    return response


def step(handle, streaming):
    "One of the things that a main thread does with a handle."
    which = chance.randrange(6)
    if which == 0:
        assert send(handle.plain, 1).result() == 1
    elif which == 1:
        assert send(handle.coroutine, 1).result(timeout_s=30) == 1
    elif which == 2:
        response = send(handle.plain, 0)
        for number in range(5):
            response = send(handle.plain, number, response)
        assert response.result() == 4
    elif which == 3:
        for number, item in enumerate(streaming.items.remote(100)):
            assert number == item
            if number == 70:
                break
    elif which == 4:
        response = send(handle.plain, 1)
        response.future.add_done_callback(lambda future: None)
        response.cancel()
    else:
        send(handle.options(timeout_s=30).coroutine, 1, handle.plain.remote(2)).result()


def work_until_struck():
    "In a function: what a handler raises at a jump back to a `while` may escape the `try` around that, in CPython."
    before = struck  # first: it may strike at once
    may_strike.set()
    while struck == before:
        step(work.handle, streaming)


SIGNALS = {
    "ctrl-c": (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
    "own ctrl-c": (signal.SIGINT, strike, Struck),
    "alarm": (signal.SIGALRM, expire, TooLate),
    "cancel": (signal.SIGUSR1, cancel, RequestCancelledError),
}
signum, handler, expected = SIGNALS[kind]


def storm():
    "Interrupt the main thread again and again, each time after the last one has struck."
    times = random.Random(seed)
    pause = threading.Event()
    for _ in range(wanted):
        may_strike.wait()
        may_strike.clear()
        wait = times.random() ** 3 * 0.001
        if kind == "alarm":
            signal.setitimer(signal.ITIMER_REAL, wait + 1e-6)
        else:
            pause.wait(wait)
            signal.pthread_kill(main, signum)


begin = time.monotonic()
with deployed(
    kernel, Work, max_ongoing_requests=2, num_replicas=2, stream_buffer_size=8, inline=inline
) as work:
    router = work.router
    streaming = work.handle.options(stream=True)
    for _ in range(200):
        step(work.handle, streaming)
    signal.signal(signum, handler)
    interrupts.install()
    thread = threading.Thread(target=storm)
    thread.start()
    while struck < wanted:
        try:
            work_until_struck()
        except expected:
            struck += kind != "cancel"
        if len(requests) > 1000:
            requests[:] = [request for request in requests if request.outcome is None]
    thread.join()
    assert signal.getsignal(signum) is handler
    interrupts.uninstall()
    signal.signal(signum, signal.SIG_IGN)

    deadline = time.monotonic() + 30
    nap = threading.Event()
    while time.monotonic() < deadline:
        now = router.statistics()
        if not (now.waiting or now.queued or now.ongoing or router._is_waking):
            break
        nap.wait(0.001)
    check_invariants(router)
    assert_nothing_left(router)
    assert all(request.outcome is not None for request in requests)
    assert acquire_within(router.lock, 1)
    router.lock.release()

    def call_from_another_thread():
        for number in range(100):
            assert work.handle.plain.remote(number).result(timeout_s=30) == number
            assert work.handle.coroutine.remote(number).result() == number
        done.append(True)

    done = []
    other = threading.Thread(target=call_from_another_thread)
    other.start()
    other.join()
    assert done
    call_from_another_thread()
    assert list(streaming.items.remote(100)) == list(range(100))
print(f"{struck} struck, {time.monotonic() - begin:.1f} s")
"""


def run_program(code: str, *arguments: object, timeout: float = 100) -> str:
    """Run a program from the root of the project, and return what it printed; it must exit with 0."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=restore_interrupts,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def restore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize("waiter", ["helps", "does not help"])
@pytest.mark.parametrize("kind", ["ctrl-c", "own ctrl-c", pytest.param("alarm", marks=HAS_TIMERS), "cancel"])
def test_1000_signals_at_random_points_lose_no_slot_no_request_and_no_lock(kind: str, waiter: str) -> None:
    output = run_program(STORM, kind, waiter, 1, 1000)

    assert output.startswith("1000 struck")


PROGRAM = """
import signal, sys, threading, time
from tests.doubles import deployed
from threadserve.concurrency.interrupts import Interrupts
from threadserve.concurrency.lock import acquire_within
from threadserve.concurrency.real import RealKernel
from threadserve.errors import RequestCancelledError

interrupts = Interrupts()
interrupts.install()
entered, leave = threading.Event(), threading.Event()

class Slow:
    def __call__(self):
        entered.set()
        leave.wait(20)
        return "value"
    def items(self):
        entered.set()
        leave.wait(20)
        yield 1

def interrupt_when_entered():
    # once the call runs and the main thread is in a frame of one of these names
    entered.wait()
    main, names = threading.main_thread().ident, set()
    while not names & {"wait_on", "result", "loop"}:
        frame, names = sys._current_frames()[main], set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
    threading.Event().wait(0.05)  # a signal that comes just before a thread blocks does not end its wait
    signal.pthread_kill(main, signal.SIGINT)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait",
    [
        "response.result()",
        "response.result(timeout_s=20)",
        "response.exception()",
        "next(stream)",
        "response.future.result()",
    ],
)
def test_a_wait_ends_at_once_and_what_it_waited_for_is_cancelled(wait: str) -> None:
    is_future = "future" in wait
    made = "response = slow.handle.remote()"
    if "stream" in wait:
        made = "stream = slow.handle.options(stream=True).items.remote()"
    code = f"""
with deployed(RealKernel(), Slow) as slow:
    threading.Thread(target=interrupt_when_entered).start()
    {made}
    begin = time.monotonic()
    try:
        {wait}
    except KeyboardInterrupt:
        assert time.monotonic() - begin < 10
    else:
        raise AssertionError("it was not interrupted")
    request = {"stream" if "stream" in wait else "response"}._request
    was_cancelled = request.outcome is not None and isinstance(request.outcome.exception, RequestCancelledError)
    assert was_cancelled is {not is_future}
    leave.set()
print("ok")
"""

    assert run_program(textwrap.dedent(PROGRAM) + textwrap.dedent(code)) == "ok\n"


@pytest.mark.slow
def test_other_waiters_for_the_same_call_get_a_cancellation_and_no_interrupt() -> None:
    code = """
with deployed(RealKernel(), Slow) as slow:
    response = slow.handle.remote()
    seen = []
    def wait():
        try:
            response.result()
        except BaseException as error:
            seen.append(type(error))
    other = threading.Thread(target=wait)
    other.start()
    threading.Thread(target=interrupt_when_entered).start()
    try:
        response.result()
    except KeyboardInterrupt:
        pass
    other.join()
    assert seen == [RequestCancelledError], seen
    leave.set()
print("ok")
"""

    assert run_program(textwrap.dedent(PROGRAM) + code) == "ok\n"


@pytest.mark.slow
def test_a_callback_that_loops_on_the_main_thread_can_be_interrupted() -> None:
    code = """
with deployed(RealKernel(), Slow) as slow:
    leave.set()
    response = slow.handle.remote()
    response.result()
    def loop(response):
        threading.Thread(target=interrupt_when_entered).start()
        while True:
            pass
    try:
        response.add_done_callback(loop)
    except KeyboardInterrupt:
        print("ok")
"""

    assert run_program(textwrap.dedent(PROGRAM) + code) == "ok\n"


EXITING = """
import signal, sys, threading, time
from tests.doubles import LateWorkers, check_invariants, unattended
from threadserve.concurrency.interrupts import Interrupts

interrupts = Interrupts()
interrupts.install()
main = threading.get_ident()
deaths = []


def leave(signum, frame):
    sys.exit(7)


class Work:
    def plain(self, is_elsewhere=False):
        assert is_elsewhere or threading.get_ident() == main
        threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGTERM)).start()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            pass

    async def coroutine(self):
        self.plain(is_elsewhere=True)  # perhaps: the loop may have been faster than who waits


signal.signal(signal.SIGTERM, leave)
with unattended(LateWorkers(), Work, max_ongoing_requests=1) as work:
    work.pool.seats[0].replica.on_death = deaths.append
    response = work.handle.METHOD.remote()
    try:
        response.result()
    except SystemExit as exit:
        assert exit.code == 7
    else:
        raise AssertionError("it did not end the program")
    assert not deaths, deaths
    assert response.exception() is not None or "METHOD" == "coroutine"
    check_invariants(work.router)
    interrupts.uninstall()
print("ok")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "coroutine"])
def test_an_exit_from_a_signal_handler_is_the_main_threads_whose_body_ever_it_runs(method: str) -> None:
    assert run_program(EXITING.replace("METHOD", method)) == "ok\n"


FINALIZERS = """
import gc, sys, threading
from tests.doubles import assert_nothing_left, check_invariants, deployed, wait_until
from threadserve.call.request import current_request
from threadserve.concurrency.interrupts import INTERRUPTED, Interrupts
from threadserve.concurrency.real import RealKernel
from threadserve.errors import RequestCancelledError

inline = sys.argv[1] == "helps"
kernel, interrupts = RealKernel(), Interrupts()
kernel.errands.start()
interrupts.install()
interrupted = 0
sent, refusals = [], []
sys.unraisablehook = lambda failure: refusals.append(str(failure.exc_value))


class Work:
    def __call__(self, number):
        return number

    def items(self):
        yield from range(1000)


class Cyclic:
    "Garbage that only the collector finds."

    def __init__(self, deed):
        self.me, self.deed = self, deed

    def __del__(self):
        global interrupted
        interrupted += bool(INTERRUPTED)
        self.deed()


def call(**options):
    number, is_child = len(sent), current_request() is not None  # a worker's turn to collect, in a body
    sent.append((number, is_child, work.handle.options(**options).remote(number)))


def call_with_a_deadline():
    call(timeout_s=60)


def assert_answered(number, is_child, response):
    try:
        assert response.result(timeout_s=30) == number
    except RequestCancelledError:
        assert is_child  # of one that a finalizer has cancelled


def cancel():
    response.cancel()


def stream():
    work.handle.options(stream=True).items.remote().cancel()


REFUSED = {
    "cannot block": lambda: work.handle.remote(0).result(),
    "cannot block on app/D.items": lambda: next(work.handle.options(stream=True).items.remote()),
    "cannot make a future": lambda: work.handle.remote(0).future,
    "cannot add a callback": lambda: work.handle.remote(0).add_done_callback(repr),
}
DEEDS = (call, call_with_a_deadline, cancel, stream, *REFUSED.values())


with deployed(kernel, Work, max_ongoing_requests=2, inline=inline) as work:
    response = work.handle.remote(0)
    for round in range(6000):
        Cyclic(DEEDS[round % len(DEEDS)])
        gc.set_threshold(1 + round % 61, 1, 1)
        response = work.handle.remote(round)
        if round % 3:
            try:
                response.result()
            except Exception as error:
                assert "cancelled" in str(error), error
    gc.set_threshold(100_000)
    gc.collect()
    assert sum(not is_child for _, is_child, _ in sent) > 1000
    for each in sent:
        assert_answered(*each)
    wait_until(lambda: not (work.router.statistics().queued or work.router.statistics().ongoing))
    check_invariants(work.router)
    assert not INTERRUPTED
assert interrupted > 100, interrupted
assert all(any(refusal.startswith(said) for refusal in refusals) for said in REFUSED), set(refusals)
assert all("in a finalizer that the garbage collector calls" in refusal for refusal in refusals), set(refusals)
print("ok")
"""


@pytest.mark.slow
@pytest.mark.parametrize("waiter", ["helps", "does not help"])
def test_a_finalizer_may_send_and_cancel_requests_whatever_the_collector_has_interrupted(waiter: str) -> None:
    assert run_program(FINALIZERS, waiter) == "ok\n"
