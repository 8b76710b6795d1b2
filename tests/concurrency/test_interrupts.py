"""Ctrl-C: at once in user code and in waits, at the edge of our own code otherwise, and nothing is lost.

Most of it runs in a process of its own, where the main thread is interrupted from outside.
"""

from __future__ import annotations

import asyncio
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
from threadserve.concurrency.interrupts import Interrupts
from threadserve.concurrency.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(threadserve.__file__).parent.parent


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Interrupts of our own, and the handler as it was."""
    handler, default = signal.getsignal(signal.SIGINT), signal.default_int_handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Interrupts()
    signal.signal(signal.SIGINT, handler)
    signal.default_int_handler = default


def in_module(name: str, code: str) -> types.ModuleType:
    """Run code as that of a module of this name."""
    module = types.ModuleType(name)
    exec(textwrap.dedent(code), module.__dict__)
    return module


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
    def test_is_ours_while_anybody_runs(self, interrupts: Interrupts) -> None:
        interrupts.install()
        interrupts.install()
        ours = signal.getsignal(signal.SIGINT)
        interrupts.uninstall()
        assert signal.getsignal(signal.SIGINT) is ours

        interrupts.uninstall()

        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert ours is not signal.default_int_handler

    def test_of_the_users_is_left_alone(self, interrupts: Interrupts) -> None:
        seen: list[int] = []

        def mine(signum: int, frame: Any) -> None:
            seen.append(signum)

        signal.signal(signal.SIGINT, mine)
        interrupts.install()
        assert signal.getsignal(signal.SIGINT) is mine
        signal.raise_signal(signal.SIGINT)
        interrupts.uninstall()

        assert signal.getsignal(signal.SIGINT) is mine
        assert seen == [signal.SIGINT]

    def test_of_the_users_is_left_alone_when_it_came_later(self, interrupts: Interrupts) -> None:
        interrupts.install()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        interrupts.uninstall()

        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def test_is_not_touched_from_other_threads(self, interrupts: Interrupts) -> None:
        before = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=interrupts.install)
        thread.start()
        thread.join()

        assert signal.getsignal(signal.SIGINT) is before
        interrupts.uninstall()

    def test_serves_again_after_another_thread_had_uninstalled_it(self, interrupts: Interrupts) -> None:
        interrupts.install()
        thread = threading.Thread(target=interrupts.uninstall)
        thread.start()
        thread.join()

        interrupts.install()

        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # which is how asyncio knows it
        interrupts.uninstall()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_raises_like_pythons_own_when_nobody_runs(self, interrupts: Interrupts) -> None:
        interrupts.install()
        thread = threading.Thread(target=interrupts.uninstall)
        thread.start()
        thread.join()

        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    def test_leaves_asyncio_run_its_own_behaviour(self, interrupts: Interrupts) -> None:
        """The first Ctrl-C cancels the main task, so its cleanup runs; KeyboardInterrupt comes out of run."""
        interrupts.install()
        ours = signal.getsignal(signal.SIGINT)
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
        assert signal.getsignal(signal.SIGINT) is ours


STORM = '''
import os, random, signal, sys, threading, time
from tests.doubles import deployed, check_invariants, assert_nothing_left
from threadserve.concurrency.interrupts import Interrupts
from threadserve.concurrency.real import RealKernel
from threadserve.concurrency.waiter import Waiter

seed, wanted = int(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
kernel = RealKernel()
interrupts = Interrupts()
struck = 0
may_strike = threading.Event()
requests = []


class Work:
    def plain(self, number, *rest):
        return number

    async def coroutine(self, number, *rest):
        return number

    def items(self, count):
        yield from range(count)


def step(handle, streaming):
    """One of the things that a main thread does with a handle."""
    kind = chance.randrange(6)
    if kind == 0:
        response = handle.plain.remote(1)
        requests.append(response._request)
        assert response.result() == 1
    elif kind == 1:
        response = handle.coroutine.remote(1)
        requests.append(response._request)
        assert response.result(timeout_s=30) == 1
    elif kind == 2:
        response = handle.plain.remote(0)
        for number in range(5):
            response = handle.plain.remote(number, response)
            requests.append(response._request)
        assert response.result() == 4
    elif kind == 3:
        for number, item in enumerate(streaming.items.remote(100)):
            assert number == item
            if number == 70:
                break
    elif kind == 4:
        response = handle.plain.remote(1)
        response.future.add_done_callback(lambda future: None)
        response.cancel()
        requests.append(response._request)
    else:
        response = handle.options(timeout_s=30).coroutine.remote(1, handle.plain.remote(2))
        requests.append(response._request)
        response.result()


def storm():
    """Interrupt the main thread again and again, each time after the last one has struck."""
    times = random.Random(seed)
    pause = threading.Event()
    for _ in range(wanted):
        may_strike.wait()
        may_strike.clear()
        pause.wait(times.random() ** 3 * 0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


begin = time.monotonic()
with deployed(kernel, Work, max_ongoing_requests=2, num_replicas=2, stream_buffer_size=8) as work:
    router = work.router
    streaming = work.handle.options(stream=True)
    for _ in range(200):
        step(work.handle, streaming)
    interrupts.install()
    thread = threading.Thread(target=storm)
    thread.start()
    while struck < wanted:
        try:
            may_strike.set()
            while True:
                step(work.handle, streaming)
        except KeyboardInterrupt:
            struck += 1
        if len(requests) > 1000:
            requests[:] = [request for request in requests if request.outcome is None]
    thread.join()
    interrupts.uninstall()

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
    assert router.lock.acquire(timeout=1)
    router.lock.release()
    for number in range(200):
        assert work.handle.plain.remote(number).result(timeout_s=30) == number
        assert work.handle.coroutine.remote(number).result(timeout_s=30) == number
    assert list(streaming.items.remote(100)) == list(range(100))
print(f"{struck} struck, {time.monotonic() - begin:.1f} s")
'''


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
@pytest.mark.parametrize("seed", [1, 2])
def test_2000_interrupts_at_random_points_lose_no_slot_no_request_and_no_lock(seed: int) -> None:
    output = run_program(STORM, seed, 1000)

    assert output.startswith("1000 struck")


PROGRAM = """
import signal, sys, threading, time
from tests.doubles import deployed
from threadserve.concurrency.interrupts import Interrupts
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
