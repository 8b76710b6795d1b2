"""The real kernel: real threads on the real clock; and which threads are not on it.

A simulated app can stand beside a real one, so the kernel is a matter of the thread that asks.
"""

from __future__ import annotations

import random
import time
from _thread import allocate_lock, get_ident
from collections import deque
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.lock import RealLock
from threadserve.concurrency.reaper import Callbacks, Errands
from threadserve.concurrency.threads import start_thread
from threadserve.concurrency.timer import Timers
from threadserve.concurrency.waiter import Waiter

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel, Service, Thread, Timer

__all__ = ["RealKernel", "kernel_here", "put_under"]


class RealKernel:
    """Real threads on the real clock. Costs nothing until something of it is used."""

    # Bound once, not wrapped: what a room gets from here *is* the primitive.
    lock: Any = staticmethod(RealLock)
    turn: Any = staticmethod(allocate_lock)
    waiter: Any = Waiter
    deque: Any = deque
    now: Any = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.random = random.Random()
        self.errands: Service = Errands(self, "threadserve reaper")
        self.callbacks: Service = Callbacks(self, "threadserve callbacks")
        self._timers = Timers()

    def call_at(self, deadline: float, fn: Callable[[], object]) -> Timer:
        return self._timers.call_at(deadline, fn)

    def spawn(self, name: str, fn: Callable[[], object]) -> Thread:
        return start_thread(name, fn)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        import asyncio

        return asyncio.new_event_loop()


_kernels: dict[int, Kernel] = {}  # of threads that are not on the real one; each entry is the thread's own


def kernel_here() -> Kernel | None:
    """Return the kernel that the calling thread is under; None for the real one."""
    return _kernels.get(get_ident())


def put_under(kernel: Kernel | None, ident: int | None) -> None:
    """Put a thread under `kernel`, None for the real one; for the thread itself, or for who has its turn."""
    if ident is not None:
        if kernel is None:
            _kernels.pop(ident, None)
        else:
            _kernels[ident] = kernel
