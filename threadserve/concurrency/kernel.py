"""The ground everything stands on: locks, waits, the clock, timers, threads, loops and chance.

All of threadserve gets these from a Kernel and from nowhere else. There are two: the real one
(``concurrency/real.py``) and the seeded simulator of ``threadserve.testing.scheduler`` (one runnable at a time,
virtual time). A kernel
is handed down by constructor and reached by a request through its router; it is no module global, so a
simulated app can stand beside a real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    import random
    from collections import deque
    from collections.abc import Callable, Iterable

    from threadserve.concurrency.waiter import Subscriber

__all__ = ["Kernel", "Lock", "Service", "Thread", "Timer", "Turn", "WaiterLike"]


class Lock(Protocol):
    """A mutual exclusion lock: not re-entrant, released by whoever holds it."""

    def acquire(self) -> object:
        """Take the lock. Blocks; what comes back says nothing."""

    def release(self) -> object:
        """Give the lock back, which the caller holds; what comes back says nothing."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Turn(Lock, Protocol):
    """A lock for which one can try."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock: True; False where that was not possible at once, or within `timeout` seconds. Blocks."""
        ...


class WaiterLike(Protocol):
    """One thread's one wait: see ``threadserve.concurrency.waiter``."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until ``set`` was called: True; or until `timeout` seconds have passed: False."""
        ...

    def rest(self, timeout: float | None = None) -> bool:
        """Do as ``wait`` does, for a thread of ours that has nothing else to do."""
        ...

    def set(self) -> None:
        """End the wait, now or in advance. Never blocks, safe from any thread, harmless when repeated."""

    def tell(self) -> Iterable[Subscriber]:
        """The same, for who tells subscribers: nobody is to be told in consequence."""
        ...


class Timer(Protocol):
    """Something that will happen."""

    def cancel(self) -> None:
        """Let it not happen, if it has not yet. Never blocks for long, safe from any thread."""


class Thread(Protocol):
    """A thread that was started by a kernel."""

    @property
    def name(self) -> str:
        """What it was named."""
        ...

    @property
    def ident(self) -> int | None:
        """The identifier of the operating system's thread, as in ``threading.get_ident``."""

    def join(self, timeout: float | None = None) -> None:
        """Block until the thread has ended, or until `timeout` seconds have passed."""

    def is_alive(self) -> bool:
        """Whether it still runs."""
        ...


class Service(Protocol):
    """Threads of the kernel's that do what they are sent."""

    def start(self) -> None:
        """Make sure that ``post`` will be heard. Takes locks: not for finalizers."""

    def post(self, note: Callable[[], object]) -> None:
        """Have `note` called soon. Never blocks for long."""


class Kernel(Protocol):
    """What a runtime stands on. Every member is safe from any thread.

    Attributes:
        random: The only source of chance.
        errands: Runs small pieces of our own code soon, on a thread of the kernel's. ``errands.post`` takes
            no lock, so finalizers and signal handlers may call it.
        callbacks: Runs foreign code (done callbacks of users) on threads of its own.
    """

    random: random.Random
    errands: Service
    callbacks: Service

    def lock(self) -> Lock:
        """Make a lock, for a moment at a time: who waits for it may see others take it first."""
        ...

    def turn(self) -> Turn:
        """Make a lock that is held for long: one of those who wait for it has it as soon as it is given back."""
        ...

    def waiter(self) -> WaiterLike:
        """Make a waiter, for one wait."""
        ...

    def deque(self) -> deque[Any]:
        """Make a deque that several threads append to and pop from without a lock."""
        ...

    def now(self) -> float:
        """The time in seconds, on a clock that only goes forward."""
        ...

    def call_at(self, deadline: float, fn: Callable[[], object]) -> Timer:
        """Call `fn` when the clock says `deadline`; it must be short, must not block and must not raise."""
        ...

    def spawn(self, name: str, fn: Callable[[], object]) -> Thread:
        """Start a daemon thread that runs `fn` in an empty context."""
        ...

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Make an event loop, to be run by the thread that asked."""
        ...
