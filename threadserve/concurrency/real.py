"""The real kernel: real threads on the real clock."""

from __future__ import annotations

import random
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.reaper import Callbacks, Errands
from threadserve.concurrency.threads import start_thread
from threadserve.concurrency.timer import Timers
from threadserve.concurrency.waiter import Waiter

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Service, Thread, Timer

__all__ = ["RealKernel"]


class RealKernel:
    """Real threads on the real clock. Costs nothing until something of it is used."""

    # Bound once, not wrapped: what a room gets from here *is* the primitive.
    lock: Any = staticmethod(allocate_lock)
    waiter: Any = Waiter
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
