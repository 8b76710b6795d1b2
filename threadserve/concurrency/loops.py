"""An event loop on a thread of its own, started when it is first needed."""

from __future__ import annotations

import sys
from collections import deque
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Protocol

from threadserve.concurrency.lease import Gate
from threadserve.concurrency.threads import stack_text, user_line
from threadserve.concurrency.waiter import log_failure

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator, Iterable
    from contextvars import Context
    from types import CellType

    from threadserve.concurrency.kernel import Kernel, Thread
    from threadserve.concurrency.waiter import Subscriber

__all__ = [
    "Host",
    "LoopThread",
    "LoopWaiter",
    "current_task",
    "give_way",
    "is_cancellation",
    "make_future",
    "may_time_out",
    "post",
    "run_coroutine",
    "stack_of_task",
]


class Host(Protocol):
    """Where a body runs that a thread which waits for it has not begun."""

    def visit(self, is_enough: Callable[[], bool]) -> bool:
        """Bring on, on the calling thread, what runs here; False where that is not possible.

        Raises:
            KeyboardInterrupt: It struck meanwhile.
        """
        ...


class LoopThread:
    """Runs functions on one event loop, in the order in which they were submitted.

    Many submissions that come before the loop looks are one wake-up of it.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._lock = kernel.lock()
        self._inbox: deque[Callable[[], object]] = deque()  # guarded by _lock
        self._is_woken = False  # guarded by _lock: the loop will look at the inbox
        self._is_stopping = False  # guarded by _lock
        self._is_over = False  # all that was submitted has been done; written and read by whoever is the loop
        self._thread: Thread | None = None  # guarded by _lock
        self._gate: Gate | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop, once its thread has made it."""

    def submit(self, fn: Callable[[], object]) -> bool:
        """Have `fn` called on the loop, soon; False when the loop is stopping and will not. Never blocks.

        Raises:
            RuntimeError: The system has no thread to give.
        """
        with self._lock:
            if self._is_stopping:
                return False
            if self._thread is None:  # with the lock held: who stops the loop must know of its thread
                self._thread = self._kernel.spawn(self._name, self._run)
                self._is_woken = True
            self._inbox.append(fn)
            wake, self._is_woken = not self._is_woken, True
        if wake:
            self._wake()
        return True

    def visit(self, is_enough: Callable[[], bool]) -> bool:
        """Be the loop for a while: run, on the calling thread, what was submitted and what is ready.

        Returns once nothing is ready, or `is_enough` says so; at once, with False, where the loop's own thread is
        at work. The calling thread must not run an event loop.

        Raises:
            KeyboardInterrupt: It struck while the user's code ran.
        """
        gate = self._gate
        return gate is not None and not self._is_stopping and gate.visit(self._work_off, is_enough)

    def _wake(self) -> None:
        """Have the loop's own thread look at the inbox."""
        loop: Any = self.loop
        if self._gate is not None:
            loop._write_to_self()
        elif loop is not None:
            loop.call_soon_threadsafe(self._drain)

    @property
    def thread(self) -> Thread | None:
        """The thread that runs the loop, once there is one."""
        return self._thread

    def stuck(self) -> str:
        """Say what keeps the loop from ending: what its thread is at, and the tasks that have yet to end. Any thread."""
        thread, loop = self._thread, self.loop
        if thread is None or loop is None:
            return ""
        import asyncio

        tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
        waiting = [f"  {task.get_name()} at {where}" for task in tasks if (where := stack_of_task(task))]
        at_work = getattr(loop, "_thread_id", None)  # a guest, perhaps
        return "\n".join(
            [stack_text(at_work or thread.ident), *(["with the tasks", *sorted(waiting)] if waiting else [])]
        )

    def stop(self, timeout: float | None = None) -> bool:
        """Let what was submitted run, cancel the tasks that are left, end the thread; False when it would not end.

        Blocks up to `timeout` seconds; not for the loop's own thread.
        """
        with self._lock:
            thread = self._thread
            stopping, self._is_stopping = self._is_stopping, True
            if thread is not None and not stopping:
                self._inbox.append(self._stop)
                wake, self._is_woken = not self._is_woken, True
            else:
                wake = False
        if thread is None:
            return True
        if wake:
            self._wake()
        thread.join(timeout)
        return not thread.is_alive()

    def _stop(self) -> None:
        self._is_over = True
        if self.loop is not None:
            self.loop.stop()

    def _look(self) -> bool:
        """Work off the inbox if the loop's own thread was woken for it; whether it was."""
        is_woken = self._is_woken
        if is_woken:
            self._drain()
        return is_woken

    def _drain(self) -> None:
        # The flag is cleared before the inbox is emptied: what is submitted meanwhile wakes the loop again. A guest
        # leaves the flag as it is: the loop's own thread is on its way, and need not be woken again before it has come.
        with self._lock:
            self._is_woken = False
        self._work_off()

    def _work_off(self) -> None:
        with self._lock:
            notes, self._inbox = self._inbox, deque()
        try:
            while notes:
                try:
                    notes.popleft()()
                except Exception:
                    log_failure()
        finally:
            if notes:  # Ctrl-C: the rest is for the loop's own thread, which is on its way as long as something is there
                with self._lock:
                    self._inbox.extendleft(reversed(notes))

    def _run(self) -> None:
        import asyncio

        loop = self._kernel.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.call_soon(self._drain)
        if Gate.fits(loop):
            self._gate = Gate(self._kernel, loop, self._look)
        _HOSTS[loop] = self
        with self._lock:
            self.loop = loop
        try:
            while not self._is_over:  # else code of the user's has stopped it: not the end of the others
                try:
                    loop.run_forever()
                except (SystemExit, KeyboardInterrupt):  # from a task of the user's
                    log_failure()
        finally:
            _finish(loop)
            del _HOSTS[loop]
            asyncio.set_event_loop(None)


_HOSTS: dict[asyncio.AbstractEventLoop, LoopThread] = {}
"""Event loop -> who runs it, of those that are run here; each entry is written and deleted in one step, by its own thread."""


def post(loop: asyncio.AbstractEventLoop, fn: Callable[[], object]) -> None:
    """Have `fn` called on `loop`, from any thread: at once if it is the calling one, else soon. Never blocks.

    Raises:
        RuntimeError: The loop is closed.
    """
    if sys.modules["asyncio"]._get_running_loop() is loop:
        fn()
        return
    host = _HOSTS.get(loop)
    if host is None or not host.submit(fn):
        loop.call_soon_threadsafe(fn)


class LoopWaiter:
    """Tells a coroutine that awaits `future` on `loop`."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        self._loop = loop
        self.future = future

    def tell(self) -> Iterable[Subscriber]:
        """Have the await end, soon or at once. Any thread."""
        if not self.future.done():  # else it gave up meanwhile, and its loop may have been closed
            post(self._loop, self.wake)
        return ()

    def wake(self) -> None:
        """End the await; on the loop."""
        if not self.future.done():
            self.future.set_result(None)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop's tasks, generators and executor as ``asyncio.run`` does, and close it."""
    import asyncio

    try:
        loop.set_task_factory(None)  # one of the user's may refuse to make what follows
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def run_coroutine(kernel: Kernel, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run `coroutine` to its end on a loop of its own, on the calling thread. Blocks."""
    loop = kernel.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        _finish(loop)


def is_cancellation(error: BaseException) -> bool:
    """Whether `error` is what asyncio raises in a cancelled task; looks no further than what has been imported."""
    kind = getattr(sys.modules.get("asyncio"), "CancelledError", ())
    return isinstance(error, kind)


def current_task() -> asyncio.Task[Any] | None:
    """Return the task that runs on this thread; asyncio must have been imported, and a loop must run."""
    return sys.modules["asyncio"].current_task()  # type: ignore[no-any-return]


def may_time_out(runner: object, is_kin: Callable[[Context], bool]) -> bool:
    """Whether `runner` is a task that a timer of its loop may still interrupt. Any thread; runs no code of a loop's.

    Such a timer is known by what it refers to, the task, or by who has set it: in `is_kin`'s contexts the
    code that the task runs, or what that has started. ``asyncio.timeout``, anyio's scopes and ``call_later(5, task.cancel)``
    are all of this kind. The timers of a loop have no public list; where it cannot be seen the answer is yes.
    """
    get_loop = getattr(runner, "get_loop", None)
    if get_loop is None:
        return False
    loop = get_loop()
    timers, ready = getattr(loop, "_scheduled", None), getattr(loop, "_ready", None)
    if timers is None or ready is None:
        return True
    pending = _copied(timers, ready)
    if pending is None:
        return True
    if getattr(runner, "cancelling", int)():
        return True
    return any(not handle.cancelled() and _concerns(handle, runner, is_kin) for handle in pending)


def _copied(timers: Any, ready: Any) -> list[Any] | None:
    """Return what is in both, in the order in which a timer goes: scheduled, then ready, then it has rung.

    With a GIL each is copied in one step. Without one a deque notices that it was changed meanwhile, as by a loop that is
    about to sleep; so there a few looks are taken before it is given up: None.
    """
    for _ in range(_LOOKS):
        try:
            return [*timers.copy(), *ready.copy()]
        except RuntimeError:
            pass  # it was changed meanwhile
    return None


_LOOKS = 8


def _concerns(handle: Any, task: object, is_kin: Callable[[Context], bool]) -> bool:
    context, callback, args = (getattr(handle, name, None) for name in ("_context", "_callback", "_args"))
    if context is None or is_kin(context):
        return True
    return any(_leads_to(task, each, _REACH) for each in (callback, *(args or ())))


_REACH = 3
"""From a lambda to the method in its closure, to the method's owner, to what that owner has."""


def _leads_to(task: object, thing: object, reach: int) -> bool:
    """Whether `thing` is the task, or a callable or an object that holds it. Runs no code of the user's."""
    return thing is task or (reach > 0 and any(_leads_to(task, part, reach - 1) for part in _parts(thing)))


def _parts(thing: object) -> list[object]:
    if isinstance(thing, (MethodType, BuiltinMethodType)):
        return [thing.__self__]
    if isinstance(thing, FunctionType):
        return [part for cell in thing.__closure__ or () for part in _contents(cell)]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    try:
        attributes = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return []
    return list(attributes.values()) if type(attributes) is dict else []


def _contents(cell: CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing has been assigned yet
        return []


def stack_of_task(task: Any) -> str:
    """Return the ``file:line`` at which a suspended task is in code that is not ours; an empty string if unknown."""
    awaited, innermost = task.get_coro(), ""
    while awaited is not None:
        frame = next(
            (
                getattr(awaited, name)
                for name in ("cr_frame", "gi_frame", "ag_frame")
                if hasattr(awaited, name)
            ),
            None,
        )
        if frame is not None:
            innermost = user_line(frame) or innermost
        awaited = next(
            (
                getattr(awaited, name)
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if hasattr(awaited, name)
            ),
            None,
        )
    return innermost


class _Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def give_way() -> None:
    """Let all that is ready on the running loop have its turn first."""
    await _Turn()


def make_future() -> tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]:
    """Return the event loop that runs on this thread, and a new future of it. RuntimeError where none runs."""
    import asyncio

    loop = asyncio.get_running_loop()
    return loop, loop.create_future()
