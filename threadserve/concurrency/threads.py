"""Named daemon threads, and what they inherit from the thread that starts them."""

from __future__ import annotations

import _thread
import sys
import threading
import time
import traceback
from _thread import get_ident
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType, TracebackType

    from threadserve.concurrency.kernel import Thread

__all__ = [
    "Inheritance",
    "become_guest",
    "below_ours",
    "forget_ours",
    "get_ident",
    "is_current",
    "is_main_thread",
    "is_stack_full",
    "stack_of_thread",
    "stack_text",
    "start_thread",
    "user_line",
    "wait_until_alone",
]

_PACKAGE = __name__.partition(".")[0] + "."
_GO_BETWEENS = ("asyncio", "threading", "contextlib")


class _OwnThread(threading.Thread):
    """A thread that works for everybody, so it inherits from nobody."""


class _GuestThread:
    """A thread of a subinterpreter, which allows no daemons: not one that the end of the process would wait for."""

    def __init__(self, name: str, fn: Callable[[], object]) -> None:
        self.name = name
        self.ident: int | None = None
        self._fn = fn
        self._has_ended = _thread.allocate_lock()
        self._has_ended.acquire()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self.ident = get_ident()
            threading.current_thread().name = self.name
            Context().run(self._fn)
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            del self._fn
            self._has_ended.release()

    def join(self, timeout: float | None = None) -> None:
        """Block until the thread has ended, or until `timeout` seconds have passed."""
        if self._has_ended.acquire(True, -1 if timeout is None else max(0.0, timeout)):
            self._has_ended.release()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._has_ended.locked()


_start_own: Callable[[str, Callable[[], object]], Thread] | None = None


def become_guest() -> None:
    """From now on start threads as a subinterpreter can have them."""
    global _start_own
    _start_own = _GuestThread


def wait_until_alone() -> None:
    """Wait until the threads of this subinterpreter, which have said that they end, are gone.

    Nothing tells of the few steps between the last line of a thread and its end, so this looks again.
    """
    for _ in range(1000):
        if _thread._count() == 0:
            return
        time.sleep(0.0002)


def start_thread(name: str, fn: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread that tracers, debuggers and ``threading.excepthook`` know."""
    if _start_own is not None:
        return cast("threading.Thread", _start_own(name, fn))  # as far as the kernels are concerned
    thread = _OwnThread(target=Context().run, args=(fn,), name=name, daemon=True)
    thread.start()
    return thread


def is_current(thread: Thread) -> bool:
    """Whether `thread` is the one that asks."""
    return thread.ident == get_ident()


def is_main_thread() -> bool:
    """Whether this is the thread that gets Ctrl-C."""
    return threading.current_thread() is threading.main_thread()


_ROOM = 26
"""Frames that the deepest road through our own code takes, a thread or an event loop that it starts included."""

if sys.version_info >= (3, 12):
    _limit, _module_of_frame = sys.getrecursionlimit, sys._getframemodulename

    def is_stack_full() -> bool:
        """Whether RecursionError would strike in the middle of what we do, rather than before it. Never blocks."""
        return _module_of_frame(_limit() - _ROOM) is not None

else:
    _nested: Any = int
    for _ in range(_ROOM):
        _nested = (_nested,)

    def is_stack_full() -> bool:
        """Whether RecursionError would strike in the middle of what we do, rather than before it. Never blocks."""
        try:
            isinstance(None, _nested)  # each level counts as a frame does, at a tenth of the cost
        except RecursionError:
            return True
        return False


def stack_of_thread(ident: int, border: CodeType | None = None, above: int = 0) -> str:
    """Return the ``file:line`` at which a thread is in code that is not ours; an empty string where it is in none.

    Args:
        ident: The thread's identifier.
        border: Code whose frames divide the stack.
        above: How many of those frames, the innermost ones, to pass by first.
    """
    frame = sys._current_frames().get(ident)
    while frame is not None and above:
        above -= frame.f_code is border
        frame = frame.f_back
    return user_line(frame)


def stack_text(ident: int | None) -> str:
    """Return the stack of a thread as a traceback shows it; an empty string when it has ended."""
    frame = None if ident is None else sys._current_frames().get(ident)
    return "" if frame is None else "".join(traceback.format_stack(frame)).rstrip()


def below_ours(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins with the first frame that is not ours; None where all are."""
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_PACKAGE):
        trace = trace.tb_next
    return trace


def forget_ours(trace: TracebackType | None) -> None:
    """Clear the frames of ours that called the code a traceback is about, as far as they have ended.

    Frames lead back to their callers', and ours hold the request, whose outcome holds the traceback: a cycle.
    """
    frame = None if trace is None else trace.tb_frame.f_back
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith((_PACKAGE, "asyncio.")):
        try:
            frame.clear()
        except RuntimeError:  # it still runs
            return
        frame = frame.f_back


def user_line(frame: FrameType | None) -> str:
    """Return the ``file:line`` of the innermost frame, from `frame` outwards, that is not ours."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith(_PACKAGE) and module.partition(".")[0] not in _GO_BETWEENS:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class Inheritance:
    """Lets threads that user code starts know what was in force in the thread that has started them.

    Context variables stop at ``threading.Thread`` (before 3.14, and there too by default). While installed,
    a thread is stamped with the starter's value when it is started; ``get`` prefers the context and falls
    back on the stamp. Only threads started where there is a value are touched, and none of ours.

    Args:
        name: Of the value; a word.
        get: Returns the value in the context of who asks, None for none.
    """

    def __init__(self, name: str, get: Callable[[], Any | None]) -> None:
        self._get = get
        self._attribute = f"_inherited_{name}"
        self._users = 0  # guarded by _lock
        self._lock = threading.Lock()
        self._stamp: Callable[[threading.Thread], None] | None = None  # our Thread.start, while it is in use
        self._start = threading.Thread.start

    def get(self) -> Any | None:
        """Return the value in force in this thread, None when there is none."""
        value = self._get()
        if value is not None:
            return value
        return getattr(threading.current_thread(), self._attribute, None)

    def install(self) -> None:
        """Begin to stamp threads; counted, so every call needs its ``uninstall``."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._wrap_start()

    def uninstall(self) -> None:
        """Put ``threading.Thread.start`` back when the last user has gone."""
        with self._lock:
            self._users -= 1
            # If somebody has wrapped it after us, ours stays below theirs and stamps nobody.
            if self._users == 0 and threading.Thread.start is self._stamp:
                threading.Thread.start = self._start  # type: ignore[method-assign]
                self._stamp = None

    def _wrap_start(self) -> None:
        if self._stamp is not None:
            return
        original = self._start = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            value = self.get() if self._users else None
            if value is not None and not isinstance(thread, _OwnThread):
                setattr(thread, self._attribute, value)
            original(thread)

        self._stamp = start
        threading.Thread.start = start  # type: ignore[assignment, method-assign]
