"""One thread and one heap for everything that happens at a time."""

from __future__ import annotations

import heapq
import itertools
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING

from threadserve.concurrency.threads import start_thread
from threadserve.concurrency.waiter import Waiter, log_failure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Alarm", "Timers"]


class Alarm:
    """Something that will happen, unless cancelled. What it would call is let go either way."""

    __slots__ = ("_fn", "_timers")

    def __init__(self, timers: Timers, fn: Callable[[], object]) -> None:
        self._timers = timers
        self._fn: Callable[[], object] | None = fn  # guarded by the timers' lock

    def cancel(self) -> None:
        """Let it not happen, if it has not yet."""
        self._timers.forget(self)

    def take(self) -> Callable[[], object] | None:
        """Return what to call, once; the timers' lock is held."""
        fn, self._fn = self._fn, None
        return fn


class Timers:
    """Alarms in order of time. The thread is started by the first alarm and stays."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._heap: list[tuple[float, int, Alarm]] = []  # guarded by _lock
        self._cancelled = 0  # guarded by _lock; alarms in the heap that were cancelled
        self._sequence = itertools.count()
        self._sleeper: Waiter | None = None  # guarded by _lock; set while the thread sleeps
        self._is_running = False  # guarded by _lock

    def call_at(self, deadline: float, fn: Callable[[], object]) -> Alarm:
        """Call `fn` on the timer thread when ``time.monotonic`` says `deadline`."""
        alarm = Alarm(self, fn)
        with self._lock:
            if not self._is_running:
                start_thread("threadserve timer", self._run)  # where that fails nothing has changed
                self._is_running = True
            heapq.heappush(self._heap, (deadline, next(self._sequence), alarm))
            is_first = self._heap[0][2] is alarm
            sleeper = self._sleeper if is_first else None
        if sleeper is not None:
            sleeper.set()
        return alarm

    def forget(self, alarm: Alarm) -> None:
        """Cancel `alarm`; the heap is rebuilt when half of it is dead."""
        with self._lock:
            fn = alarm.take()
            if fn is None:
                return
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2]._fn is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0
        del fn  # dies outside the lock

    def _run(self) -> None:
        while True:
            fn = self._due()
            if fn is not None:
                try:
                    fn()
                except Exception:
                    log_failure()
            del fn

    def _due(self) -> Callable[[], object] | None:
        """Return what is due, one at a time: it may cancel the next. If nothing is, sleep and return None."""
        sleeper = Waiter()
        with self._lock:
            now = time.monotonic()
            while self._heap and self._heap[0][0] <= now:
                fn = heapq.heappop(self._heap)[2].take()
                if fn is not None:
                    return fn
                self._cancelled -= 1
            timeout = self._heap[0][0] - now if self._heap else None
            self._sleeper = sleeper
        sleeper.rest(timeout)
        with self._lock:
            self._sleeper = None
        return None
