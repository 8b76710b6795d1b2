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
                _do(self._notes.popleft())
            waiter.rest()


class Callbacks:
    """Runs foreign code where nothing of ours waits for it.

    A callback may block, even on something that another callback brings about; so each runs at once, on
    an idle thread or on a new one. One thread stays for the next callback, the others end. Where the system has no
    thread to give, a note is for the next thread that is done with its own, and where there is none, for the one that posts.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._lock = kernel.lock()
        self._notes: deque[Callable[[], object]] = deque()  # guarded by _lock, as all below
        self._idle: WaiterLike | None = None  # the thread that stays, while it has nothing to do
        self._busy = 0  # the other threads, and those that are being started

    def start(self) -> None:
        """Nothing to prepare: threads come with the notes."""

    def post(self, note: Callable[[], object]) -> None:
        """Have `note` called soon. Never blocks for long, while there are threads to be had; not for finalizers."""
        with self._lock:
            idle, self._idle = self._idle, None
            self._busy += 1
            if idle is not None:
                self._notes.append(note)
        if idle is not None:
            idle.set()
            return
        try:
            self._kernel.spawn(self._name, partial(self._run, [note]))
        except RuntimeError:
            self._leave(note)

    def _leave(self, note: Callable[[], object]) -> None:
        """Have `note` called though no thread could be started for it."""
        with self._lock:
            self._busy -= 1
            idle, self._idle = self._idle, None
            is_left = self._busy > 0 or idle is not None
            if is_left:
                self._notes.append(note)
            if idle is not None:
                self._busy += 1
        if idle is not None:
            idle.set()
        if not is_left:
            _do(note)

    def _run(self, notes: list[Callable[[], object]]) -> None:
        while notes:
            note = notes.pop()
            _do(note)
            del note  # an idle thread holds nothing of the user's
            notes.extend(self._next())

    def _next(self) -> tuple[Callable[[], object], ...]:
        """Wait for the next note; none when another thread does so already."""
        while True:
            waiter = self._kernel.waiter()
            with self._lock:
                if self._notes:  # which may have been for another that is just waking: that one rests again
                    return (self._notes.popleft(),)
                self._busy -= 1
                if self._idle is not None:
                    return ()
                self._idle = waiter
            waiter.rest()  # who ends it has counted this thread as busy


def _do(note: Callable[[], object]) -> None:
    try:
        note()
    except Exception:
        log_failure()
