"""The real threads under simulated ones. They stay for the next run: starting one costs ten times a pass of the baton."""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident
from collections import deque
from typing import TYPE_CHECKING

from threadserve.concurrency.real import kernel_here, put_under
from threadserve.concurrency.threads import start_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

__all__ = ["Worker", "hire", "start_real_thread"]

_NAME = "threadserve simulator, idle"


class Worker:
    """A real thread that waits for its baton, does one job, and waits again.

    Attributes:
        baton: Held, except for the moment in which this thread is chosen.
        real: The thread; it has the name of its job.
    """

    __slots__ = ("_job", "_stays", "baton", "real")

    def __init__(self) -> None:
        self.baton = allocate_lock()
        self.baton.acquire()
        self._job: Callable[[Worker], Callable[[], object]] | None = None
        self._stays = True
        self.real: threading.Thread = start_real_thread(_NAME, self._live)

    def give(self, name: str, job: Callable[[Worker], Callable[[], object]]) -> None:
        """Have `job` done when the baton comes. It returns what passes the baton on, which is the last that it does."""
        self._job = job
        self.real.name = name

    def rest(self) -> None:
        """Be free for the next job; for the thread itself, before it passes the baton on."""
        self.real.name = _NAME
        _idle.append(self)

    def go(self) -> None:
        """Take no further job; for the thread itself."""
        self._stays = False

    def _live(self) -> None:
        while self._stays:
            self.baton.acquire()
            job, self._job = self._job, None
            if job is not None:
                pass_on = job(self)
                del job  # what it held dies while this thread has the baton
                pass_on()
                del pass_on


def start_real_thread(name: str, fn: Callable[[], object]) -> threading.Thread:
    """Start a thread of the operating system, also where the thread that asks is under control."""
    kernel, ident = kernel_here(), get_ident()
    put_under(None, ident)
    try:
        return start_thread(name, fn)
    finally:
        put_under(kernel, ident)


_idle: deque[Worker] = deque()  # append and pop are atomic, on every build


def hire() -> Worker:
    """Return a worker that is free."""
    try:
        return _idle.pop()
    except IndexError:
        return Worker()


os.register_at_fork(after_in_child=_idle.clear)
