"""Ctrl-C: at once in user code and in waits, at the edge of our own code otherwise.

KeyboardInterrupt lands between any two bytecodes of the main thread. In user code that is what everybody expects;
between "the request is queued" and "a worker is woken" it would leave the request lying for ever. So while
a runtime is up, and only where SIGINT had Python's default handler, the handler here looks at what it
interrupted. It reads the stack from the inside out; the first frame that decides it:

1. a wait of ours: raise at once;
2. a frame of the user's (or of a library of theirs), be it that we have called it: raise at once;
3. a frame of ours: not now. The signal is tripped again, so it is looked at anew a few bytecodes later, until
   control has left our code. Nothing polls: the interpreter checks for signals there anyway. It must be
   tripped when the handler has returned, for the handler has bytecodes of its own.

A frame of the standard library, or of code that it has generated (named tuples), decides nothing: it counts
for whoever called it.

It costs nothing when nobody presses Ctrl-C. ``asyncio.run`` installs a handler of its own while it runs, but only
in place of ``signal.default_int_handler``; so that it still does, that name stands for our handler meanwhile.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from _signal import getsignal  # type: ignore[import-not-found]
from typing import TYPE_CHECKING

from threadserve.concurrency.waiter import read_on, wait_on

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Interrupts", "is_our_code_interrupted"]

_PACKAGE = __name__.partition(".")[0]


class _Again:
    """Trips the signal once more when it dies, in C: as what a handler returns it dies after the handler."""

    __slots__ = ()
    __del__ = _thread.interrupt_main


def _may_raise(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is wait_on.__code__ or frame.f_code is read_on.__code__:
            return True
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in sys.modules and package not in sys.stdlib_module_names:
            return package != _PACKAGE
        frame = frame.f_back
    return True


def _code_of(handler: object) -> object:
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


def is_our_code_interrupted() -> bool:
    """Whether a signal handler of the user's asks, and the code of ours that it interrupted may hold locks.

    Then nothing can be waited for here: what is interrupted goes on only when the handler has returned.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    # signal.getsignal makes enums of what it finds, sixty times: a delete would take half as long again.
    codes = {_code_of(handler) for handler in map(getsignal, range(1, signal.NSIG)) if callable(handler)}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame is not None and not _may_raise(frame.f_back)


class Interrupts:
    """Holds SIGINT's handler while at least one runtime is up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0  # guarded by _lock
        self._default = signal.default_int_handler
        self._handler = self._handle  # one object: asyncio compares handlers by identity

    def install(self) -> None:
        """Begin to hold the handler, if this is the main thread and nobody else has it; counted."""
        with self._lock:
            self._users += 1
        if threading.current_thread() is not threading.main_thread():
            return
        # It is ours already where another thread uninstalled it and could not put it back.
        if signal.getsignal(signal.SIGINT) in (self._default, self._handler):
            signal.signal(signal.SIGINT, self._handler)
            signal.default_int_handler = self._handler  # type: ignore[assignment]

    def uninstall(self) -> None:
        """Put Python's handler back when the last user has gone, if this is the main thread."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users:
                return
        signal.default_int_handler = self._default
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, self._default)

    def _handle(self, signum: int, frame: FrameType | None) -> object:
        if self._users == 0 or _may_raise(frame):
            self._default(signum, frame)  # raises
        return _Again()
