"""Where finalizers, signal handlers and foreign callbacks are sent, so that they run where nothing is held.

A finalizer can run between any two bytecodes, also while its own thread holds one of our locks; so ours take
no lock: they leave a note, and a thread of the kernel's acts on it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from threadserve.concurrency.waiter import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel, WaiterLike

__all__ = ["Callbacks", "Errands"]


class Errands:
    """Small pieces of work, done in order by one thread of the kernel's.

    The thread waits on a waiter that is always there to be set: ``post`` appends and sets, both atomic, and
    takes no lock. The thread makes a new waiter *before* it looks at the notes, so a note that comes
    after the look finds the new waiter and ends the wait before it begins.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._notes: deque[Callable[[], object]] = deque()
        self._lock = kernel.lock()
        self._is_running = False  # guarded by _lock
        self._waiter = kernel.waiter()

    def start(self) -> None:
        """Make sure that the thread runs. Not for finalizers: starting a thread takes locks."""
        with self._lock:
            if not self._is_running:
                self._kernel.spawn(self._name, self._run)  # where that fails nothing has changed
                self._is_running = True

    def post(self, note: Callable[[], object]) -> None:
        """Have `note` called soon. Never blocks, takes no lock, safe in finalizers and signal handlers."""
        self._notes.append(note)
        self._waiter.set()

    def _run(self) -> None:
        while True:
            waiter = self._waiter = self._kernel.waiter()
            while self._notes:
                note = self._notes.popleft()
                try:
                    note()
                except Exception:
                    log_failure()
                del note
            waiter.wait()


class Callbacks:
    """Runs foreign code where nothing of ours waits for it.

    A callback may block, even on something that another callback brings about; so each runs at once, on
    an idle thread or on a new one. One thread stays for the next callback, the others end.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._lock = kernel.lock()
        self._notes: deque[Callable[[], object]] = deque()  # guarded by _lock
        self._idle: WaiterLike | None = (
            None  # guarded by _lock; the thread that stays, while it has nothing to do
        )

    def start(self) -> None:
        """Nothing to prepare: threads come with the notes."""

    def post(self, note: Callable[[], object]) -> None:
        """Have `note` called soon. Never blocks for long; not for finalizers."""
        with self._lock:
            idle, self._idle = self._idle, None
            if idle is not None:
                self._notes.append(note)
        if idle is not None:
            idle.set()
        else:
            self._kernel.spawn(self._name, partial(self._run, [note]))

    def _run(self, notes: list[Callable[[], object]]) -> None:
        while notes:
            note = notes.pop()
            try:
                note()
            except Exception:
                log_failure()
            del note  # an idle thread holds nothing of the user's
            notes.extend(self._next())

    def _next(self) -> tuple[Callable[[], object], ...]:
        """Wait for the next note; none when another thread does so already."""
        waiter = self._kernel.waiter()
        with self._lock:
            if self._idle is not None:
                return ()
            self._idle = waiter
        waiter.wait()
        with self._lock:
            return (self._notes.popleft(),)
