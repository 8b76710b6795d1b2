"""Locks that belong to nobody while the thread that waits for one waits for the GIL.

Before 3.14 ``threading.Lock`` is a semaphore of the operating system. A thread that waits for one is given it as soon
as it is free, and then waits for the GIL, for up to 5 ms, with the lock in its hand. Whoever runs comes upon that lock
within microseconds, blocks, and so lets the other go on, who gives the lock back and thereby wakes the first: from then
on every critical section of the two costs a switch of threads, until one of them happens to find the lock free. Such a
convoy needs two idle cores, and one switch inside of a critical section to begin. Eight threads that called one
deployment made three switches a call in it; without, they make one in a hundred calls, and are four times as fast.

A lock has no convoys if a thread that waits for it is only *woken* when it is free, and takes it with the GIL in its hand,
should it still be there. So it is:

* since 3.14 with the lock of the interpreter (it is handed over to one that has waited for a millisecond, but no more
  often than that), and of course where there is no GIL;
* in 3.11 and 3.12 with a ``SimpleQueue`` that has one token in it. It is also the cheapest to enter and leave; but where
  not even 8 bytes are to be had, it cannot be given back;
* in 3.13, where such a queue hands its items over, with a lock that is tried only, and a bell for those who tried in
  vain. That costs a tenth of a call.

None of them is fair: who comes in the right moment may take the lock before one that waits for it. The queue does not
notice that somebody gives back what he has not taken; the others do, and the simulator's lock.
"""

from __future__ import annotations

import sys
from _queue import Empty, SimpleQueue
from _thread import allocate_lock
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BellLock", "RealLock", "TokenLock", "acquire_within"]


class TokenLock(SimpleQueue[Any]):
    """Mutual exclusion by a queue with one token in it: who has that has the lock."""

    __slots__ = ()

    # What is called by `with` is the queue's own: no step is taken in Python.
    acquire = SimpleQueue.get
    __enter__ = SimpleQueue.get
    # Of the three arguments, which tell of an exception, the first becomes the token. The second is asked whether it is
    # true, as it says for the queue whether to block; so exceptions of the user's have to stay out of the block.
    __exit__ = SimpleQueue.put

    def __init__(self) -> None:
        self.put(None)

    def release(self) -> None:
        """Give the lock back."""
        self.put(None)


class BellLock:
    """Mutual exclusion by a lock that is tried only, and a bell for those who have tried in vain."""

    __slots__ = ("_bell", "_free", "_is_wanted", "_try")

    def __init__(self) -> None:
        lock, self._bell = allocate_lock(), allocate_lock()
        self._try, self._free = lock.acquire, lock.release
        self._bell.acquire()
        self._is_wanted = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock: True; False where that was not possible at once, or within `timeout` seconds. Blocks."""
        return self._try(False) or (blocking and self._wait(timeout))

    def release(self) -> None:
        """Give the lock back, and have one of those who wait for it try again."""
        self._free()
        if self._is_wanted:
            self._is_wanted = False
            self._ring()

    def __enter__(self) -> None:
        if not self._try(False):
            self._wait(-1)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._free()  # as in `release`, without the call
        if self._is_wanted:
            self._is_wanted = False
            self._ring()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it rings already

    def _wait(self, timeout: float) -> bool:
        """Try whenever the bell has rung."""
        end = None if timeout < 0 else monotonic() + timeout
        while True:
            self._is_wanted = True  # before the last try: who gives the lock back after it sees that
            if self._try(False):
                return True  # it stays wanted, for others may wait as well
            has_rung = False
            try:
                has_rung = self._bell.acquire(True, -1 if end is None else max(end - monotonic(), 0.0))
            except BaseException:
                self._ring()  # it may have been for this thread, which will not come; and for nobody else
                raise
            if not has_rung:
                return False


def _lock_of_this_python() -> Callable[[], Any]:
    has_gil: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.version_info >= (3, 14) or not has_gil:
        return allocate_lock
    return BellLock if sys.version_info >= (3, 13) else TokenLock


RealLock = _lock_of_this_python()


def acquire_within(lock: Any, timeout: float) -> bool:
    """Take `lock`, of whatever kind: True; False where that is not possible within `timeout` seconds. Blocks as long."""
    if not isinstance(lock, TokenLock):
        return lock.acquire(True, timeout)  # type: ignore[no-any-return]
    try:
        lock.get(True, timeout)
    except Empty:
        return False
    return True
