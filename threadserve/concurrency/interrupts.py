"""Signals: at once in user code and in waits, at the edge of our own code otherwise.

A handler runs between any two bytecodes of the main thread, and may raise there. In user code that is what everybody
expects; between "the request is queued" and "a worker is woken" it would leave the request lying for ever, and inside
of a ``with lock:`` the lock held: the call of a lock's ``__enter__`` is itself such a place. It need not
raise to do harm, either: it may cancel, delete or shut down, which takes the locks that it has interrupted. No care in our
code helps against that. So while a runtime is up, every handler stands behind a guard that looks at what was interrupted.
It reads the stack from the inside out; the first frame that decides it:

1. a wait of ours: the handler is called at once;
2. a frame of the user's (or of a library of theirs), be it that we have called it: at once;
3. a frame of ours: not now. The signal is tripped again, so it is looked at anew a few bytecodes later, until
   control has left our code. Nothing polls: the interpreter checks for signals there anyway. It must be
   tripped when the guard has returned, for the guard has bytecodes of its own.

A frame of the standard library, or of code that it has generated (named tuples), decides nothing: it counts
for whoever called it. It costs nothing as long as no signal comes.

Nobody sees the guards. ``signal.signal`` and ``signal.getsignal`` are Python functions that look up their namesakes in the
C module ``_signal`` at each call; those are replaced meanwhile, so that a handler that is set later gets its guard, and
is given out without it. So ``from signal import signal`` is covered too, whenever that was, and
``asyncio.run``, which asks whether SIGINT still has ``signal.default_int_handler``, finds it there.

Three handlers get no guard, for they can be called anywhere: that of asyncio and that of uvloop behind
``add_signal_handler``, which do nothing (the loop is told by the wake-up descriptor, and told twice if the signal is
tripped twice), and the simulator's, which decides by itself. Not covered is what was set before a runtime that another
thread than the main one has started: only the main thread may put a guard there. And setting a handler
anew, as is done for its guard, undoes a ``signal.siginterrupt`` or ``faulthandler.register(chain=True)`` of before.

The garbage collector is another matter. It too comes between any two bytecodes (before Python 3.12 at any allocation), and
calls the user's finalizers, which may send a request or cancel one, with a lock of ours held beneath them: that
deadlocked on 3.11, 3.12 and 3.14 [tried]. So did one that waited, on 3.14, on a worker that had just been woken: a
thread of ours at rest is no wait in this sense. It cannot be put off; but it says when it begins and when it ends, so
that what is asked for in between, in a thread where it interrupted our code, can be left to the reaper (``INTERRUPTED``).
"""

from __future__ import annotations

import _thread
import gc
import signal
import sys
from _thread import get_ident
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.threads import is_main_thread
from threadserve.concurrency.waiter import read_on, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

__all__ = ["INTERRUPTED", "Interrupts", "is_interrupt", "is_our_code_interrupted"]

_PACKAGE = __name__.partition(".")[0]
_HARMLESS = {"asyncio.unix_events", "uvloop.loop", f"{_PACKAGE}.testing.scheduler"}
_SIGNALS = tuple(map(int, signal.valid_signals()))

INTERRUPTED: set[int] = set()
"""The threads whose finalizers are being called by the garbage collector in the middle of our code; it is seldom any."""

_trip: Any = _thread.interrupt_main
_c: Any = sys.modules["_signal"]
_set: Callable[[int, Any], Any] = _c.signal
_get: Callable[[int], Any] = _c.getsignal


def _may_raise(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is wait_on.__code__ or frame.f_code is read_on.__code__:
            return True
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in sys.modules and package not in sys.stdlib_module_names:
            return package != _PACKAGE
        frame = frame.f_back
    return True


_trippers: dict[int, type] = {}


def _trip_later(signum: int) -> object:
    """Return what trips the signal once more when it dies, in C: as what a handler returns it dies after the handler."""
    tripper = _trippers.get(signum)
    if tripper is None:
        trip = staticmethod(partial(_trip, signum))
        tripper = _trippers[signum] = type("_Tripper", (), {"__slots__": (), "__del__": trip})
    return tripper()


class _Guard:
    """Stands before a handler of the user's as long as there are `users`, i.e. runtimes."""

    __slots__ = ("_users", "handler")

    def __init__(self, handler: Callable[[int, FrameType | None], object], users: deque[None]) -> None:
        self.handler = handler
        self._users = users

    def __call__(self, signum: int, frame: FrameType | None) -> object:
        if self._users and not _may_raise(frame):
            return _trip_later(signum)
        return self.handler(signum, frame)


def _needs_guard(handler: Any) -> bool:
    """Whether it is one at all (and not None, SIG_IGN or SIG_DFL), has no guard yet, and may do harm."""
    return (
        callable(handler)
        and type(handler) is not _Guard
        and getattr(handler, "__module__", None) not in _HARMLESS
    )


def _unguarded(handler: Any) -> Any:
    return handler.handler if type(handler) is _Guard else handler


def _may_set() -> bool:
    """Whether this is the main thread of the main interpreter, where alone handlers may be set, or be looked at safely."""
    try:
        _set(signal.SIGINT, None)
    except TypeError:  # that is no handler; elsewhere this is not even asked
        return True
    except ValueError:
        return False
    raise AssertionError("None was taken for a signal handler")


def _note_collection(phase: str, _info: dict[str, int]) -> None:
    """Be told by the garbage collector, before and after, on the thread that it has interrupted."""
    if phase == "stop":
        if INTERRUPTED:
            INTERRUPTED.discard(get_ident())
    elif not _may_raise(sys._getframe().f_back):
        INTERRUPTED.add(get_ident())


def is_our_code_interrupted() -> bool:
    """Whether a finalizer or signal handler of the user's asks, and the code of ours that it interrupted may hold locks.

    Of the handlers only one without a guard. Then nothing can be waited for here: what is interrupted goes on only
    when the finalizer or handler has returned.
    """
    if INTERRUPTED and get_ident() in INTERRUPTED:
        return True
    if not is_main_thread():
        return False
    handlers = filter(callable, map(_get, _SIGNALS))  # few or none, so most signals cost no step in Python
    codes = {_code_of(handler) for handler in handlers if _needs_guard(handler)}
    if not codes:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame is not None and not _may_raise(frame.f_back)


def _code_of(handler: Any) -> CodeType | None:
    code: CodeType | None = getattr(getattr(handler, "__func__", handler), "__code__", None)
    return code


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal handler has raised `error`, be it Python's own for Ctrl-C, on the calling thread.

    Then it is nobody's answer: it is the main thread's, which happened to run a body while it waited.
    """
    if not is_main_thread():
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not _Guard.__call__.__code__:
        trace = trace.tb_next
    return trace is not None or isinstance(error, KeyboardInterrupt)


class Interrupts:
    """Keeps signal handlers out of our code while at least one runtime is up: one object for the process.

    It takes no lock, for a handler may strike in here as well, before there is a guard. Whoever comes and
    whoever goes says so first and acts then, and both may be done twice.
    """

    def __init__(self) -> None:
        self._users: deque[None] = deque()
        self._guarding_set = self._set_guarded  # one object each, to be recognized
        self._unguarding_get = self._get_unguarded

    def install(self) -> None:
        """Guard the handlers that are set from now on, and if this is the main thread those that are; counted.

        Never blocks. Any thread may call it.
        """
        if (
            _note_collection not in gc.callbacks
        ):  # for good: the one that goes might go between before and after
            gc.callbacks.append(_note_collection)
        self._users.append(None)
        self._guard()

    def uninstall(self) -> None:
        """Leave everything as it was when the last user has gone.

        On another thread than the main one that can only be done later: until then the guards let everything through.
        Never blocks.
        """
        if self._users:
            self._users.pop()
        self._leave()

    def forget_all(self) -> None:
        """Leave everything as it was: in a forked child there are no users."""
        self._users.clear()
        self._leave()

    def _guard(self) -> None:
        _c.signal, _c.getsignal = self._guarding_set, self._unguarding_get
        if not _may_set():
            return
        for signum in _SIGNALS:
            handler = _get(signum)
            if _needs_guard(handler):
                _set(signum, _Guard(handler, self._users))

    def _leave(self) -> None:
        if self._users or _c.signal is not self._guarding_set or not _may_set():
            return
        for signum in _SIGNALS:
            handler = _get(signum)
            if type(handler) is _Guard:
                _set(signum, handler.handler)
        _c.signal, _c.getsignal = _set, _get
        if self._users:  # somebody has come meanwhile
            self._guard()

    def _set_guarded(self, signum: int, handler: Any, /) -> Any:
        if self._users and _needs_guard(handler):
            handler = _Guard(handler, self._users)
        former = _unguarded(_set(signum, handler))
        self._leave()
        return former

    def _get_unguarded(self, signum: int, /) -> Any:
        self._leave()
        return _unguarded(_get(signum))
