"""How a thread waits for one thing, and how everyone who waits is told.

Two roles that meet in the owner of what is waited for:

* A **waiter** is one thread's one wait: made, registered with the owner under the owner's lock, waited on
  outside of it, thrown away. ``set`` may come before ``wait``, from any thread, and more than once. Who is certain that
  it is set once for each wait may wait on it again.
* A **subscriber** is anything that wants to be told: such a waiter, an event loop's future, a call that waits for
  its arguments. Telling it may have consequences (a call became ready, another one failed and has subscribers
  of its own); ``tell`` returns them instead of acting on them, and ``deliver`` works them off in a
  loop. That is why a chain of 10,000 hops needs neither recursion nor a parked thread.

Guarantees. The owner takes a subscriber out of its list exactly once, under its lock: either to tell it, or
because it gave up. So nobody is told twice by the same owner, and who gave up is never told. One subscriber
that cannot be told (its event loop is closed) is logged and does not keep the others from being told.

What was rejected. A condition variable per call costs more than everything else in it together. A single
waiter slot per call loses wake-ups, since a call can be waited for by its caller, by a loop and by the next
call at once.
"""

from __future__ import annotations

import os
from _thread import TIMEOUT_MAX, allocate_lock
from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Subscriber", "Waiter", "deliver", "log_failure", "read_on", "tell", "wait_on"]


class Subscriber(Protocol):
    """Someone to be told, once, that what it waited for has happened."""

    def tell(self) -> Iterable[Subscriber]:
        """Pass the news on and return whom else to tell now.

        Called with no lock held, by whatever thread made it happen. Must not block, must not run
        foreign code and must not raise.
        """
        ...


S = TypeVar("S", bound=Subscriber)


def deliver(news: Iterable[Subscriber], kept: type[S] | None = None) -> Sequence[S]:
    """Tell everyone, and everyone who is to be told in consequence. Never blocks; call it with no lock held.

    Args:
        news: Whom to tell.
        kept: Of those who are to be told in consequence, the ones of this type are left to the caller, and returned.
    """
    consequences: deque[Subscriber] | None = None
    left: list[S] | None = None
    for subscriber in news:
        consequences = _tell(subscriber, consequences)
    while consequences:
        subscriber = consequences.popleft()
        if kept is None or type(subscriber) is not kept:
            _tell(subscriber, consequences)
        elif left is None:
            left = [subscriber]
        else:
            left.append(subscriber)
    return left or ()


def tell(subscriber: Subscriber) -> None:
    """Tell one of whom it is known that nobody is to be told in consequence. Never raises Exception."""
    try:
        subscriber.tell()
    except Exception:
        log_failure()


def _tell(subscriber: Subscriber, consequences: deque[Subscriber] | None) -> deque[Subscriber] | None:
    """Tell one, and return `consequences` with those to be told next at the end; None as long as there are none."""
    try:
        following = subscriber.tell()
        if following:
            if consequences is None:
                return deque(following)
            consequences.extend(following)
    except Exception:
        log_failure()
    return consequences


def log_failure() -> None:
    """Log the exception under way: one subscriber's trouble is not the others'."""
    import logging

    logging.getLogger("threadserve").exception("a waiting party could not be told; the others were")


def wait_on(acquire: object, timeout: float) -> bool:
    """The one place where a thread blocks: a frame of its own, so that Ctrl-C knows it may strike here."""
    return acquire(True, timeout)  # type: ignore[operator, no-any-return]


def read_on(file: int) -> bytes:
    """The same, for what comes through a file: eight bytes are read."""
    return os.read(file, 8)


class Waiter:
    """One thread's one wait, on a raw lock: the cheapest there is in CPython."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until ``set`` was called: True; or until `timeout` seconds have passed: False."""
        if timeout is None:
            return wait_on(self._lock.acquire, -1)
        return wait_on(self._lock.acquire, min(max(timeout, 0.0), TIMEOUT_MAX))

    def rest(self, timeout: float | None = None) -> bool:
        """Do as ``wait`` does, for a thread of ours that has nothing else to do: who ends it counts on its coming.

        So unlike a wait it is no place where a finalizer of the user's may block.
        """
        return self._lock.acquire(True, -1 if timeout is None else min(max(timeout, 0.0), TIMEOUT_MAX))

    def set(self) -> None:
        """End the wait, now or in advance. Never blocks, safe from any thread, harmless when repeated."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # released before: the wait has two causes to end and both came true

    def tell(self) -> Iterable[Subscriber]:
        """Be a subscriber: ``set``."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # as above
        return ()
